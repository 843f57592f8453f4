#!/usr/bin/env bash
# Run everything that a change must pass, from a clean clone: the environment, ruff, the import layers, mypy, the documentation,
# and the tests that need neither a GPU nor minutes. Arguments go to pytest: `bash tools/run_tests.sh -k hosts`.
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit; fi

echo '[run_tests 1/6] environment'
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"
cd "$root"
export OMP_NUM_THREADS=1

echo '[run_tests 2/6] ruff check, ruff format --check'
"$VENV/bin/python" -m ruff check .
"$VENV/bin/python" -m ruff format --check .

echo '[run_tests 3/6] import layers (.importlinter)'
"$VENV/bin/lint-imports" --no-cache

echo '[run_tests 4/6] mypy --strict mkd_plugin'
"$VENV/bin/python" -m mypy

echo '[run_tests 5/6] documentation, warnings are errors'
"$VENV/bin/python" -m sphinx -W --keep-going -q -b html docs docs/_build/html

echo '[run_tests 6/6] pytest, two workers of one thread each'
"$VENV/bin/python" -m pytest -n 2 -m 'not slow and not gpu' "$@"
