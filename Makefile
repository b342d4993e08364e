# The two commands to know: make demo, make test. `make help` lists the rest.

PYTHON ?= python3
BIN := .venv/bin
# More flags for the demo's run-batch, for example: make demo ARGS="--dtype float32"
ARGS ?=
# Several devices: make demo LAYOUTS="--prefill-layout pp2 --decode-layout tp2 --dtype float32"
LAYOUTS ?=
# Which tests: make test TESTS="tests/layout -x"
TESTS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test fuzz sanitize kernels-compile gpu-check lint format check clean

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

setup: ## .venv with everything in it (a second when up to date)
	@command -v $(PYTHON) >/dev/null || { echo "make setup: no $(PYTHON) here. Install it: \
	sudo apt-get install -y python3 python3-venv python3-dev g++" >&2; exit 1; }
	@$(PYTHON) scripts/setup.py

demo: setup ## a real model answers 200 real rows (ARGS="..." adds run-batch flags)
	@$(BIN)/python scripts/demo.py $(LAYOUTS) $(ARGS)

test: setup ## all tests; half an hour on two cores (TESTS="tests/batch" for some)
	$(BIN)/python -m pytest $(TESTS)

fuzz: setup ## the driver against 100,000 seeds of late and dying ranks (ARGS="--seeds 1000")
	$(BIN)/python -m tests.fuzz $(ARGS)

sanitize: setup ## the native code under sanitizers of memory, undefined behaviour and threads
	$(BIN)/python scripts/sanitize.py

kernels-compile: setup ## every Triton kernel and .cu for every GPU, without one; figures to bench/results/aot.json
	$(BIN)/python -m seesaw.kernels.aot --report bench/results/aot.json

gpu-check: ## all of it on an NVIDIA GPU, under 8 minutes, without install (ARGS="--only tests,bench" for some)
	$(PYTHON) scripts/gpu_check.py $(ARGS)

lint: setup ## ruff, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint kernels-compile test ## what CI runs

clean: ## remove build products and caches (.venv and demo-out stay)
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
