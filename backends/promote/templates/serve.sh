#!/bin/bash
# The rollout engines of one node. Each is started anew if it dies; the trainer gives it the weights it missed.
# Further arguments go to every server: serve.sh --set vllm_key=value
set -euo pipefail
BUNDLE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$BUNDLE/settings.env"
[ -z "$ENVIRONMENT" ] || source "$ENVIRONMENT/bin/activate"

stop() { trap - TERM INT EXIT; kill $(jobs -p) 2>/dev/null || true; wait; exit "${1:-0}"; }
trap 'stop 143' TERM INT
trap 'stop $?' EXIT

engine() {
    local number=$1 child= stopped=; shift
    local first=$((number * GPUS_PER_ENGINE))
    export CUDA_VISIBLE_DEVICES=$(seq -s , "$first" $((first + GPUS_PER_ENGINE - 1)))
    trap 'stopped=1; kill "$child" 2>/dev/null || true' TERM
    until [ -n "$stopped" ]; do
        python -m firstorder.backends.vllm.serve "$MODEL" --host "$SERVER_HOST" --port $((SERVER_PORT + number)) \
            --settings "$BUNDLE/engines.toml" "$@" &
        child=$!
        wait "$child" || true
        [ -n "$stopped" ] || sleep 5
    done
    wait
}

for ((number = 0; number < ENGINES_PER_NODE; number++)); do
    engine "$number" "$@" &
done
wait
