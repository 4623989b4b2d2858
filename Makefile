# Everything from a fresh checkout: needs make and Python 3.11 or newer, nothing else.
# `make PYTHON=/path/to/python3 …` chooses the interpreter; `make test PYTHON_UNDER_TEST=/path/to/python …` lets the
# balancers that tests start be those of another installation.

VENV := .venv
BIN := $(VENV)/bin
NEWEST := $(shell for p in python3.14 python3.13 python3.12 python3.11 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done)
PYTHON ?= $(NEWEST)
PYTEST_ARGS ?=
BENCH_ARGS ?=
SOAK_ARGS ?=
SCALE_ARGS ?=
# What the bench measures: one installation with the hot path compiled (beside its source a compiled module would
# hide every edit), which `make compiled` tests, and one without, both on the fastest interpreter there is.
COMPILED := .venv-compiled
PLAIN := .venv-plain
BENCH_PYTHON ?= $(shell "$(PYTHON)" loadtest/bench/fastest.py "$(PYTHON)" /usr/bin/python3)

# The versions hold for what builds the package, too: older releases of pip read the first, newer the second.
PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test compiled fuzz soak check format loadtest bench scale differential docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.core ## three backends, the health daemon and the balancer; Ctrl-C ends them
	@exec $(BIN)/lb demo

test: $(VENV)/.dev ## all tests
	@exec $(BIN)/pytest -n auto --dist loadgroup $(PYTEST_ARGS)

fuzz: export FUZZ_EXAMPLES ?= 20000
fuzz: $(VENV)/.dev ## the properties of HTTP with many new messages; at most about a minute each
	@exec $(BIN)/pytest tests/properties $(PYTEST_ARGS)

compiled: $(VENV)/.dev $(COMPILED)/.done ## the tests of whole processes, with the hot path compiled
	@PYTHON_UNDER_TEST=$(COMPILED)/bin/python exec $(BIN)/pytest -n auto --dist loadgroup tests/e2e tests/faults $(PYTEST_ARGS)

soak: $(VENV)/.dev ## random faults under load; SOAK_ARGS="--minutes N --seed S"
	@exec $(BIN)/python -m tests.faults.soak $(SOAK_ARGS)

check: $(VENV)/.dev $(VENV)/.loadtest ## format, lint, types, then all tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@$(MAKE) --no-print-directory test

format: $(VENV)/.dev ## rewrite the sources in the one format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

loadtest: $(VENV)/.loadtest ## Locust with 200 users against the whole system
	@exec $(BIN)/python -m loadtest

bench: $(VENV)/.bench $(COMPILED)/.done $(PLAIN)/.done ## side by side with nginx, HAProxy, Envoy and Caddy (needs wrk)
	@exec $(BIN)/python -m loadtest.bench --python $(COMPILED)/bin/python --plain-python $(PLAIN)/bin/python $(BENCH_ARGS)

scale: $(VENV)/.bench $(COMPILED)/.done ## each algorithm with 10, 1,000 and 10,000 backends (needs wrk)
	@exec $(BIN)/python -m loadtest.scale --python $(COMPILED)/bin/python $(SCALE_ARGS)

differential: $(VENV)/.dev $(VENV)/.bench ## the HTTP cases against nginx, HAProxy, Envoy and Caddy, too
	$(BIN)/python -m tests.http.differential --write

docs: $(VENV)/.dev ## the pages that are made from the code and its tests
	$(BIN)/python -m lb.config_table > docs/settings.md
	$(BIN)/python -m tests.http.table > docs/http.md.new && mv docs/http.md.new docs/http.md

clean: ## remove all that make has made
	rm -rf $(VENV) $(COMPILED) $(PLAIN) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis loadtest/out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment; each stamp says that what one extra needs is in it.
$(VENV)/.core: INSTALL := -e .
$(VENV)/.dev: INSTALL := -e '.[dev]'
$(VENV)/.loadtest: INSTALL := -e '.[loadtest]'
$(VENV)/.bench: INSTALL := -e '.[bench]'

$(VENV)/.core $(VENV)/.dev $(VENV)/.loadtest $(VENV)/.bench: pyproject.toml constraints.txt | $(VENV)/.python
	@echo "installing what is needed into $(VENV) ($(@F:.%=%))" >&2
	@$(PIP) $(INSTALL) || { command -v "$${CC:-cc}" >/dev/null \
		|| echo "gunicorn_h1c is compiled here: that takes a C compiler and Python's headers (Debian: apt-get install gcc python3-dev)" >&2; \
		exit 1; }
	@touch $@

$(VENV)/.python:
	@if ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "lb needs Python 3.11 or newer; found $$( ("$(or $(PYTHON),python3)" --version) 2>/dev/null || echo none)." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi
	@rm -rf $(VENV)
	@if "$(PYTHON)" -c 'import ensurepip' 2>/dev/null; then \
		"$(PYTHON)" -m venv $(VENV); \
	elif "$(PYTHON)" -m pip --version >/dev/null 2>&1; then \
		"$(PYTHON)" -m venv --without-pip $(VENV) \
		&& "$(PYTHON)" -m pip --python $(BIN)/python install --quiet --disable-pip-version-check pip; \
	else \
		echo "$(PYTHON) cannot make virtual environments: it has neither ensurepip nor pip." >&2; \
		echo "On Debian and Ubuntu: apt-get install python3-venv" >&2; \
		exit 1; \
	fi
	@touch $@

$(COMPILED)/.done: COMPILE := 1
$(COMPILED)/.done: HOW := the hot path compiled (a minute or two)
$(PLAIN)/.done: COMPILE := 0
$(PLAIN)/.done: HOW := nothing compiled
$(COMPILED)/.done $(PLAIN)/.done: pyproject.toml constraints.txt hatch_build.py $(wildcard lb/*.py lb/*/*.py redis/*.lua) \
		| $(VENV)/.core
	@echo "installing into $(@D), $(HOW)" >&2
	@rm -rf $(@D)
	@"$(BENCH_PYTHON)" -m venv --without-pip $(@D)
	@LB_COMPILE=$(COMPILE) PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m pip \
		--python $(@D)/bin/python install --quiet --disable-pip-version-check --no-input -c constraints.txt .
	@touch $@
