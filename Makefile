PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two at a time: most of the tests wait for servers.
PYTEST_FLAGS ?= --numprocesses 2 --dist worksteal
SECONDS ?= 60
SEED ?= 1
CYCLES ?= 200
BODIES ?= 1000000
STREAMS ?= 100000
MODULES ?=
SAMPLE ?= 25
COPIES ?= 1
# Wheels only, for every Python and machine; the locks do not name a package index.
LOCKING := --quiet --upgrade --universal --python-version 3.11 --only-binary :all: --generate-hashes \
	--custom-compile-command 'make lock'
# hatchling asks for editables when it makes an editable install.
BUILD_REQUIRES := 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], "editables~=0.3", sep="\n")'
LOCKED := --quiet --require-hashes --only-binary :all:

.DEFAULT_GOAL := help
.PHONY: help run test newest senders chaos fuzz soak soak-day attack bench mutants check lint types lock audit format clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

run: $(VENV)/.installed ## Set up and start the whole pipeline at http://127.0.0.1:8080
	$(BIN)/logpipe serve --role all

test: $(VENV)/.developing ## Set up and run all tests, with branch coverage
	$(BIN)/pytest --cov=logpipe --cov-report=term-missing:skip-covered --cov-fail-under=95 $(PYTEST_FLAGS)

newest: $(VENV)/.developing $(VENV)/.supplying ## Try the newest versions on the tests without servers; only warn
	$(BIN)/python -m tests.newest

senders: $(VENV)/.python ## Fetch the senders that tests run: Debian's, npm's, Filebeat (as root, on Debian)
	PYTHON=$(CURDIR)/$(BIN)/python sh tests/senders/fetch.sh .senders

chaos: $(VENV)/.developing ## Do every fault to real processes, with CYCLES kills of each kind, and judge
	$(BIN)/python -m tests.chaos --cycles $(CYCLES) --seed $(SEED)

fuzz: $(VENV)/.developing ## Throw BODIES mutated bodies and STREAMS hostile byte streams at a real process
	$(BIN)/python -m tests.fuzz --bodies $(BODIES) --streams $(STREAMS) --seed $(SEED)

soak: $(VENV)/.developing ## Kill everything under load for SECONDS, and judge; then the control, which must fail
	$(BIN)/python -m tests.soak --seconds $(SECONDS) --seed $(SEED)
	$(BIN)/python -m tests.soak --seconds 10 --seed $(SEED) --break catch-up

soak-day: $(VENV)/.developing ## A day's events, reconnects and restarts of Redis in a quarter of an hour
	$(BIN)/python -m tests.soak.day --seed $(SEED)

attack: $(VENV)/.developing ## Play every attack on a real process for SECONDS, and judge what honest clients see
	$(BIN)/python -m tests.attack --seconds $(SECONDS)

bench: $(VENV)/.developing ## Measure logpipe, its ceilings and its peers in one run (10 minutes)
	$(BIN)/python -m tests.bench

mutants: $(VENV)/.mutating ## Put SAMPLE small faults into each of MODULES, COPIES at a time; list what no test notices
	$(BIN)/python -m trials.mutants --modules '$(MODULES)' --sample $(SAMPLE) --seed $(SEED) --copies $(COPIES)

check: export SCHEDULES ?= 150
check: lint types test ## Everything that must pass: format, lint, types, tests, with many schedules of the laws

lint: $(VENV)/.developing ## Check format and style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.developing ## Check types, strictly
	$(BIN)/mypy

lock: $(VENV)/.supplying ## Renew the locked versions and hashes: runtime, development, build
	$(BIN)/uv pip compile $(LOCKING) --output-file requirements.lock pyproject.toml
	$(BIN)/uv pip compile $(LOCKING) --constraint requirements.lock --group dev --output-file requirements-dev.lock
	$(BIN)/python -c $(BUILD_REQUIRES) | $(BIN)/uv pip compile $(LOCKING) --output-file requirements-build.lock -

audit: $(VENV)/.supplying ## Look whether one of those has a known vulnerability (asks a service)
	$(BIN)/pip-audit --disable-pip --require-hashes --strict -r requirements.lock -r requirements-dev.lock -r requirements-build.lock

format: $(VENV)/.developing ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove what the other targets made
	rm -rf $(VENV) $(VENV)-newest .mutants .senders .schemathesis dist build .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit("logpipe needs Python 3.11 or later; $(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.3'
	@touch $@

$(VENV)/.installed: $(VENV)/.python pyproject.toml requirements.lock requirements-build.lock logpipe/ui/build_htmx.py
	$(BIN)/pip install $(LOCKED) -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --build-constraint requirements-build.lock --editable .
	@touch $@

$(VENV)/.developing: $(VENV)/.installed requirements-dev.lock
	$(BIN)/pip install $(LOCKED) -r requirements-dev.lock
	@touch $@

$(VENV)/.supplying: $(VENV)/.python pyproject.toml
	$(BIN)/pip install --quiet --group supply
	@touch $@

$(VENV)/.mutating: $(VENV)/.developing pyproject.toml
	$(BIN)/pip install --quiet --group mutants
	@touch $@
