#!/usr/bin/env bash
# The whole French exercise (docs/fr/exercice.md) in a running lab, step by step, each
# command printed before it runs. What each step shows also goes to a file under
# target/exercise/, from which the guide's transcripts are pasted.
#
# usage: deploy/exercise/run.sh      (after: make exercise, timonctl lab up --agents 3)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PATH="$PWD/target/release:$PATH"

readonly NS=orchestrateurtest
readonly LB_PORT=30081
readonly OUT=target/exercise
readonly REACTION_LATENCY_MS=150
readonly REACTION_STEP=3
readonly SETTLE_TIMEOUT_S=60

rm -rf "$OUT"; mkdir -p "$OUT"
fail() { printf 'exercise: error: %s\n' "$1" >&2; exit 1; }
command -v timonctl >/dev/null || fail "no timonctl in target/release; build it with cargo build --release"
timonctl get nodes >/dev/null || fail "no cluster answers; start one with timonctl lab up --agents 3"

step=
section() { step=$1; printf '\n== %s\n' "$1"; }
# sh_run COMMAND: types the command, runs it in a shell and keeps both. A command that
# is to fail is part of the exercise too, so the status is only kept.
sh_run() {
  { printf '$ %s\n' "$1"; bash -c "$1" 2>&1 || true; } | tee -a "$OUT/$step.txt"
}
replicas() { timonctl get deployment "$1" -n $NS -o 'jsonpath={.status.readyReplicas}'; }
await_replicas() { # NAME N
  local deadline_s=$((SECONDS + SETTLE_TIMEOUT_S))
  until [ "$(replicas "$1")" = "$2" ]; do
    [ $SECONDS -lt $deadline_s ] || fail "$1 has $(replicas "$1") ready replicas after $SETTLE_TIMEOUT_S s, not $2"
    sleep 0.2
  done
}

section noeuds
sh_run "timonctl get nodes"

section demarrage
sh_run "timonctl apply -f deploy/exercise/"
sh_run "timonctl wait --for=condition=Available deployment --all -n $NS --timeout 60s"
sh_run "timonctl get pods,services -n $NS -o wide"

NODE=$(timonctl get nodes -o 'jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}')
LB=http://${NODE%% *}:$LB_PORT/
export NODE LB

section equilibreur
sh_run "for i in \$(seq 8); do curl -s \$LB; done"
sh_run "for i in \$(seq 300); do curl -s \$LB; done | cut -d/ -f1 | sort | uniq -c"

section conteneur-tue
sh_run "docker kill \$(docker ps -q --filter label=io.timonier.pod.namespace=$NS --filter label=io.timonier.container=apache)"
sh_run "timonctl get pods -n $NS"
await_replicas apache 1
sh_run "timonctl get pods -n $NS"

section isolement
timonctl apply -f deploy/demo/web.yaml >/dev/null
timonctl rollout status deployment/web --timeout 60s >/dev/null
POD_IP=$(timonctl get pods -n $NS -l app=apache -o 'jsonpath={.items[0].status.podIP}')
export POD_IP
sh_run "timonctl exec deployment/web -- /web --get http://\$POD_IP/"
sh_run "timonctl exec -n $NS deployment/express -- node -e \"fetch('http://\$POD_IP/').then(r => r.text()).then(console.log)\""

section charge-sans
sh_run "timonctl load \$LB --requests 1000 --interval 10"

section echelle
typed="timonctl scale express -n $NS --latency $REACTION_LATENCY_MS --by $REACTION_STEP --lang fr --declare"
printf '$ %s\n' "$typed" | tee "$OUT/echelle.txt"
$typed >>"$OUT/echelle.txt" 2>&1 &
scale_pid=$!
trap 'kill $scale_pid 2>/dev/null || true' EXIT
section charge-avec
sh_run "timonctl load \$LB --requests 1000 --interval 10"
kill -INT $scale_pid 2>/dev/null || true
wait $scale_pid 2>/dev/null || true
trap - EXIT
grep -n -m1 -i faible "$OUT/echelle.txt" || echo "exercise: express never turned weak" >&2
tail -n 5 "$OUT/echelle.txt"
section politique
sh_run "timonctl get latencyautoscalers -n $NS"
sh_run "timonctl get pods -n $NS -l app=express"
sh_run "timonctl delete latencyautoscaler express -n $NS"
timonctl scale deployment/express --replicas 1 -n $NS >/dev/null
await_replicas express 1

section mise-a-jour
sh_run "timonctl update express timonier/express:v2 -n $NS"
sh_run "timonctl update inconnu timonier/express:v2 -n $NS"

section mise-a-jour-sous-charge
timonctl update express timonier/express:v1 -n $NS >/dev/null
sh_run "timonctl load \$LB --requests 1000 --interval 10 & timonctl update express timonier/express:v2 -n $NS; wait"

section monitor
sh_run "timonctl monitor --once"
section top
sh_run "timonctl top nodes"
sh_run "timonctl top pods -A"

printf '\nexercise: done; the transcripts are in %s\n' "$OUT"
