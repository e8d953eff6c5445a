#!/bin/bash
# preflight.sh train|serve: what a node needs before it starts, checked in seconds; every fault is a line, exit code 1.
set -euo pipefail
BUNDLE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=node.sh
source "$BUNDLE/node.sh"

role=$1
shift
case $role in
    serve) gpus=$((ENGINES_PER_NODE * GPUS_PER_ENGINE)) ports=$(seq -s , "$SERVER_PORT" $((SERVER_PORT + ENGINES_PER_NODE - 1))) ;;
    train) gpus=$RANKS_PER_NODE ports=$([ "$NODE_RANK" -ne 0 ] || echo "$HEAD_PORT") ;;
    *) refuse "preflight.sh takes train or serve, got '$role'" ;;
esac
exec python -m firstorder.backends.promote.preflight "$BUNDLE" --model "$MODEL" --gpus "$gpus" --ports "$ports" \
    --space "$SHARED" --space "$RUN" --needed-gib "$NEEDED_GIB" --notice "$NOTICE" --nodes "$NODES" \
    --interface "$INTERFACE" "$@"
