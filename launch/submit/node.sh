#!/usr/bin/env bash
# What one node does for a run: the preflight together with all nodes, then its part of the training.
#
#   node.sh --config configs/cluster_64gpu.yaml [any other option of launch/train.py]
#
# slurm.sbatch and trainjob.yaml start it on every node with the same arguments; docs/scale.md shows
# it by hand.
#
# Exit codes: 0 the run has ended; 2 it cannot be run so, and starting it again would not help;
# 128 + n stopped by signal n; any other: start all nodes again, and the run goes on from its newest
# checkpoint.
set -euo pipefail

: "${NODES:?how many nodes there are}"
: "${NODE:?the number of this node, from 0}"
: "${PROCESSES:?how many processes a node has: one for each GPU}"
: "${HEAD:?name or address of node 0}"
PORT="${PORT:-29400}"       # where node 0 waits for the others; the preflight takes the next one
ADDRESS="${ADDRESS:-$HEAD}" # name or address of this node, as the others reach it
JOB="${JOB:-tandem}"        # the same on all nodes and at all starts of a job, another for each job
STARTS="${STARTS:-0}"       # how often all nodes have been started before
RESTARTS="${RESTARTS:-100}" # how often torchrun starts all ranks again because one has failed
MEETING="${MEETING:-900}"   # seconds for all nodes to come together
PREFLIGHT="${PREFLIGHT-}"   # options of launch/preflight.py, or "off"

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/submit/environment.sh
. "$here/environment.sh"

# A run that is started again goes on, even where it says run.overwrite or checkpoint.resume: never.
export TANDEM_JOB="$JOB" TANDEM_RESTARTS="$STARTS"

# Nodes meet by c10d: node 0 serves a store, through which all agree on their ranks, and no node has
# to know how to reach any but node 0. `is_host` says which is node 0, since comparing names fails
# where a node has several. `local-addr` is what the others are told to call if rank 0 is here.
agent=(
  python "$here/agent.py"
  --nnodes "$NODES" --nproc-per-node "$PROCESSES" --local-addr "$ADDRESS" --rdzv-backend c10d
  --rdzv-conf "is_host=$([ "$NODE" = 0 ] && echo true || echo false),join_timeout=$MEETING"
)

# Runs a command in the background, since a shell passes a signal on only while it waits.
run() {
  local code
  "$@" &
  child=$!
  while
    code=0
    wait "$child" || code=$?
    kill -0 "$child" 2>/dev/null # a signal has ended the wait, not the child
  do :; done
  child=""
  return "$code"
}

stop() {
  asked=yes
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true
}

child="" asked=""
trap stop TERM INT HUP

# A function is read whole before it runs: bash reads a script bit by bit, and this one may be
# changed on the shared disk while it runs.
main() {
  if [ "$PREFLIGHT" != off ]; then
    # shellcheck disable=SC2086  # PREFLIGHT holds several words
    run "${agent[@]}" --rdzv-endpoint "$HEAD:$((PORT + 1))" --rdzv-id "$JOB-preflight" \
      "$here/../preflight.py" "$@" $PREFLIGHT || exit $?
  fi

  # torchrun starts ranks again, and this loop torchrun, where that has been killed, or has lost the
  # others because theirs was. Whoever watches over the nodes starts those again.
  local code
  while
    code=0
    run "${agent[@]}" --rdzv-endpoint "$HEAD:$PORT" --rdzv-id "$JOB" --max-restarts "$RESTARTS" \
      "$here/../train.py" "$@" || code=$?
    [ -z "$asked" ] && { [ "$code" = 75 ] || [ "$code" -gt 128 ]; } &&
      [ $((TANDEM_RESTARTS += 1)) -le $((STARTS + RESTARTS)) ]
  do
    echo "node $NODE: starting torchrun again" >&2
  done
  exit "$code"
}

main "$@"
