# `make demo` and `make test` need Python 3.11 or newer and make, nothing else. uv is used when it is there (faster).
# As root with an empty home cache they work too; nothing is installed outside .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
export PYTHONUNBUFFERED := 1
# a module is compiled once, not by each of the processes that a demo and a test run start
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo dev test check bench openapi lock

help:  ## what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.local  ## play the whole story on a local stack, in under a minute once installed
	@$(BIN)/broker demo

dev: $(VENV)/.local  ## start the local stack and leave it running
	@$(BIN)/broker dev

test: $(VENV)/.dev  ## run every test, in parallel and in random order
	@$(BIN)/pytest -q -n auto --dist worksteal

check: $(VENV)/.dev  ## lint, types, import directions
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(VENV)/.dev  ## print each benchmark's table and JSON line
	@$(BIN)/python -m benchmarks.inject && $(BIN)/python -m benchmarks.custody

openapi: $(VENV)/.dev  ## renew docs/openapi.json from the code
	@$(BIN)/python -m broker_core.api.document docs/openapi.json

lock:  ## renew requirements/*.txt from pyproject.toml (needs uv)
	@uv pip compile -q --universal --generate-hashes --no-header -p 3.11 pyproject.toml requirements/build.in -o requirements/production.txt
	@uv pip compile -q --universal --generate-hashes --no-header -p 3.11 --extra local pyproject.toml requirements/build.in -o requirements/local.txt
	@uv pip compile -q --universal --generate-hashes --no-header -p 3.11 --extra dev pyproject.toml requirements/build.in -o requirements/dev.txt

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# The hashes are checked, and the project itself is built with what was installed: nothing unhashed is downloaded.
$(VENV)/.%: requirements/%.txt pyproject.toml | $(BIN)/python
	@echo "installing requirements/$*.txt into $(VENV) ..."
ifdef UV
	@uv pip install -q --compile-bytecode -p $(BIN)/python --require-hashes -r requirements/$*.txt
	@uv pip install -q -p $(BIN)/python --no-deps --no-build-isolation -e .
else
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/$*.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
endif
	@touch $@
