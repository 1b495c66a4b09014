# `make` lists the targets. Set-up runs by itself and again only when the package files change.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PACKAGE_FILES := pyproject.toml setup.cfg constraints.txt
# Extra words for the command that a target runs, e.g. make test ARGS="-k sampling"
ARGS ?=

.PHONY: help demo app test soak check format docs notebooks install install-dev clean

help:  ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  ARGS="..." adds options to demo, app, test and notebooks; PYTHON=... chooses the interpreter of a new .venv'

demo: install  ## set up, then classify synthetic videos, dense and pruned
	$(BIN)/python tools/eval.py experiment=demo $(ARGS)

app: $(VENV)/.installed-app  ## set up, then start the browser demo
	$(BIN)/python -m video_papr.cli.demo $(ARGS)

test: install-dev  ## set up, then run the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto $(ARGS)

soak: install-dev  ## set up, then run the long attacks: kills, damaged videos, many videos
	$(BIN)/python -m pytest -q -s -m slow tests/soak $(ARGS)

check: install-dev  ## lint, format check and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install-dev  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install-dev  ## build the documentation site into build/docs; a warning is an error
	$(BIN)/python docs/option_tables.py
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo 'wrote build/docs/index.html'

notebooks: install-dev  ## run the notebooks and write their outputs back, e.g. after new weights
	$(BIN)/python notebooks/execute.py $(ARGS)

install: $(VENV)/.installed  ## create .venv and install the package

install-dev: $(VENV)/.installed-dev  ## the same, with what the tests and training need

clean:  ## remove .venv, builds and caches (run directories stay)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch, torchvision and timm have to come from one resolution, so that their compiled parts fit together.
$(VENV)/.installed: $(PACKAGE_FILES) | $(BIN)/python
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(PACKAGE_FILES) | $(BIN)/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,train,app,export,docs]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-app

$(VENV)/.installed-app: $(PACKAGE_FILES) | $(BIN)/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[app]'
	@touch $@ $(VENV)/.installed

# The first Python >= 3.10 that runs, whatever its name is. ensurepip is asked for because Debian and Ubuntu
# package it apart, and `python3 -m venv` then stops half-way.
$(BIN)/python:
	@python=; \
	for candidate in $(PYTHON) python3 python3.12 python3.11 python3.13 python3.10 python; do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then \
	        python=$$candidate; break; \
	    fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "error: no Python >= 3.10 found; install one, or name it: make PYTHON=/path/to/python3 ..." >&2; exit 2; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then \
	    echo "error: $$python has no venv module; on Debian or Ubuntu: sudo apt install python3-venv" >&2; exit 2; \
	fi; \
	echo "setting up $(VENV) with $$("$$python" --version) (downloads packages; a few minutes the first time)"; \
	"$$python" -m venv $(VENV)
