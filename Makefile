# Two commands matter: `make reproduce` runs the main job and renders the book, `make test` tests.
# Both set up .venv first when it is missing or pyproject.toml changed.

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: help install reproduce book test test-fast check lock chromium
.DEFAULT_GOAL := help

help:
	@echo "make reproduce  run the notebooks on the embedded data, render the book, print the table"
	@echo "make test       all tests: package, notebooks, book, browser"
	@echo "make test-fast  the package's tests alone"
	@echo "make check      style and types"
	@echo "make lock       the newest versions that pyproject.toml allows, into requirements.lock"

install: $(INSTALLED)

# The versions in requirements.lock are those that the committed numbers come from.
# Twice --quiet hides warnings, of which some package indexes cause hundreds; errors still show.
$(INSTALLED): pyproject.toml requirements.lock
	@echo "installing the packages of requirements.lock into $(VENV): a few minutes, once"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --quiet \
	  --constraint requirements.lock --editable '.[book,onnx,test]'
	@$(VENV)/bin/python -m slotmatch.browser || echo "the book will have no live student"
	@touch $@

# Else glibc hands every large tensor back to the kernel: training steps took 1.5 times as long.
reproduce: export MALLOC_MMAP_MAX_ := 0
reproduce: export MALLOC_TRIM_THRESHOLD_ := 4000000000
reproduce: $(INSTALLED)
	@$(VENV)/bin/python -m slotmatch.reporting.report

book: reproduce

test: $(INSTALLED) check chromium
	@$(VENV)/bin/python -m pytest -q -m "slow or not slow"

# One process a core, each with one thread.
test-fast: export OMP_NUM_THREADS := 1
test-fast: $(INSTALLED)
	@$(VENV)/bin/python -m pytest -q --numprocesses logical --maxprocesses 4 --dist loadfile

check: $(INSTALLED)
	@$(VENV)/bin/python -m ruff check --quiet .
	@$(VENV)/bin/python -m ruff format --quiet --check .
	@$(VENV)/bin/python -m mypy --no-error-summary
	@$(VENV)/bin/python -m nbstripout --verify notebooks/*.ipynb

# Writes requirements.lock anew: the newest versions that pyproject.toml allows, tried in a fresh
# environment. Run `make test` and `make reproduce` before you commit it.
lock:
	@rm -rf _build/lock && $(PYTHON) -m venv _build/lock
	@_build/lock/bin/python -m pip install --quiet '.[book,onnx,test]'
	@_build/lock/bin/python -m pip freeze --exclude slotmatch | sort -f > requirements.lock
	@rm -rf _build/lock

# The tests of the rendered pages drive a Chromium. It is fetched only where that needs no questions.
chromium:
	@if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  echo "installing chromium for the tests of the rendered pages: apt-get install chromium"; \
	  { apt-get -qq update </dev/null && \
	  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium \
	    </dev/null; } >/dev/null || echo "chromium could not be installed" >&2; \
	fi
