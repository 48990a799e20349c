SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format types contract lowest bench-solver bench-path bench-budgets bench-robustness bench-largest bench-scale bench-kill bench-ray check clean

# Threads that wait must not spin: on a shared machine they take the cores from the threads that work.
export OMP_WAIT_POLICY := PASSIVE

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := dev,cli,report,onnx,solvers,demo,experiments,processes,ray
WORKERS ?= 2
PYTEST_ARGS ?=
BENCH_ARGS ?=

# The stamp's name holds a checksum of what decides the environment: it is built again only when that changes.
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP) ## build .venv, once

# torch goes first and pinned: a looser request takes the newest build, with gigabytes of CUDA packages.
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "`PYTHON` should be Python >= 3.11. Got %d.%d." % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: setup ## trim a network trained on scanned digits, and open the book on it: demo-out/demo.html
	$(BIN)/nettrim demo -o demo-out

test: setup ## run the tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

lint: setup ## ruff: errors and format of imports
	$(BIN)/ruff check .

format: setup ## let ruff mend what it can
	$(BIN)/ruff check --fix .

types: setup ## pyright on src
	$(BIN)/pyright

contract: setup ## imports point downwards only
	$(BIN)/lint-imports --no-cache

lowest: setup ## run the quick tests on the lower bounds of all dependencies but torch and the tools
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	(grep '^torch==' constraints.txt; $(BIN)/python .ci/lowest.py) > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install -q --disable-pip-version-check -c .venv-lowest/constraints.txt torch
	.venv-lowest/bin/python -m pip install -q --disable-pip-version-check -c .venv-lowest/constraints.txt \
		-e ".[cli,report,onnx,solvers,demo,experiments,processes]" pytest pytest-xdist hypothesis
	.venv-lowest/bin/python -m pytest -n $(WORKERS) --dist loadfile -W default -m "not slow and not browser and not ray" $(PYTEST_ARGS)

bench-solver: setup ## time the solver beside general ones; hours, resumed where it was stopped
	$(BIN)/python benchmarks/solver.py $(BENCH_ARGS)

bench-path: setup ## a warm-started path of ten epsilons beside single solves
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/path.py $(BENCH_ARGS)

bench-budgets: setup ## budgets that neurons share beside their own
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/budgets.py $(BENCH_ARGS)

bench-robustness: setup ## 2,000 generated programs, some of them hopeless
	$(BIN)/python benchmarks/robustness.py --count 2000 --summary $(BENCH_ARGS)

bench-largest: setup ## the paper's largest layer, on a GPU where there is one; BENCH_ARGS='--neurons 16' for a CPU
	$(BIN)/python benchmarks/largest_layer.py $(BENCH_ARGS)

bench-scale: setup ## fit the cost model of docs/scale.md and try it on larger blocks
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scale.py

bench-kill: setup ## kill and resume 30 trims at random moments
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/kill_loop.py

bench-ray: setup ## threads, processes and Ray workers beside one thread, on a quiet machine with two cores
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/ray_overhead.py $(BENCH_ARGS)

check: lint types contract test ## all checks

clean: ## remove the environment and what commands wrote
	rm -rf $(VENV) .venv-lowest demo-out .pytest_cache .ruff_cache .hypothesis
