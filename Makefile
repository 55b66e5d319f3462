# Every target is a line or two that can be typed by hand. Works with GNU make 3.81.
PYTHON := $(shell for p in python3.13 python3.12 python3.11 python3.14 python3 python; do \
  command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  2>/dev/null && echo $$p && break; done)
ifeq ($(PYTHON),)
PYTHON := python3
endif
BIN := .venv/bin
RUN := $(PYTHON) deploy/bootstrap.py run
DEV := $(PYTHON) deploy/bootstrap.py dev
JOBS ?= 3
ARGS ?=
REAL ?=

.DEFAULT_GOAL := help
.PHONY: help demo up test test-fast test-all test-openapi test-browser lint types contracts shape \
  check bench profile faults torture deploy-check migrate lock clean format

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-13s\033[0m %s\n", $$1, $$2}' Makefile

demo: ## set up if needed, start everything, run the demo campaign
	@$(RUN)
	@exec $(BIN)/drumbeat demo $(ARGS)

up: ## the whole system, kept running until Ctrl-C
	@$(RUN)
	@exec $(BIN)/drumbeat up $(ARGS)

test: ## unit and integration tests on real Valkey and PostgreSQL
	@$(DEV)
	$(BIN)/pytest -n $(JOBS) --dist loadfile $(ARGS)

test-fast: ## the queue door's tests on fakeredis, no server, < 20 s
	@$(DEV)
	DRUMBEAT_TESTS=fake $(BIN)/pytest tests/unit tests/integration/test_queue_core.py -m "not redis" $(ARGS)

test-openapi: ## the served OpenAPI at its word: thousands of requests made from it
	@$(PYTHON) deploy/bootstrap.py openapi
	$(BIN)/pytest tests/e2e/test_any_request.py $(ARGS)

test-browser: ## our pages and the guide's snippets in a real Chromium
	@$(DEV)
	@.ci/chromium
	$(BIN)/pytest tests/browser -m browser $(ARGS)

test-all: ## everything: the slow tests, a browser and deploy-check too
	@$(PYTHON) deploy/bootstrap.py openapi
	@.ci/chromium
	DRUMBEAT_TESTS=all $(BIN)/pytest -n $(JOBS) --dist loadfile $(ARGS)
	@$(MAKE) deploy-check

lint: ## ruff, rules and form
	@$(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: ## let ruff put the form right
	@$(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: ## mypy, strict
	@$(DEV)
	$(BIN)/mypy

contracts: ## who may import whom
	@$(DEV)
	$(BIN)/lint-imports

shape: ## the ten longest functions
	@$(PYTHON) deploy/shape.py api worker shared

check: ## what CI runs: test, lint, types, contracts, a short demo, some of the faults
	@.ci/run

bench: ## the README's numbers, beside the peers'; ARGS="--quick" or "--only worker,accept"
	@$(DEV)
	$(BIN)/python -m tests.bench $(ARGS)

profile: ## where a worker's time goes, by function: docs/performance/profile.md
	@$(DEV)
	$(BIN)/python -m tests.bench.profiling $(ARGS)

faults: ## faults at every effect, then kills, freezes and cut wires on real stacks: two tables
	@$(DEV)
	$(BIN)/python -m tests.faults --jobs $(JOBS) $(ARGS)
	$(BIN)/python -m tests.faults.real $(REAL)

torture: ## the same at the sizes of the night; REAL="--only G4 --seed 7" is some of the second
	@$(DEV)
	@.ci/faketime
	$(BIN)/python -m tests.faults --jobs $(JOBS) --every 1 --doubles 7000 --examples 5000 $(ARGS)
	$(BIN)/python -m tests.faults.real --night $(REAL)

deploy-check: ## compose files, Prometheus rules, dashboards; no Docker needed
	@$(DEV)
	$(BIN)/pytest tests/deploy $(ARGS)

migrate: ## bring the database at DATABASE_URL up to date
	@$(RUN)
	@exec $(BIN)/drumbeat migrate $(ARGS)

lock: ## pin every dependency with its hashes (needs uv)
	uv pip compile --universal --generate-hashes --python-version 3.11 --no-header --upgrade \
	  --no-emit-index-url --extra embedded \
	  pyproject.toml -o deploy/requirements-run.lock
	uv pip compile --universal --generate-hashes --python-version 3.11 --no-header --upgrade \
	  --no-emit-index-url --extra embedded \
	  --group pyproject.toml:dev -c deploy/requirements-run.lock \
	  pyproject.toml -o deploy/requirements-dev.lock
	uv pip compile --universal --generate-hashes --python-version 3.11 --no-header --upgrade \
	  --no-emit-index-url --extra embedded \
	  --group pyproject.toml:openapi -c deploy/requirements-dev.lock \
	  pyproject.toml -o deploy/requirements-openapi.lock

clean: ## remove .venv, .demo and caches (not while `make up` runs)
	rm -rf .venv .bench .demo build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	rm -rf .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
