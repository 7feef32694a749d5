#!/usr/bin/env bash
# The crates that decide must not be able to act: they may depend on nothing but
# data types. Fails when one gains another direct dependency.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly ALLOWED="timonier-proto imbl jiff k8s-openapi serde serde_json thiserror"

status=0
for crate in timonier-master-core timonier-agent-core; do
  for dependency in $(cargo tree --locked -p "$crate" -e normal --depth 1 --prefix none | tail -n +2 | cut -d' ' -f1 | sort -u); do
    case " $ALLOWED " in
      *" $dependency "*) ;;
      *) echo "pure: error: $crate depends on $dependency, and is to stay without I/O" >&2
         echo "hint: do it in the crate that acts, or add it to ALLOWED in deploy/pure.sh if it is data only" >&2
         status=1 ;;
    esac
  done
done
exit $status
