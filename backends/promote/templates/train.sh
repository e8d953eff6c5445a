#!/bin/bash
# The trainer's ranks of one node. A run that was interrupted goes on from its newest checkpoint.
# Further arguments go to `firstorder train`: train.sh --track tensorboard
set -euo pipefail
BUNDLE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$BUNDLE/settings.env"
[ -z "$ENVIRONMENT" ] || source "$ENVIRONMENT/bin/activate"

servers=
for host in ${ROLLOUT_HOSTS//,/ }; do
    for ((number = 0; number < ENGINES_PER_NODE; number++)); do
        servers+="${servers:+, }\"http://$host:$((SERVER_PORT + number))\""
    done
done
resume=()
[ ! -f "$RUN/config.toml" ] || resume=(--resume)
mkdir -p "$SHARED"

exec torchrun --nnodes "$NODES" --nproc-per-node "$RANKS_PER_NODE" --node-rank "$NODE_RANK" \
    --master-addr "$HEAD" --master-port "$HEAD_PORT" --no-python \
    firstorder train "$BUNDLE/recipe.toml" --backend torchtitan --settings "$BUNDLE/engines.toml" \
    --set "torchtitan.model=$MODEL" --set "vllm.servers=[$servers]" --set "vllm.shared_folder=$SHARED" \
    --out "$RUN" ${resume[@]+"${resume[@]}"} "$@"
