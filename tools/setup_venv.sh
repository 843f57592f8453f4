#!/usr/bin/env bash
# Make the tested environment: $VENV (default: .venv of this checkout), with the plugin installed editable. Other scripts
# source this one and then use $root and $VENV.
#
# Run it again at any time: a finished environment is recognised by its stamp in well under a second, and an unfinished or
# outdated one is completed, because pip skips what is installed. Set $PYTHON to use another Python 3.11.
set -euo pipefail
if [[ ${BASH_SOURCE[0]} == "$0" && ( ${1:-} == -h || ${1:-} == --help ) ]]; then
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${VENV:-$root/.venv}
[[ $VENV = /* ]] || VENV=$PWD/$VENV

setup_step() {
    echo "[setup $1/5] $2"
}

# Print the hash of what the environment depends on, the checkout's path among it: an editable installation points there.
# mkd_cli/doctor.py computes the same hash.
setup_wanted() {
    { echo "$root"; cat "$root"/requirements/*.txt "$root"/setup.py "$root"/mkd_plugin/version.py; } | sha256sum
}

setup_is_python311() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null
}

setup_make_venv() {
    local candidates=(python3.11 python3 python) python
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for python in "${candidates[@]}"; do
        if setup_is_python311 "$python"; then
            setup_step 1 "making $VENV with $python: about 10 s"
            "$python" -m venv "$VENV"
            return
        fi
    done
    echo "error: mkd_plugin's pinned environment needs Python 3.11, and none of these is one: ${candidates[*]}." \
        "Install it, or name one: PYTHON=/path/to/python3.11 bash $0" >&2
    return 1
}

setup_pip_install() {
    # On a terminal pip shows its progress; in a log that would be hundreds of lines, so there it prints errors alone.
    local output=-qq
    [[ ! -t 1 ]] || output=--progress-bar=on
    PIP_DISABLE_PIP_VERSION_CHECK=1 "$VENV/bin/python" -m pip install "$output" "$@"
}

setup_all() {
    local stamp=$VENV/mkd_plugin.sha256 constraints=$root/requirements/constraints.txt
    if [[ -f $stamp && $(<"$stamp") == "$(setup_wanted)" ]]; then
        echo "[setup] $VENV is up to date"
        return
    fi
    rm -f "$stamp"  # from here on the environment is unfinished

    if [[ -x $VENV/bin/python ]] && ! setup_is_python311 "$VENV/bin/python"; then
        echo "error: $VENV is not of Python 3.11: remove it, or name another folder: VENV=/path/to/venv bash $0" >&2
        return 1
    elif [[ -x $VENV/bin/python ]] && "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        setup_step 1 "continuing with $VENV"
    else
        setup_make_venv
    fi
    setup_step 2 'torch and torchvision: about 2 min, 5.5 GB on disk'
    setup_pip_install --constraint "$constraints" torch torchvision
    setup_step 3 'mmengine, mmcv, mmpretrain, mmdet, mmseg and the rest: about 1 to 3 min'
    setup_pip_install --constraint "$constraints" --requirement "$root/requirements/pinned.txt"
    setup_step 4 'mkd_plugin itself, editable: a few seconds'
    setup_pip_install --no-deps --no-build-isolation --editable "$root"
    setup_step 5 'a first import: a few seconds'
    "$VENV/bin/python" -c 'import mkd_plugin'

    setup_wanted >"$stamp"
    echo "[setup] $VENV is ready after $SECONDS s"
}

setup_all
