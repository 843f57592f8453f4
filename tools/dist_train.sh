#!/usr/bin/env bash
# Train on several processes of this machine: dist_train.sh CONFIG GPUS [arguments of train.py]
# Without a GPU, GPUS is the number of (gloo) processes. Several machines: run it on each with
#   NNODES=2 NODE_RANK=0|1 MASTER_ADDR=first.machine [PORT=29500] dist_train.sh CONFIG GPUS_EACH
# Exit codes 85 (a signal) and 130 (Ctrl-C): the state is saved, start again with --resume.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit; fi
if [[ $# -lt 2 || ! $2 =~ ^[1-9][0-9]*$ ]]; then
    echo 'usage: dist_train.sh CONFIG GPUS [arguments of train.py]' >&2
    exit 2
fi
tools=$(dirname "${BASH_SOURCE[0]}")
MKD_COMMAND=$(printf '%q ' bash "${BASH_SOURCE[0]}" "$@")  # what the trainer names to resume
export MKD_COMMAND
config=$1 gpus=$2
shift 2
source "$tools/launch.sh"
launch "$gpus" "$tools/train.py" "$config" --launcher pytorch "$@"
