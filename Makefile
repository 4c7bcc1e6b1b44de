# PYTHON=/path/to/python make ...  picks the interpreter that .venv is made with.
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
# Quick tests: no ranks, nothing that takes more than half a second, no GPU, no browser, no cluster.
UNIT := not slow and not thorough and not gpu and not browser and not cluster

# Half as many again as there are cores: tests wait too.
WORKERS = $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 6 ? cores * 3 / 2 : 8)))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install quickstart test check gpu lint style types contracts format docs screenshot coverage clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed-dev  ## Install everything, development tools too, into .venv

quickstart: $(VENV)/.installed  ## Install the launcher and run the main job on built-in data
	@$(BIN)/launcher train experiment=quickstart

test: lint  ## Install, check, and run all tests
	@# .ci/run asks for pytest's own exit code in a file, because make would turn it into 2.
	@# Three at a time: many tests wait for clusters and ranks; a file's tests share what they start.
	@$(BIN)/pytest -n 3 --durations 40 --dist loadfile --no-loadscope-reorder $(if $(PYTEST_STATUS),|| echo $$? >"$(PYTEST_STATUS)")

check: lint  ## Format, lint, types, import contracts and the quick tests
	@$(BIN)/pytest -q -m "$(UNIT)" --hypothesis-profile quick -n $(WORKERS) --dist worksteal

# Nothing is installed: with PYTHON=python3, or without .venv, it must have what is needed.
GPU_PYTHON = $(or $(PYTHON),$(wildcard $(BIN)/python),python3)

gpu:  ## On a machine with one NVIDIA GPU: tests, benchmark and profiles, into $OUT or gpu-evidence/
	@$(GPU_PYTHON) tests/gpu/evidence.py --out "$(or $(OUT),gpu-evidence)" $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

lint: $(VENV)/.installed-dev  ## Format, lint, types and import contracts, without tests
	@$(MAKE) --no-print-directory --output-sync -j 2 style types contracts

style:
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .

types:
	@$(BIN)/mypy

contracts:
	@$(BIN)/lint-imports --no-logo >$(VENV)/lint-imports.log || { cat $(VENV)/lint-imports.log; exit 1; }

format: $(VENV)/.installed-dev  ## Format the code and mend what ruff can mend
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

docs: $(VENV)/.installed-dev  ## Write docs/config.md anew from the config classes
	@$(BIN)/python -m launcher.config.reference

screenshot: $(VENV)/.installed-dev  ## Make the README's pictures anew, with real runs in Chromium
	@PYTHONPATH=.:tests $(BIN)/python tests/support/page.py docs/serve.png
	@$(BIN)/launcher train experiment=quickstart run.root=$(VENV)/pictures run.name=quickstart-$$PPID
	@PYTHONPATH=.:tests $(BIN)/python tests/support/page.py docs/report.png $(VENV)/pictures/quickstart-$$PPID/report.html

coverage: $(VENV)/.installed-dev  ## Show what the quick tests do not reach
	@$(BIN)/pytest -q -m "$(UNIT)" --cov --cov-report=term-missing

clean:  ## Remove .venv, builds and caches; runs/ stays
	rm -rf $(VENV) build dist .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV): a few minutes the first time ..."
	@$(PIP) install -c constraints.txt -e '.[data,eval,serve,sweep]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV), with the development tools: a few minutes the first time ..."
	@$(PIP) install -c constraints.txt -e '.[dev,data,serve,sweep,eval,tensorboard]'
	@touch $(VENV)/.installed $@

$(BIN)/python:
	@.ci/make-venv $(VENV) $(PYTHON)
