# make demo    fit a small scene and write pictures   (SCENE=folder for one of yours, OUT=folder of the run)
# make test    linters and the quick tests
# make help    the rest

VENV ?= .venv
OUT ?= runs/demo
# The first Python that works and can make an environment; a wrapper without its interpreter does not count.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.10 python3; do \
	$$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	&& echo $$python && break; done)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
CPP = $(shell find csrc tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
# `make gpu` uses the machine's own Python and what is installed there: no environment, no package index.
GPU_PYTHON = $(if $(filter file,$(origin PYTHON)),python3,$(PYTHON))

.PHONY: help setup build demo test test-all sanitize bench budget lint format clean
.PHONY: gpu gpu-build gpu-test gpu-sanitize gpu-bench gpu-channels

help:
	@echo 'make demo      set up, then fit a small scene and write pictures [SCENE=folder] [OUT=$(OUT)]'
	@echo 'make test      set up, then the linters and the quick tests'
	@echo 'make test-all  the same with the slow tests'
	@echo 'make sanitize  the C++ tests under the address and undefined-behaviour sanitizers'
	@echo 'make bench     kernel benchmarks, half an hour: tables and JSON in benchmarks/results'
	@echo 'make budget    write the registers and shared memory of the built CUDA kernels as their new budget'
	@echo 'make gpu       on an NVIDIA GPU, with python3 and its torch: gpu-build, gpu-test, gpu-sanitize, gpu-bench and'
	@echo '               gpu-channels, each under 8 minutes and by itself if you like [PYTHON=python3]'
	@echo 'make build     compile what changed; make setup: the environment in $(VENV)'
	@echo 'make lint      ruff, mypy, clang-format; make format: let them rewrite'
	@echo 'make clean     remove everything built, $(VENV) excepted'

# torch first and constrained: whatever else pip might choose can be gigabytes.
$(VENV)/.torch: constraints.txt
	$(if $(PYTHON),,$(error no Python 3.10 or later with venv was found; install one (Debian: apt install python3 python3-venv) or set PYTHON))
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch setuptools ninja
	@touch $@

# Editable, so that the sources here are what runs; without isolation, so that the build sees this torch.
$(VENV)/.package: $(VENV)/.torch pyproject.toml setup.py | build
	$(PIP) --no-build-isolation --editable '.[video,motion,instances,test,dev]'
	@touch $@

build: $(VENV)/.torch
	@$(BIN)/python setup.py --quiet build_ext --inplace

setup: build $(VENV)/.package

demo: setup
	$(BIN)/gsfields demo --out $(OUT) $(if $(SCENE),--scene $(SCENE))

test test-all sanitize: export GSFIELDS_WERROR = 1

# A process for each core, eight at most; one that is done takes over from the others.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal --durations=20

test: setup lint
	$(PYTEST) -m 'not slow'

test-all: setup lint
	$(PYTEST)

sanitize: $(VENV)/.torch
	$(BIN)/python setup.py --quiet sanitize

bench: setup
	$(BIN)/python -m benchmarks.kernels
	$(BIN)/python -m benchmarks.channels
	$(BIN)/python -m benchmarks.report

budget: build
	$(BIN)/python -m tests.cuda.budget --update

gpu:
	@$(GPU_PYTHON) -m tests.gpu

gpu-build gpu-test gpu-sanitize gpu-bench gpu-channels:
	@$(GPU_PYTHON) -m tests.gpu $(@:gpu-%=%)

lint: $(VENV)/.package
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/.package
	$(BIN)/ruff check --fix --quiet
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf build dist *.egg-info gsfields/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find gsfields tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
