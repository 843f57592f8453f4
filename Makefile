# Commands for people who work on mkd_plugin. `make` lists them.
VENV ?= .venv
PYTHON ?= $(VENV)/bin/python
export OMP_NUM_THREADS ?= 1
FAST_TESTS = tests/unit/models tests/unit/test_structures.py tests/unit/test_architecture.py

.DEFAULT_GOAL := help
.PHONY: help setup lint format types fast check fuzz docs quickstart figures wheel clean

help:  ## list these targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup:  ## create or update the pinned environment in .venv (Python 3.11, about 2 minutes, 6 GB)
	bash tools/setup_venv.sh

lint:  ## ruff check, ruff format --check, import layers: seconds
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(dir $(PYTHON))lint-imports --no-cache

format:  ## let ruff sort imports and lay code out
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

types:  ## mypy --strict
	$(PYTHON) -m mypy

fast: lint  ## lint and the unit tests of the core: at most a minute on two cores
	$(PYTHON) -m pytest -q -n 2 -m 'not slow and not gpu' $(FAST_TESTS) --ignore tests/unit/models/test_speed.py

check:  ## everything a change must pass; the same as CI
	bash tools/run_tests.sh

fuzz:  ## new damaged files and wrong command lines by the thousand, on two cores: about an hour
	$(PYTHON) -m pytest -n 2 --hypothesis-profile long tests/fuzz

docs:  ## build the site into docs/_build/html, with warnings as errors
	$(PYTHON) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo 'Open docs/_build/html/index.html'

quickstart:  ## pre-train and fine-tune on handwritten digits: five minutes on two cores
	bash tools/quickstart.sh

figures:  ## files and lines of every room
	$(PYTHON) tests/helpers/house.py

wheel:  ## build a wheel into dist/
	$(PYTHON) -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .

clean:  ## remove built pages, wheels and caches
	rm -rf dist docs/_build docs/methods docs/reference/generated .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
