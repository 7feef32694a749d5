#!/usr/bin/env bash
# The demo: sets this machine up, starts a lab of three nodes and shows a deployment
# spread, scaled, updated under load and healed. Every command it types is printed, so
# each can be typed again by hand. It leaves the cluster running.
#
# usage: deploy/demo/run.sh [down]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly NODES=3
readonly NODE_PORT=30080
readonly READY_TIMEOUT_S=60
# 2,000 requests, each 10 ms: 20 s, longer than the update takes.
readonly LOAD_REQUESTS=2000
readonly LOAD_INTERVAL_MS=10
readonly LOAD_REPORT=target/demo-load.json
readonly BINARIES="timonier-master timonier-agent timonctl"

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' plain=$'\e[0m'; else bold='' dim='' red='' plain=''; fi

# After the step to root the clock goes on where it was.
started_s=$((SECONDS - ${TIMONIER_DEMO_ELAPSED_S:-0}))
stage=start
title() { stage=$1; printf '\n%s== %s%s %s(%s s)%s\n' "$bold" "$1" "$plain" "$dim" "$((SECONDS - started_s))" "$plain"; }
typed() { printf '%s$ %s%s\n' "$bold" "$*" "$plain"; }
run()   { typed "$@"; "$@"; }
fail()  { printf '%sdemo: error: %s%s\n' "$red" "$1" "$plain" >&2; [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2; exit 1; }

load_pid=
on_exit() {
  local status=$?
  [ -z "$load_pid" ] || kill "$load_pid" 2>/dev/null || true
  [ $status -eq 0 ] || printf '%sdemo: failed at "%s" after %s s%s\nhint: timonctl lab status and timonctl lab logs tell what the programs said; make demo-down takes everything away\n' \
    "$red" "$stage" "$((SECONDS - started_s))" "$plain" >&2
}
trap on_exit EXIT

build_programs() {
  command -v cargo >/dev/null || fail "no Rust toolchain" "install one from https://rustup.rs, then run make demo again"
  local flags=()
  for binary in $BINARIES; do flags+=(-p "$binary"); done
  typed cargo build --release "${flags[@]}"
  # The first build compiles some 300 crates, which takes minutes: cargo shows how far it is.
  cargo build --release --locked "${flags[@]}"
}

# The lab makes network interfaces and containers: from here on as root, with the
# programs that the user has built.
become_root() {
  [ "$(id -u)" -ne 0 ] || return 0
  command -v sudo >/dev/null || fail "the lab needs root and there is no sudo" "run make demo as root"
  trap - EXIT
  exec sudo -E env "PATH=$PATH" "TIMONIER_DEMO_ELAPSED_S=$((SECONDS - started_s))" "${BASH_SOURCE[0]}" "$@"
}

ready_replicas() { timonctl get deployment web -o "jsonpath={.status.readyReplicas}" 2>/dev/null || true; }

# requests_through_service N: one line of answer each, then how many pods answered.
requests_through_service() {
  local answers
  typed "for i in \$(seq $1); do curl -s $url; done"
  answers=$(for _ in $(seq "$1"); do curl -sS --max-time 5 "$url"; done)
  printf '%s\n' "$answers" | head -n 6
  printf '%s…%s\n' "$dim" "$plain"
  pods_seen=$(printf '%s\n' "$answers" | awk '{ print $4 }' | sort -u | wc -l)
  printf '%s requests, answered by %s different pods\n' "$1" "$pods_seen"
}

load_field() { grep -o "\"$1\" *: *[0-9]*" "$LOAD_REPORT" | head -n 1 | grep -o '[0-9]*$'; }

update_under_load() {
  typed "timonctl load $url --requests $LOAD_REQUESTS --interval $LOAD_INTERVAL_MS -o json > $LOAD_REPORT &"
  rm -f "$LOAD_REPORT"
  timonctl load "$url" --requests "$LOAD_REQUESTS" --interval "$LOAD_INTERVAL_MS" -o json >"$LOAD_REPORT" 2>target/demo-load.log &
  load_pid=$!
  run timonctl update web timonier/web:v2
  kill -0 "$load_pid" 2>/dev/null || fail "the load ended before the update did, so the update was not shown under load" \
    "raise LOAD_REQUESTS in deploy/demo/run.sh"
  requests_through_service 6
  printf '%sthe load goes on a little longer …%s\n' "$dim" "$plain"
  local load_status=0
  wait "$load_pid" || load_status=$?
  load_pid=
  failed=$(load_field failed)
  run cat "$LOAD_REPORT"
  [ -n "$failed" ] || { cat target/demo-load.log >&2; fail "timonctl load reported no count of failed requests (status $load_status)"; }
  [ "$failed" -eq 0 ] || fail "$failed of $LOAD_REQUESTS requests failed during the update"
}

kill_a_container() {
  local pod id before after deadline_s
  pod=$(timonctl get pods -l app=web -o 'jsonpath={.items[0].metadata.name}')
  id=$(docker ps -q --filter "label=io.timonier.pod.name=$pod" --filter label=io.timonier.container=web | head -n 1)
  [ -n "$id" ] || fail "no container carries the label of pod $pod"
  before=$(restarts_of "$pod")
  run timonctl get pod "$pod"
  run docker kill "$id"
  deadline_s=$((SECONDS + READY_TIMEOUT_S))
  until after=$(restarts_of "$pod"); [ "${after:-0}" -gt "${before:-0}" ] \
      && [ "$(timonctl get pod "$pod" -o 'jsonpath={.status.containerStatuses[0].ready}')" = true ]; do
    [ $SECONDS -lt $deadline_s ] || fail "pod $pod was not running again after $READY_TIMEOUT_S s"
    sleep 0.1
  done
  run timonctl get pod "$pod"
}
restarts_of() { timonctl get pod "$1" -o 'jsonpath={.status.containerStatuses[0].restartCount}'; }

if [ "${1:-}" = down ]; then
  export PATH="$PWD/target/release:$PATH"
  command -v timonctl >/dev/null || { printf 'demo: no timonctl has been built, so there is nothing to take down\n'; exit 0; }
  become_root down
  run timonctl lab down
  exit
fi

if [ -z "${TIMONIER_DEMO_ELAPSED_S:-}" ]; then
  title "what this machine needs"
  run deploy/setup.sh
  build_programs
  run deploy/images/build.sh web
fi
export PATH="$PWD/target/release:$PATH"
become_root "$@"

title "a lab: one master and $NODES nodes on this machine"
run timonctl lab up --agents $NODES
# What an earlier demo left is not this one's.
timonctl delete -f deploy/demo/web.yaml --ignore-not-found >/dev/null 2>&1 || true
run timonctl get nodes -o wide

title "a deployment, spread over the nodes behind one service"
run timonctl apply -f deploy/demo/web.yaml
run timonctl rollout status deployment/web --timeout "${READY_TIMEOUT_S}s"
run timonctl get pods -o wide
run timonctl get service web
node_address=$(timonctl get nodes -o 'jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}')
readonly url=http://${node_address%% *}:$NODE_PORT/
requests_through_service 30

title "scaling 3 → 12"
run timonctl scale deployment/web --replicas 12
run timonctl rollout status deployment/web --timeout "${READY_TIMEOUT_S}s"
run timonctl get pods -o wide
requests_through_service 60

title "a rolling update under load"
update_under_load

title "a killed container is replaced"
kill_a_container

title "what the agents measure"
run timonctl top nodes
run timonctl top pods
run timonctl monitor --once

[ "$(ready_replicas)" = 12 ] || fail "$(ready_replicas) of 12 pods are ready at the end"
printf '\n%sdemo: done in %s s, %s requests during the update, %s failed%s\n' \
  "$bold" "$((SECONDS - started_s))" "$LOAD_REQUESTS" "$failed" "$plain"
cat <<NEXT

The cluster is running. To go on:
  export PATH=$PWD/target/release:\$PATH
  timonctl get all
  timonctl monitor                        # the table, every 5 s; --tui for the full screen
  timonctl logs -f -l app=web
  timonctl scale web --latency 200 --by 2 # more replicas when answers get slow
  timonctl rollout undo deployment/web
  make demo-down                          # take it all away
NEXT
