#!/bin/bash
# One node's part of a SLURM job: task.sh train|serve SCRIPT [ARGUMENT...]
set -euo pipefail
case $1 in
    serve)
        IFS=, read -ra hosts <<<"$ROLLOUT_HOSTS"
        export SERVER_HOST=${hosts[SLURM_PROCID]}
        ;;
    train) export NODE_RANK=$SLURM_PROCID ;;
esac
script=$2
shift 2
read -ra wrapper <<<"${WRAPPER:-}"
exec ${wrapper[@]+"${wrapper[@]}"} "$BUNDLE/$script" "$@"
