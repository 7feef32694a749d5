#!/usr/bin/env bash
# The crates that decide must not be able to act: they may depend on nothing but
# data types. Fails when one gains another direct dependency, or reaches a runtime or
# the network through any depth of dependencies.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly ALLOWED="timonier-proto imbl jiff k8s-openapi serde serde_json thiserror json-patch"
readonly ACTING="tokio|mio|socket2|hyper|tonic|h2|tower|rustix|nix|async-std|smol|polling"

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
  reached=$(cargo tree --locked -p "$crate" -e normal --prefix none | cut -d' ' -f1 | grep -xE "$ACTING" | sort -u | paste -sd' ' || true)
  if [ -n "$reached" ]; then
    echo "pure: error: $crate reaches $reached through its dependencies" >&2
    echo "hint: cargo tree -p $crate -e normal -i <crate> shows by which way" >&2
    status=1
  fi
done
exit $status
