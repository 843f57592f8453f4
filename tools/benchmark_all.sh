#!/usr/bin/env bash
# Classification, detection and segmentation from a pre-training, in one report: see tools/benchmark_all.py, which gets the
# arguments.
set -euo pipefail
tools=$(dirname "${BASH_SOURCE[0]}")
source "$tools/launch.sh"
exec "$(find_python)" "$tools/benchmark_all.py" "$@"
