# Commands for users, developers, and CI. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Poetry only exports the lock. pip installs it with hashes, so any package index is safe.
POETRY_VENV := .poetry
POETRY_PINS := compose/requirements-poetry.txt
CHECKOV_VENV := .checkov-venv
CODE := app worker core models client compose deploy docs terraform tests benchmarks

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(VENV)/.complete ## Install the locked dependencies and the development tools into .venv

$(POETRY_VENV)/.complete: $(POETRY_PINS)
	$(PYTHON) -m venv --clear $(POETRY_VENV)
	$(POETRY_VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement $(POETRY_PINS)
	@touch $@

$(VENV)/.complete: poetry.lock pyproject.toml $(POETRY_VENV)/.complete
	$(POETRY_VENV)/bin/poetry export --quiet --all-extras --with dev --with cli --output $(POETRY_VENV)/requirements.txt
	@$(PYTHON) compose/install.py development $(VENV) $(POETRY_VENV)/requirements.txt

# What the services and the command line need. An environment with the development tools has it, too.
RUNTIME := $(if $(wildcard $(VENV)/.complete),$(VENV)/.complete,$(VENV)/.runtime)

.PHONY: runtime
runtime: $(RUNTIME) ## Install only what the services and the command line need into .venv

$(VENV)/.runtime: poetry.lock pyproject.toml
	@$(PYTHON) compose/install.py runtime $(VENV)

# Commands that are called while Glimpse runs install packages only if there are none.
INSTALLED := $(if $(wildcard $(VENV)/.complete $(VENV)/.runtime),,runtime)

.PHONY: run
run: runtime ## Start Glimpse; BACKEND=embedded|emulator|compose selects how
	@exec $(BIN)/python -m compose run

.PHONY: stop
stop: $(INSTALLED) ## Stop Glimpse
	@$(BIN)/python -m compose stop

.PHONY: logs
logs: $(INSTALLED) ## Follow the logs of Glimpse
	@exec $(BIN)/python -m compose logs

.PHONY: purge
purge: $(INSTALLED) ## Stop Glimpse and delete its data: images, results, messages (YES=1: do not ask)
	@$(BIN)/python -m compose purge

.PHONY: demo
demo: $(INSTALLED) ## Send photos to the running service, show the labels, and train a small model
	@$(BIN)/python -m compose.demo

.PHONY: key
key: $(INSTALLED) ## Create an API key: make key NAME=<purpose> [TENANT= SCOPES= EXPIRES=90d]
	@test -n "$(NAME)" || { echo 'usage: make key NAME=laptop [TENANT=public] [SCOPES=classify,read] [EXPIRES=90d]'; exit 2; }
	@$(BIN)/python -m app.keys create "$(NAME)" $(if $(TENANT),--tenant "$(TENANT)") $(if $(SCOPES),--scopes "$(SCOPES)") $(if $(EXPIRES),--expires "$(EXPIRES)")

.PHONY: keys
keys: $(INSTALLED) ## List the API keys
	@$(BIN)/python -m app.keys list

.PHONY: smoke
smoke: $(INSTALLED) ## Upload a new image to a running Glimpse and wait for its labels: make smoke URL=<address>
	@$(BIN)/python -m deploy.smoke $(or $(URL),http://127.0.0.1:8080)

# tests/support/distribution.py says how many workers there are, and assigns the tests. Our files are UTF-8 in
# every locale. Each worker and each process that a test starts would compile the same files without bytecode.
PYTEST := PYTHONUTF8=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses=auto

.PHONY: test
test: setup ## Check style, types, and boundaries, then run all tests
	@$(MAKE) --no-print-directory lint
	$(PYTEST) $(PYTEST_ARGS)

.PHONY: quick
quick: setup ## Check style, types, and boundaries, then run the unit tests
	@$(MAKE) --no-print-directory lint
	$(PYTEST) tests/unit $(PYTEST_ARGS)

# The checks run in parallel. Each one prints its findings when it ends.
LINT := lint-style lint-types lint-boundaries lint-files lint-terraform lint-checkov
TOGETHER := --jobs=2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.PHONY: lint
lint: setup $(CHECKOV_VENV)/.complete ## Style, types, import boundaries, Dockerfile, compose.yaml, workflows, Terraform
	@$(MAKE) --no-print-directory $(TOGETHER) $(LINT)

.PHONY: $(LINT)
lint-style:
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

lint-types:
	$(BIN)/mypy

lint-boundaries:
	$(BIN)/lint-imports

lint-files:
	$(BIN)/hadolint compose/Dockerfile compose/base/Dockerfile
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec compose/compose.yaml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/zizmor --quiet --offline --no-progress --persona=pedantic .github

lint-terraform:
	$(BIN)/python -m terraform.tools.check

lint-checkov:
	$(CHECKOV_VENV)/bin/checkov --config-file terraform/.checkov.yaml

# Not part of `make lint`, because it needs npm. The packages have the types of the vendored modules.
PAGE_TYPES := .page-types
$(PAGE_TYPES)/.complete: Makefile
	npm install --silent --no-audit --no-fund --ignore-scripts --prefix $(PAGE_TYPES) typescript@7.0.2 preact@11.2.0 htm@3.1.1
	@touch $@

.PHONY: lint-page
lint-page: ## Check the types of the page's scripts (needs npm)
	@if command -v npm > /dev/null; then \
	  $(MAKE) --no-print-directory $(PAGE_TYPES)/.complete && \
	  $(PAGE_TYPES)/node_modules/.bin/tsc --project app/page/tsconfig.json; \
	else echo 'lint-page: skipped, because npm is not installed.'; fi

.PHONY: terraform
terraform: setup ## Apply, change, and destroy the Terraform with its real providers, without an account
	.ci/terraform
	.ci/terraform --newest
	GLIMPSE_TERRAFORM_PROVIDERS=registry $(BIN)/python -m pytest tests/terraform/test_apply.py

.PHONY: releases
releases: setup ## Release and roll back with the real gcloud, against a stand-in for Cloud Run
	GLIMPSE_TEST_GCLOUD=real $(BIN)/python -m pytest tests/flow/test_release.py tests/flow/test_release_under_load.py

# checkov pins about sixty packages exactly, so it has its own environment.
$(CHECKOV_VENV)/.complete: terraform/tools/requirements-checkov.txt
	$(PYTHON) -m venv --clear $(CHECKOV_VENV)
	$(CHECKOV_VENV)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

.PHONY: format
format: setup ## Format the code
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

.PHONY: bench
bench: setup ## Measure speed beside bare baselines and print ratios
	@$(BIN)/python -m tests.bench $(BENCH_ARGS)

.PHONY: compare
compare: setup ## Measure the same work with Celery, RQ, and taskiq (needs redis-server): COMPARE_ARGS=--quick
	@$(BIN)/python -m benchmarks $(COMPARE_ARGS)

.PHONY: clients
clients: setup ## Generate clients from the OpenAPI document, compile and run them: CLIENTS_ARGS="--only go"
	@$(BIN)/python -m tests.clients $(CLIENTS_ARGS)

.PHONY: chaos
chaos: setup ## Inject faults while clients upload, and check that nothing is lost or repeated
	@$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

.PHONY: abuse
abuse: setup ## Send thousands of hostile images and random requests, and check every response
	@$(BIN)/python -m tests.abuse $(ABUSE_ARGS)

# Coverage-guided fuzzing has its own environment: Atheris does not support every Python version.
FUZZ_VENV := .fuzz-venv
FUZZ_SECONDS ?= 60
$(FUZZ_VENV)/.complete: tests/fuzz/requirements.txt poetry.lock $(POETRY_VENV)/.complete $(VENV)/.complete
	$(PYTHON) -m venv --clear $(FUZZ_VENV)
	$(FUZZ_VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement $(POETRY_VENV)/requirements.txt
	$(FUZZ_VENV)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

.PHONY: fuzz
fuzz: $(FUZZ_VENV)/.complete ## Fuzz the code that reads untrusted bytes: make fuzz FUZZ_SECONDS=600
	@$(FUZZ_VENV)/bin/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

# Not part of `make lint`, because it queries a database on the internet.
AUDIT_VENV := .audit-venv
AUDIT_PINS := pip-audit==2.10.1
$(AUDIT_VENV)/.complete: Makefile
	$(PYTHON) -m venv --clear $(AUDIT_VENV)
	$(AUDIT_VENV)/bin/pip install --quiet --disable-pip-version-check $(AUDIT_PINS)
	@touch $@

.PHONY: audit
audit: setup $(AUDIT_VENV)/.complete ## Check the locked packages for known vulnerabilities (needs the internet)
	$(AUDIT_VENV)/bin/pip-audit --require-hashes --disable-pip --requirement $(POETRY_VENV)/requirements.txt

.PHONY: figures
figures: setup ## Compute the tables and charts of docs/cost.md and docs/scale.md
	@$(BIN)/python -m docs.figures

.PHONY: screenshots
screenshots: setup ## Take the pictures of the page and of the terminal in docs/images; needs Chromium
	@$(BIN)/python -m docs.figures.screenshots

.PHONY: model
model: ## Create a bundle from a Hugging Face model: make model HF=<id or folder> [LABELS=<file> for zero-shot]
	@test -n "$(HF)" || { echo 'usage: make model HF=google/vit-base-patch16-224'; exit 2; }
	@$(MAKE) --no-print-directory $(EXPORT_VENV)/.complete
	$(EXPORT_VENV)/bin/python -m $(if $(LABELS),models.export_zero_shot,models.export_huggingface) "$(HF)" \
		$(if $(LABELS),--labels "$(LABELS)") $(if $(TEMPLATE),--template "$(TEMPLATE)") $(if $(OUT),--out "$(OUT)")

.PHONY: bundle
bundle: setup ## Check a bundle, ONNX or Python, and write its sums: make bundle DIR=<folder>
	@test -n "$(DIR)" || { echo 'usage: make bundle DIR=my-model'; exit 2; }
	@$(BIN)/python -m models.check_bundle "$(DIR)"

.PHONY: default-model
default-model: ## Make models/default again from the public EfficientNet-Lite weights
	@$(MAKE) --no-print-directory $(EXPORT_VENV)/.complete
	$(EXPORT_VENV)/bin/python -m models.import_efficientnet_lite

EXPORT_VENV := .export-venv
$(EXPORT_VENV)/.complete: models/requirements-export.txt
	$(PYTHON) -m venv --clear $(EXPORT_VENV)
	$(EXPORT_VENV)/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

.PHONY: test-export
test-export: $(EXPORT_VENV)/.complete ## Test the exporters (installs PyTorch)
	$(EXPORT_VENV)/bin/python -m pytest tests/export $(PYTEST_ARGS)

.PHONY: clean
clean: ## Delete installed and generated files, but not DATA_DIR
	rm -rf $(VENV) $(POETRY_VENV) $(EXPORT_VENV) $(CHECKOV_VENV) $(FUZZ_VENV) $(AUDIT_VENV) $(PAGE_TYPES) benchmarks/.venvs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +
