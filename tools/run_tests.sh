#!/usr/bin/env bash
# Everything a change must pass, from a clean clone: the environment, ruff, mypy, and the tests that need neither a GPU
# nor minutes. Arguments go to pytest: `bash tools/run_tests.sh -k hosts`.
set -euo pipefail

echo '[run_tests 1/4] environment'
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"
cd "$root"

echo '[run_tests 2/4] ruff check'
"$VENV/bin/python" -m ruff check .

echo '[run_tests 3/4] mypy --strict mkd_plugin'
"$VENV/bin/python" -m mypy

echo '[run_tests 4/4] pytest, two workers of one thread each'
OMP_NUM_THREADS=1 "$VENV/bin/python" -m pytest -n 2 -m 'not slow and not gpu' "$@"
