#!/usr/bin/env bash
# Collect the wheels that a bare machine with PyTorch lacks to run mkd_plugin: about 19 MB, in work_dirs/gpu_wheels or the folder
# given. They suit any Python from 3.10 and this machine's kind of processor; mmcv comes without its compiled ops, and transformers
# because mmpretrain cannot be imported beside version 5. There:
#
#     python3 -m pip install --no-index --no-deps --target /tmp/site work_dirs/gpu_wheels/*.whl
#     export PYTHONPATH=$PWD:$PWD/tests:/tmp/site
#
# It must have numpy, torch, torchvision, timm, scikit-learn, matplotlib, tensorboard, opencv, rich, Jinja2 and PyYAML already; for
# mmpretrain and transformers also einops, Markdown, packaging, regex, requests, safetensors and tqdm; and pytest for tests/gpu.
# Set $PYTHON to choose the Python whose pip is used (default: .venv/bin/python).
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit; fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${1:-$root/work_dirs/gpu_wheels}
python=${PYTHON:-$root/.venv/bin/python}
packages=(onedl-mmengine onedl-mmcv onedl-mmpretrain addict yapf termcolor mat4py modelindex model-index ordered-set platformdirs
    prettytable wcwidth transformers tokenizers huggingface_hub)

mkdir -p "$folder"
rm -f "$folder"/*.whl
MMCV_WITH_OPS=0 "$python" -m pip wheel --disable-pip-version-check --quiet --no-deps --wheel-dir "$folder" \
    --constraint "$root/requirements/constraints.txt" "${packages[@]}"
for wheel in "$folder"/*.whl; do
    if [[ $wheel != *-none-any.whl && $wheel != *-abi3-manylinux* ]]; then
        echo "error: $wheel is for this version of Python only; the other machine may have another" >&2
        exit 1
    fi
done
echo "$(ls "$folder"/*.whl | wc -l) wheels in $folder, $(du -sh "$folder" | cut -f1)"
