# Everything a newcomer needs: `make sim` and `make test` set up what they use.
.DEFAULT_GOAL := help
.PHONY: help sim study test check bench docs clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests that start, kill and starve processes, and want the machine for themselves.
ALONE := tests/engine tests/faults

# Offline by default: no telemetry, no update check, no dependency installation at run time.
export FLWR_TELEMETRY_ENABLED ?= 0
export FLWR_DISABLE_UPDATE_CHECK ?= 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("fedsim needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@echo "installing into $(VENV); PyTorch is large, this takes a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

sim: $(READY)  ## set up, run the quick start on real data, say where the report is
	$(BIN)/python run_sim.py run scenarios/quickstart.toml

study: $(READY)  ## compare six methods on MNIST shards and heart over five seeds; needs the data (README)
	$(BIN)/python run_sim.py compare study_smoke --out runs/study

test: $(READY)  ## set up and run every test
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile $(ALONE:%=--ignore=%)
	$(BIN)/python -m pytest -q $(ALONE)

check: $(READY)  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)  ## measure, ratios side by side
	$(BIN)/python benchmarks/kernel.py
	$(BIN)/python -m benchmarks.simulators
	$(BIN)/python -m benchmarks.registered

docs: $(READY)  ## write the pages that come from the code
	$(BIN)/python -m fedsim.rules_page > docs/rules.md

clean:  ## remove the virtual environment and caches (runs/ stays)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
