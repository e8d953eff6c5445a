#!/bin/bash
# The model into MODEL, once, from a node that reaches huggingface.co; a folder that is whole is left as it is.
set -euo pipefail
BUNDLE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=node.sh
source "$BUNDLE/node.sh"
hf download "$MODEL_ID" --revision "$MODEL_REVISION" --local-dir "$MODEL"
echo "$MODEL: $MODEL_ID at $MODEL_REVISION"
