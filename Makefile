# Every target installs what it needs first, once: the stamps in .venv are renewed when a requirement changes.
# `make retrain ARGS="--profile cola-small --data DIR"` passes arguments on, `make bench BENCH=main_job ARGS=...` too.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
BENCH  ?= main_job ingestion
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install retrain test lint bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.runtime ## create .venv with the pinned runtime
retrain: $(VENV)/.runtime ## run the main job: data, gate, training, ONNX, verdict, registry
	@$(BIN)/verdict retrain $(ARGS)

test: $(VENV)/.dev ## run every test
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev ## ruff (lint and format) and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(VENV)/.dev ## measure on this machine: the main job's steps, ingestion up to 10^7 rows, 2,000 mutated files
	@for name in $(BENCH); do echo "$$name:"; $(BIN)/python tests/benchmarks/bench_$$name.py $(ARGS) || exit 1; done

clean: ## remove .venv (the stores in .verdict stay)
	@rm -rf $(VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo 'Python 3.11 to 3.13 is needed; name it: make PYTHON=/path/to/python3.11 install' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo 'python -m venv failed; on Debian: apt-get install python3-venv' >&2; rm -rf $(VENV); exit 1; }

$(VENV)/.runtime: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo 'installing the pinned runtime into $(VENV) (about two minutes, once) ...'
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo 'installing what tests and lint need ...'
	@$(PIP) --editable '.[dev]'
	@touch $@
