#!/usr/bin/env bash
# Sets the environment up, then shows what the plugin does: see tools/quickstart.py, which gets the arguments.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"
exec "$VENV/bin/python" "$root/tools/quickstart.py" "$@"
