#!/bin/bash
# install.sh [FOLDER]: a virtual environment with the lock and the package of this bundle; once, where the index is reached.
set -euo pipefail
BUNDLE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=${1:-$BUNDLE/venv}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "firstorder: $("$python" --version) is too old; set PYTHON to Python 3.11 or newer" >&2
    exit 2
}
"$python" -m venv "$target"
"$target/bin/pip" install -r "$BUNDLE/environment.lock"
"$target/bin/pip" install --no-deps --force-reinstall "$BUNDLE/@WHEEL@"
"$target/bin/pip" freeze >"$target/installed.txt"
echo "$target: set ENVIRONMENT=$target in settings.env if it is elsewhere; $target/installed.txt holds all that was installed"
