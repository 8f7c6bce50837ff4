PYTHON ?= python3
BIN := .venv/bin
CHECK := import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name one: make PYTHON=python3.11 ...")
INSTALL := pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO := samples/digits

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint format types layers golden bench build clean

help: ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

.venv/cpu: pyproject.toml constraints.txt
	@$(PYTHON) -c '$(CHECK)'
	@echo 'setting up .venv: a minute or two'
	$(PYTHON) -m venv .venv
	$(BIN)/$(INSTALL) -e '.[cpu]'
	@touch $@

.venv/dev: .venv/cpu
	$(BIN)/$(INSTALL) -e '.[cpu,dev]'
	$(BIN)/$(INSTALL) -e '.[qat,hf]' || echo 'no torch here: tests that trace and train will skip'
	$(BIN)/$(INSTALL) -e '.[tensorrt-rtx]' || echo 'no TensorRT for RTX here: tests that build its engines will skip'
	@touch $@

.venv-bench/done: pyproject.toml constraints.txt
	@$(PYTHON) -c '$(CHECK)'
	@echo 'setting up .venv-bench with the peers: some minutes'
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/$(INSTALL) -e '.[cpu,dev,bench,qat]'
	@touch $@

setup: .venv/dev ## Make .venv with everything that development needs

demo: .venv/cpu ## Set up, then quantize the digits sample
	$(BIN)/qcompile build $(DEMO)/digits.onnx --int8 --calib $(DEMO)/calib.npz --eval $(DEMO)/eval.npz -o demo-out --force

test: setup check ## Set up, then run all checks and all tests
	$(BIN)/pytest -n 2 --dist worksteal

check: lint types layers ## Static checks alone; nothing is written

lint: setup ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup ## ruff: mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup ## mypy --strict
	$(BIN)/mypy

layers: setup ## import-linter: imports point downwards
	$(BIN)/lint-imports

golden: setup ## Rewrite the golden dumps; read the diff before committing
	$(BIN)/pytest tests/passes/test_golden*.py --update-golden

bench: .venv-bench/done ## Benchmarks against the peers; writes docs/benchmarks.md
	.venv-bench/bin/python -m tests.benchmarks

build: setup ## Wheel in dist/
	$(BIN)/pip wheel --quiet --no-deps -w dist .

clean: ## Remove what the other verbs made
	rm -rf .venv .venv-bench build dist demo-out *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
