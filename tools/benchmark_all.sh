#!/usr/bin/env bash
# Fine-tune checkpoints for classification, detection and segmentation, and write one report: see `mkd benchmark --help`.
set -euo pipefail
tools=$(dirname "${BASH_SOURCE[0]}")
source "$tools/launch.sh"
exec "$(find_python)" "$tools/benchmark_all.py" "$@"
