#!/usr/bin/env bash
# Proves that the simulation finds bugs: puts each of the bugs here (*.patch) into a copy of the
# checked-out commit, and runs seeds until one fails. A bug that none of SEEDS (200) finds fails this.
set -euo pipefail
cd "$(git rev-parse --show-toplevel)"

seeds=${SEEDS:-200}
copy=$(mktemp -d)
trap 'git worktree remove --force "$copy" >/dev/null 2>&1 || rm -rf "$copy"' EXIT
git worktree add --quiet --detach "$copy" HEAD
# Not the checkout's own: cargo takes the copy for the same packages, and what it built with a bug in it
# for what the checkout has.
export CARGO_TARGET_DIR=$PWD/target/sim-bugs

missed=0
for patch in "$PWD"/tests/sim-bugs/*.patch; do
  name=$(basename "$patch" .patch)
  [ $# -eq 0 ] || [[ " $* " == *" $name "* ]] || continue
  git -C "$copy" checkout --quiet -- .
  git -C "$copy" apply "$patch"
  (cd "$copy" && cargo test --quiet -p timonier-tests --test simulation --no-run)
  if (cd "$copy" && STOP=1 SEEDS=$seeds cargo test --quiet -p timonier-tests --test simulation seeds \
      -- --exact --nocapture) >"$copy/output" 2>&1; then
    printf '%s: NOT found in %s seeds\n' "$name" "$seeds"
    missed=1
  else
    printf '%s: found by seed %s: %s\n' "$name" \
      "$(sed -n 's/^seed \([0-9]*\) fails; .*/\1/p' "$copy/output" | head -1)" \
      "$(grep -m1 -o '\[[0-9]\+\] .*' "$copy/output" || tail -3 "$copy/output")"
  fi
done
exit "$missed"
