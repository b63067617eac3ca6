# python3 >= 3.11 and make are all it takes; everything else is installed into .venv, pinned by constraints.txt.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt
# One worker a core, one thread each. A file's tests stay together, so that what they share is made once. Files are begun
# in the order of testpaths, long ones first, and not by their numbers of tests, by which long ones would come last.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# `make test-lowest` installs the lowest versions that pyproject.toml claims, into a folder of its own.
LOWEST_VENV := .venv-lowest
LOWEST_RUN := $(LOWEST_VENV)/bin/python
# Further requirements for it, such as a CPU build of torch: make test-lowest LOWEST='torch==2.13.0+cpu'
LOWEST ?=

.DEFAULT_GOAL := help
.PHONY: help demo test docs-test test-lowest mutants lint docs audit clean
.NOTPARALLEL:

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1: \2/p' Makefile

demo: $(VENV)/.installed  ## post-train the tiny pipeline on this machine
	$(RUN) -m afterflow.cli.demo

test: $(VENV)/.installed-dev  ## run the test suite; make test ARGS='-k kernels' runs a part of it
	OMP_NUM_THREADS=1 $(RUN) -m pytest $(PARALLEL) $(ARGS)

# One thread each, a page or a notebook at a time.
docs-test: $(VENV)/.installed-dev  ## carry out all code of README, docs, tutorial and notebooks; about seven minutes on two idle cores
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --maxprocesses 2 --dist worksteal tests/documents $(ARGS)

test-lowest: $(LOWEST_VENV)/.installed  ## run the test suite with the lowest versions that pyproject.toml claims
	OMP_NUM_THREADS=1 $(LOWEST_RUN) -m pytest $(PARALLEL) $(ARGS)

mutants: $(VENV)/.installed-dev  ## change single lines of the maths and see whether tests notice; an hour or more
	OMP_NUM_THREADS=1 $(RUN) bench/mutants.py $(ARGS)

lint: $(VENV)/.installed-dev  ## ruff check, ruff format --check, basedpyright
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m basedpyright --pythonpath $(RUN)

docs: $(VENV)/.installed-docs  ## build the documentation into site/; a broken link or reference fails
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

audit: $(VENV)/.installed-dev  ## known advisories of what constraints.txt pins; said and left out where pypi.org is out of reach
	@if $(RUN) -c 'import urllib.request as u; u.urlopen("https://pypi.org/pypi/pip/json", timeout=10)' 2>/dev/null; then \
	$(INSTALL) pip-audit && $(RUN) -m pip_audit --requirement constraints.txt --no-deps --disable-pip; \
	else echo "make audit: left out, pypi.org, which knows the advisories, cannot be reached from here."; fi

clean:  ## remove the environments, caches and builds; runs/ stays
	rm -rf $(VENV) $(LOWEST_VENV) build dist site .pytest_cache .ruff_cache
	find afterflow tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "afterflow needs Python 3.11 or newer, but $(PYTHON) is: $$($(PYTHON) --version 2>&1)." >&2; \
	echo "Name a newer one, for instance: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.made
	@echo "Installing into $(VENV), which takes some minutes the first time."
	$(INSTALL) -e .
	@touch $@

# The dev extra holds the plain install, hence both stamps.
$(VENV)/.installed-dev: pyproject.toml constraints.txt $(VENV)/.made
	@echo "Installing into $(VENV), which takes some minutes the first time."
	$(INSTALL) -e '.[dev]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-docs: pyproject.toml constraints.txt $(VENV)/.made
	$(INSTALL) -e '.[docs]'
	@touch $(VENV)/.installed $@

# uv is the resolver that can be asked for the lowest versions.
$(LOWEST_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv --clear $(LOWEST_VENV)
	$(LOWEST_RUN) -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST_RUN) -m uv pip install --python $(LOWEST_RUN) --resolution lowest-direct -e '.[dev]' $(LOWEST)
	@touch $@
