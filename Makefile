# Every target sets up what it needs (.venv) by itself. `make` alone lists them.

# The system's own interpreter first: distributions build it with profile-guided optimization, version managers mostly do
# not, and then everything here is a quarter slower (docs/performance.md). A shim exists for versions that are not active,
# so each candidate is run, not merely found.
PYTHON ?= $(shell for p in /usr/bin/python3.13 /usr/bin/python3.12 /usr/bin/python3.11 \
	python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; \
	done)

BIN := .venv/bin
READY := .venv/.ready
# Three files at a time, for half of the time is spent waiting; in the order given: what takes long first, so that all come
# to an end together.
PYTEST := $(BIN)/python -m pytest --durations=15 -q -n 3 --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip --disable-pip-version-check

# A folder that was moved or copied brings a .venv along whose programs point to the old place.
ifneq ($(wildcard $(READY)),)
ifneq ($(shell cat $(READY)),$(CURDIR))
$(shell rm -rf .venv)
endif
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo up down test test-unit test-integration test-e2e test-chaos test-deep test-month verify bench bench-audit bench-two-phase-commit \
	bench-reconcile proto proto-baseline fmt \
	lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(READY) ## Start the mesh, place orders, break things, prove that the money is right
	@$(BIN)/paymesh demo

up: $(READY) ## Run the whole mesh on this machine until Ctrl-C
	@$(BIN)/paymesh up

down: $(READY) ## Stop a mesh that runs elsewhere on this machine
	@$(BIN)/paymesh down

test: $(READY) ## All tests
	@$(PYTEST) tests/chaos tests/e2e tests/integration tests/unit

test-unit: $(READY) ## Tests without stores or processes
	@$(PYTEST) tests/unit

test-integration: $(READY) ## Tests of one service on real stores
	@$(PYTEST) tests/integration

test-e2e: $(READY) ## Tests of the whole mesh
	@$(PYTEST) tests/e2e

test-chaos: $(READY) ## Tests that kill processes and lose answers
	@$(PYTEST) tests/chaos

test-deep: $(READY) ## Tests with random examples, with many more of them (minutes)
	@PAYMESH_TEST_DEEP=1 $(PYTEST) --timeout 600 $$(grep -rl --include='test_*.py' '^from hypothesis' tests)

test-month: $(READY) ## A month of 100,000 payments with 200 errors, reconciled (minutes)
	@PAYMESH_TEST_MONTH_PAYMENTS=100000 $(BIN)/python -m pytest -q tests/integration/test_reconciler_month.py

verify: $(READY) ## Lint, types, import laws, contracts, generated code, documents
	$(PIP) check
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against proto/baseline.binpb
	$(BIN)/python proto/generate.py --check
	$(BIN)/python proto/document.py --check
	$(BIN)/python -m pytest -q tests/verify

bench: $(READY) ## Measure for about a minute (BENCH_SECONDS=60), write bench/results/latest.json
	@$(BIN)/paymesh bench

bench-audit: $(READY) ## Measure sealing and verifying a million events on one core (BENCH_EVENTS=1000000)
	@$(BIN)/python -m bench.audit --one-core --events $(or $(BENCH_EVENTS),1000000)

bench-reconcile: $(READY) ## Measure 10^4, 10^5 and 10^6 statement lines against as many items (BENCH_LINES=1000000 BENCH_FORMATS=csv)
	@$(BIN)/python -m bench.reconcile $(addprefix --lines ,$(BENCH_LINES)) $(addprefix --format ,$(BENCH_FORMATS))

bench-two-phase-commit: $(READY) ## Measure what the saga buys against PREPARE TRANSACTION: an experiment
	@$(BIN)/python -m bench.two_phase_commit

proto: $(READY) ## Generate clients/python from proto/
	@$(BIN)/python proto/generate.py
	@$(BIN)/python proto/document.py

proto-baseline: $(READY) ## Accept the contracts as they are: later ones may not break them
	@$(BIN)/buf build --exclude-source-info --output proto/baseline.binpb

fmt: $(READY) ## Format code and contracts
	@$(BIN)/ruff check --silent --exit-zero --fix --fixable I,RUF100
	@$(BIN)/ruff format
	@$(BIN)/buf format --write

lock: $(READY) ## Write requirements.lock anew from the pyproject.toml files
	@$(BIN)/uv pip compile --quiet --no-config --upgrade --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-annotate --extra dev \
		--custom-compile-command 'make lock' --output-file requirements.lock \
		pyproject.toml clients/python/pyproject.toml

clean: ## Remove .venv, caches and build output (not .paymesh: the data of a local mesh)
	@rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build clients/python/build \
		*.egg-info clients/python/*.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The editable install knows the top-level packages by name, so a new one is a reason to install again.
# The log of a quiet pip is worth reading only when it fails.
$(READY): requirements.lock pyproject.toml clients/python/pyproject.toml $(wildcard */__init__.py)
	@test -n "$(PYTHON)" || { echo "paymesh needs Python 3.11 or newer with venv; name it: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "setting up .venv (about a minute the first time) ..."
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { rm -rf .venv && "$(PYTHON)" -m venv .venv; }
	@{ $(PIP) install --quiet --require-hashes --requirement requirements.lock && \
		$(PIP) install --quiet --no-deps --no-build-isolation --editable clients/python --editable . ; \
	} >.venv/install.log 2>&1 || { cat .venv/install.log >&2; exit 1; }
	@printf '%s\n' "$(CURDIR)" >$@
