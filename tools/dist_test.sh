#!/usr/bin/env bash
# Evaluate on several processes of this machine: dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
# Without a GPU, GPUS is the number of (gloo) processes; several machines as in dist_train.sh.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit; fi
if [[ $# -lt 3 || ! $3 =~ ^[1-9][0-9]*$ ]]; then
    echo 'usage: dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]' >&2
    exit 2
fi
tools=$(dirname "${BASH_SOURCE[0]}")
config=$1 checkpoint=$2 gpus=$3
shift 3
source "$tools/launch.sh"
launch "$gpus" "$tools/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
