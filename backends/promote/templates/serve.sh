#!/bin/bash
# The rollout engines of one node. One that dies is started anew, and the trainer gives it the weights it missed; one that
# dies again and again ends this script, with the reason. Further arguments go to every server: serve.sh --set vllm_key=value
set -euo pipefail
BUNDLE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=node.sh
source "$BUNDLE/node.sh"
mkdir -p "$LOGS"
[ "$NODES" -eq 1 ] || reachable SERVER_HOST "$SERVER_HOST"

stop() { # stop CODE: end every engine
    trap - TERM INT EXIT
    local engines
    mapfile -t engines < <(jobs -p)
    [ "${#engines[@]}" -eq 0 ] || kill "${engines[@]}" 2>/dev/null || true
    wait
    exit "$1"
}
trap 'stop 143' TERM INT
trap 'stop $?' EXIT

engine() { # engine NUMBER [ARGUMENT...]: serve until told to stop, or until it is of no use
    local number=$1 child='' stopped='' faults=0 started code
    shift
    local first=$((number * GPUS_PER_ENGINE))
    CUDA_VISIBLE_DEVICES=$(seq -s , "$first" $((first + GPUS_PER_ENGINE - 1)))
    export CUDA_VISIBLE_DEVICES
    trap - EXIT
    trap 'stopped=1; [ -z "$child" ] || kill "$child" 2>/dev/null || true' TERM
    until [ -n "$stopped" ]; do
        started=$SECONDS
        python -m firstorder.backends.vllm.serve "$MODEL" --host "$SERVER_HOST" --port $((SERVER_PORT + number)) \
            --settings "$BUNDLE/engines.toml" --log "$LOGS/vllm-$(hostname)-$number.log" "$@" &
        child=$!
        code=0
        wait "$child" || code=$?
        [ -z "$stopped" ] || break
        [ "$code" -ne 2 ] || refuse "the settings of server $number are refused, as said above; it is not started again"
        [ $((SECONDS - started)) -lt "$STEADY" ] || faults=0
        faults=$((faults + 1))
        [ "$faults" -lt "$MAX_FAULTS" ] || {
            echo "firstorder: server $number of $(hostname) ended $faults times in a row, none of them $STEADY s after its start, the last time with code $code; its messages are above, and it is not started again" >&2
            exit 1
        }
        local seconds=$((PAUSE << (faults - 1)))
        echo "firstorder: server $number ended with code $code, fault $faults of $MAX_FAULTS; started again in $seconds s" >&2
        sleep "$seconds" &
        child=$!
        wait "$child" || true
    done
    wait
}

for ((number = 0; number < ENGINES_PER_NODE; number++)); do
    engine "$number" "$@" &
done
code=0
wait -n || code=$? # the first to give up ends all: the trainer counts on every one
stop "$code"
