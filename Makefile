# Interlock: one word, one job. `make` alone lists them.
# Options: PYTHON=/path/to/python3.12 chooses the interpreter; ARGS="..." is passed on to the program.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test test-fast test-previous coverage check format docs changelog fuzz-api chaos bench bench-peers lock clean
MAKEFLAGS += --no-print-directory
export PYTHON

BIN := .venv/bin
fail = { echo "check: $(1)" >&2; exit 1; }

help: ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' \
	  | while IFS='|' read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done

setup: ## create .venv with the locked dependencies and Interlock itself
	@sh tools/bootstrap.sh setup

demo: setup ## run the support-triage example end to end (ARGS="--tickets 60")
	@$(BIN)/interlock demo $(ARGS)

test: setup ## run the test suite (ARGS="-k name")
	@$(BIN)/python -m pytest -m "not chaos" -n 4 --dist loadfile $(ARGS)

# Left out of test-fast: engines, command-line processes, sandboxes, crashing servers and the local model's weights.
SLOW := tests/chaos tests/cli tests/demo tests/engines tests/services tests/execution tests/sandbox \
	tests/gateway/test_local.py tests/gateway/test_weights.py \
	tests/store/test_doubt.py tests/store/test_embedded.py tests/store/test_migrate.py

test-fast: setup ## run the tests that take less than two minutes together (ARGS="-k name")
	@$(BIN)/python -m pytest -m "not chaos" -n 4 --dist loadfile $(SLOW:%=--ignore=%) $(ARGS)

coverage: setup ## run the suite and print how much of the code it reaches, lines and branches (ARGS="tests/store")
	@rm -rf build/coverage && mkdir -p build/coverage
	@$(BIN)/python -m pytest -m "not chaos" -n 4 --dist loadfile --timeout 600 --cov --cov-report=term $(ARGS)

check: setup ## format, lint, types, import contracts, width of documents, lock files
	@echo "check: format"
	@$(BIN)/ruff format --check . || $(call fail,formatting differs in the files above; run 'make format')
	@echo "check: lint"
	@$(BIN)/ruff check . || $(call fail,the linter objects as shown above; 'make format' mends what can be mended by machine)
	@echo "check: types"
	@$(BIN)/mypy || $(call fail,the types do not hold as shown above; mend them in the named lines)
	@echo "check: import contracts"
	@$(BIN)/lint-imports --no-logo || $(call fail,an import crosses the floors as shown above; move the code or the import (.importlinter))
	@echo "check: width of the documents"
	@$(BIN)/python tools/wrap.py check || $(call fail,the lines above are too long; run 'make format')
	@echo "check: lock files"
	@$(BIN)/python tools/locks.py check

format: setup ## format code and documents, and mend what the linter can mend
	@$(BIN)/ruff check --fix --exit-zero --quiet .
	@$(BIN)/ruff format .
	@$(BIN)/python tools/wrap.py write

docs: setup ## build the API reference as HTML (build/docs)
	@$(BIN)/python tools/reference.py build/docs

changelog: setup ## print the changelog entry that newsfragments/ makes
	@$(BIN)/towncrier build --draft 2>/dev/null

fuzz-api: setup ## fuzz the HTTP API against its OpenAPI document (ARGS="--seconds 600")
	@$(BIN)/python tools/fuzz_api.py $(ARGS)

test-previous: setup ## the last release's engine tests against this schema (ARGS="--tag v0.1.0")
	@$(BIN)/python tools/previous_release.py $(ARGS)

chaos: setup ## long fault-injection runs
	@$(BIN)/python -m pytest -m chaos $(ARGS)

bench: setup ## measure what Interlock adds to a step, beside its peers
	@$(BIN)/python benchmarks/overhead.py $(ARGS)

bench-peers: setup ## prepare the peers' own environment (.bench-venv)
	@$(BIN)/python benchmarks/peers_env.py

lock: setup ## lock again after a change of dependencies (ARGS=--upgrade for the newest)
	@$(BIN)/python tools/locks.py write $(ARGS)

clean: ## remove what setup, checks and builds made; runs and data in .interlock stay
	@rm -rf .venv .bench-venv .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
	@echo "clean: done; .interlock, where your runs live, was kept"
