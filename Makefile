# Two commands set everything up on a machine with Python 3.11+, pip and make:
#   make serve   the server and its playground on the embedded model
#   make test    the whole test suite

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Most tests wait for a server or a clock; more workers than cores, files kept whole.
WORKERS ?= 3
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: serve test test-slow check fix lint types docs bench clients system clean help

help:
	@echo "make serve | test | check (lint, types, tests) | fix | docs | bench | clean"

serve: $(VENV)/.serve
	$(BIN)/fluxserve serve $(ARGS)

test: $(VENV)/.dev clients system
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

# Minutes more: five thousand drawn requests a dialect, the dry run of the GPU bench.
test-slow: $(VENV)/.dev clients system
	$(BIN)/python -m pytest -m slow $(ARGS)

check: lint types test

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests bench training
	$(BIN)/ruff format --check src tests bench training

types: $(VENV)/.dev
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases bench training

fix: $(VENV)/.dev
	$(BIN)/ruff check --fix src tests bench training
	$(BIN)/ruff format src tests bench training

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py

bench: $(VENV)/.dev
	@echo "one script per question: $(BIN)/python -m bench.http, .edit, .scheduling, .store, ..."

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) -e ".[local]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt requirements-dev.txt | $(VENV)/bin/python
	$(PIP) -e ".[local,postgres]" -r requirements-dev.txt
	@touch $@ $(VENV)/.serve

# Official clients in the versions that the tests name, apart from our own dependencies.
clients: $(VENV)/.dev
	$(BIN)/python tests/clients/setup.py

# Programs beside Python that tests need; the tests start and stop them themselves.
system: $(VENV)/.dev
	$(BIN)/python -m tests.system.setup

clean:
	rm -rf $(VENV) .clients build src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
