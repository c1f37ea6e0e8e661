# Everything a developer or a CI job calls. `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Poetry only exports the lock; pip installs it with hashes, so any package index will do.
POETRY_VENV := .poetry
POETRY_PINS := poetry==2.5.1 poetry-plugin-export==1.10.1
CODE := app worker core models compose tests

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(VENV)/.complete ## Install the locked dependencies into .venv

$(POETRY_VENV)/.complete: Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Glimpse needs Python 3.11 or newer; set PYTHON=/path/to/python3")'
	$(PYTHON) -m venv --clear $(POETRY_VENV)
	$(POETRY_VENV)/bin/pip install --quiet --disable-pip-version-check $(POETRY_PINS)
	@touch $@

$(VENV)/.complete: poetry.lock pyproject.toml $(POETRY_VENV)/.complete
	$(POETRY_VENV)/bin/poetry export --quiet --all-extras --with dev --output $(POETRY_VENV)/requirements.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement $(POETRY_VENV)/requirements.txt
	@touch $@
