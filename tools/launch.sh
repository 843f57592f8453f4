# Used by dist_train.sh and dist_test.sh: launch PROCESSES SCRIPT [arguments]

# A checkout works without being installed.
PYTHONPATH=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH

# Prints $PYTHON, else the python of tools/setup_venv.sh in a checkout, else `python`.
find_python() {
    local own=${VENV:-$(dirname "${BASH_SOURCE[0]}")/../.venv}/bin/python
    if [[ -n ${PYTHON:-} ]]; then echo "$PYTHON"; elif [[ -x $own ]]; then echo "$own"; else echo python; fi
}

launch() {
    local processes=$1
    shift
    local rendezvous=(--nnodes "${NNODES:-1}" --node_rank "${NODE_RANK:-0}"
        --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}")
    # On one machine the port is chosen freely, so that two runs do not collide.
    if [[ ${NNODES:-1} == 1 && -z ${PORT:-} ]]; then rendezvous=(--standalone); fi
    # torchrun alone would set one thread for each process
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(( ($(nproc) + processes - 1) / processes ))}
    exec "$(find_python)" -m mkd_cli.torchrun "${rendezvous[@]}" --nproc_per_node "$processes" "$@"
}
