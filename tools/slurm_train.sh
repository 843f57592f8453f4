#!/usr/bin/env bash
# Train under SLURM: slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of train.py]
#   GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=8 SRUN_ARGS='…' SBATCH_ARGS='--time 1-0' GRACE=120
# The job is queued again whenever it is stopped: GRACE seconds before its time limit (SIGUSR1) and on preemption (SIGTERM) the
# trainer saves and exits with 85, and the job asks SLURM to queue it again. It always resumes.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit; fi

if [[ ${1:-} == --run ]]; then  # inside the job
    shift
    code=0
    # shellcheck disable=SC2086
    srun ${SRUN_ARGS:-} "$@" || code=$?
    if [[ $code == 85 ]]; then
        echo "[slurm_train] the trainer has saved; job $SLURM_JOB_ID is queued again"
        exec scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
fi

if [[ $# -lt 4 ]]; then
    echo 'usage: slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of train.py]' >&2
    exit 2
fi
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$tools/launch.sh"
MKD_COMMAND=$(printf '%q ' bash "${BASH_SOURCE[0]}" "$@")  # what the trainer names to resume
export MKD_COMMAND
partition=$1 job=$2 config=$3 work_dir=$4
shift 4
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$(( gpus < 8 ? gpus : 8 ))}
mkdir -p "$work_dir"
# sbatch copies the script it is given; the copy calls this file, which every node must see, as it must see the data.
# shellcheck disable=SC2086
exec sbatch --partition "$partition" --job-name "$job" --requeue --open-mode append --output "$work_dir/slurm-%j.log" \
    --signal "USR1@${GRACE:-120}" --nodes $(( (gpus + per_node - 1) / per_node )) --ntasks "$gpus" \
    --ntasks-per-node "$per_node" --cpus-per-task "${CPUS_PER_TASK:-8}" --gres "gpu:$per_node" ${SBATCH_ARGS:-} \
    --wrap "$(printf '%q ' bash "$tools/slurm_train.sh" --run "$(find_python)" -u "$tools/train.py" "$config" \
        --work-dir "$work_dir" --launcher slurm --resume "$@")"
