# Every target installs what it needs first, once: the stamps in .venv are renewed when a requirement changes.
# Where NVIDIA's driver is loaded, `make install` takes torch and ONNX Runtime for CUDA, elsewhere those for CPUs;
# `make clean install GPU=1`, or 0, decides otherwise.
# `make retrain ARGS="--profile cola-small --data DIR"` passes arguments on, `make bench BENCH=main_job ARGS=...` too.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
BENCH  ?= main_job ingestion
TOOLS  := $(VENV)/tools
GPU    ?= $(if $(or $(wildcard /proc/driver/nvidia/version),$(shell command -v nvidia-smi)),1,0)
# Extra, build of torch, the package that must not lie beside the extra's, and what a fresh installation takes: measured,
# tests/benchmarks/results/install-size.json.
ifeq ($(GPU),0)
EXTRA  := cpu
TORCH  := cpu
OTHER  := onnxruntime-gpu
TAKES  := for CPUs: 1.9 GB on disk, about a minute (GPU=1 installs for CUDA)
else
EXTRA  := gpu
TORCH  :=
OTHER  := onnxruntime
TAKES  := for NVIDIA GPUs, with CUDA 13: 6.2 GB on disk, 3 to 8 minutes (GPU=0 installs for CPUs)
endif
# uv, with pip's settings. It compiles nothing: Python keeps the compiled form of what it imports for the first time.
UV_PIP := $(BIN)/python infra/uv_like_pip.py $(TOOLS)/bin/uv pip install --quiet
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
COMMA  := ,
# $(call install,WHAT): by uv; by pip where uv cannot be had or fails.
install = $(UV_PIP) --python $(BIN)/python --constraint constraints.txt --build-constraint constraints.txt $(1) \
  || { echo 'uv failed; pip installs instead, which takes longer and torch as its index has it ...' >&2; $(PIP) $(1); }

.DEFAULT_GOAL := help
.PHONY: help install retrain up down logs test test-services test-all browser postgresql lint bench lock sbom audit clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.runtime ## create .venv with the pinned runtime
retrain: $(VENV)/.runtime ## run the main job: data, gate, training, ONNX, verdict, registry
	@$(BIN)/verdict retrain $(ARGS)

up: $(VENV)/.services ## start Prefect, MLflow, a worker and the inference service on loopback
	@PATH=$(abspath $(BIN)):$$PATH $(BIN)/python -m flows.services.stack up

down: $(VENV)/.services ## stop them; the stores stay
	@$(BIN)/python -m flows.services.stack down

logs: $(VENV)/.services ## follow what they say
	@$(BIN)/python -m flows.services.stack logs

# One thread each; tests of one group of the Prefect server or of one file run on one worker, slow ones first
# (tests/conftest.py).
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder

test: $(VENV)/.dev browser ## run every test but those of test-services
	@$(PYTEST) --numprocesses 2 $(ARGS)
	@echo 'The default run, PostgreSQL, an S3 store, servers, worker and schedules are tested by: make test-services'

test-services: $(VENV)/.dev postgresql ## the default run; schedules, kills and outages on real servers
	@$(PYTEST) --numprocesses 2 tests/services $(ARGS)

# Three workers on two cores: one waits for services much of the time. By default pytest leaves tests/services out.
test-all: $(VENV)/.dev browser postgresql ## both at once, in less time than one after the other
	@$(PYTEST) --numprocesses 3 --override-ini 'norecursedirs=.* __pycache__' tests $(ARGS)

postgresql: $(VENV)/bin/python
	@ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1 || command -v initdb > /dev/null || { \
	  echo 'installing postgresql for the tests of the services ...'; \
	  as=$$([ "$$(id -u)" = 0 ] || echo sudo -n); \
	  { timeout 300 $$as apt-get update && timeout 600 $$as env DEBIAN_FRONTEND=noninteractive \
	    apt-get install --yes --no-install-recommends postgresql; } > $(VENV)/postgresql.log 2>&1 \
	  || { echo 'postgresql cannot be installed; $(VENV)/postgresql.log says why' >&2; exit 1; }; }

# The tests of the page drive Debian's Chromium; where it cannot be had they are skipped, and say so.
browser: $(VENV)/bin/python
	@(command -v chromium || command -v chromium-browser || command -v google-chrome) > /dev/null || { \
	  echo 'installing chromium for the tests of the page ...'; \
	  as=$$([ "$$(id -u)" = 0 ] || echo sudo -n); \
	  { timeout 300 $$as apt-get update && timeout 600 $$as env DEBIAN_FRONTEND=noninteractive \
	    apt-get install --yes --no-install-recommends chromium; } > $(VENV)/browser.log 2>&1 \
	  || echo 'chromium cannot be installed ($(VENV)/browser.log says why); the tests of the page are skipped' >&2; }

lint: $(VENV)/.dev ## ruff (lint and format), the direction of imports, and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/mypy

bench: $(VENV)/.dev ## measure on this machine: the main job's steps, ingestion up to 10^7 rows, 2,000 mutated files
	@for name in $(BENCH); do echo "$$name:"; $(BIN)/python tests/benchmarks/bench_$$name.py $(ARGS) || exit 1; done

# Supply chain. Its tools have an environment of their own: they are no part of what is listed and audited.
LOCK   := $(TOOLS)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
  --custom-compile-command 'make lock' --constraint constraints.txt

lock: $(TOOLS)/.installed ## write infra/locks: what constraints.txt pins, with hashes of every file
	@echo hatchling | $(LOCK) --extra all --extra gpu --extra services --extra kubernetes --extra ray pyproject.toml - --output-file infra/locks/runtime.txt
	@echo hatchling | $(LOCK) --extra dev --extra gpu pyproject.toml - --output-file infra/locks/dev.txt
	@$(LOCK) --group tools --output-file infra/locks/tools.txt

sbom: $(VENV)/.runtime $(TOOLS)/.installed ## write sbom.json: what .venv holds, in CycloneDX
	@$(TOOLS)/bin/cyclonedx-py environment --no-validate --output-reproducible --pyproject pyproject.toml \
	  --output-file sbom.json $(BIN)/python

audit: $(TOOLS)/.installed ## look for known vulnerabilities of what infra/locks pins (asks the index that serves the packages)
	@$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes --requirement infra/locks/dev.txt $(ARGS)

clean: ## remove .venv (the stores in .verdict stay)
	@rm -rf $(VENV)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo 'Python 3.11 to 3.13 is needed; name it: make PYTHON=/path/to/python3.11 install' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo 'python -m venv failed; on Debian: apt-get install python3-venv' >&2; rm -rf $(VENV); exit 1; }

$(VENV)/.runtime: $(TOOLS)/bin/uv pyproject.toml constraints.txt
	@echo 'installing the pinned runtime into $(VENV), once, $(TAKES) ...'
	@$(BIN)/python -m pip uninstall --quiet --quiet --yes --disable-pip-version-check $(OTHER)
	@export TORCH_BACKEND=$(TORCH); $(call install,--editable '.[all$(COMMA)$(EXTRA)]')
	@$(BIN)/python -m flows.services.prepare_installation
	@touch $@

$(VENV)/.services: $(VENV)/.runtime
	@echo 'installing what the services need ...'
	@$(call install,--editable '.[services]')
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo 'installing what tests and lint need ...'
	@$(call install,--editable '.[dev]')
	@touch $@

$(TOOLS)/bin/uv: $(VENV)/bin/python
	@$(BIN)/python -m venv --without-pip $(TOOLS)
	@$(BIN)/python -m pip --python $(TOOLS)/bin/python install --quiet --disable-pip-version-check \
	  --constraint constraints.txt uv || true
	@touch $@

$(TOOLS)/.installed: $(TOOLS)/bin/uv infra/locks/tools.txt
	@$(UV_PIP) --python $(TOOLS)/bin/python --require-hashes --requirement infra/locks/tools.txt
	@touch $@
