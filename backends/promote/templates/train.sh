#!/bin/bash
# The trainer's ranks of one node. A run that was interrupted resumes from its newest checkpoint. SIGTERM lets the step finish
# and saves it. Further arguments go to `firstorder train`: train.sh --track tensorboard
set -euo pipefail
BUNDLE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=node.sh
source "$BUNDLE/node.sh"

servers=
for host in ${ROLLOUT_HOSTS//,/ }; do
    [ "$NODES" -eq 1 ] || reachable ROLLOUT_HOSTS "$host"
    for ((number = 0; number < ENGINES_PER_NODE; number++)); do
        servers+="${servers:+, }\"http://$host:$((SERVER_PORT + number))\""
    done
done
[ "$NODES" -eq 1 ] || reachable HEAD "$HEAD"
resume=()
[ ! -f "$RUN/config.toml" ] || resume=(--resume)
mkdir -p "$SHARED"

exec torchrun --nnodes "$NODES" --nproc-per-node "$RANKS_PER_NODE" --node-rank "$NODE_RANK" \
    --master-addr "$HEAD" --master-port "$HEAD_PORT" --shutdown-timeout "$NOTICE" --no-python \
    firstorder train "$BUNDLE/recipe.toml" --backend torchtitan --settings "$BUNDLE/engines.toml" \
    --set "torchtitan.model=$MODEL" --set "vllm.servers=[$servers]" --set "vllm.shared_folder=$SHARED" \
    --out "$RUN" ${resume[@]+"${resume[@]}"} "$@"
