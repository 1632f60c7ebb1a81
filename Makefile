# modelfleet: `make help` explains every target.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
# The skip reasons of all test runs, listed once more at the end of `make test`.
export MODELFLEET_SKIP_REPORT := $(CURDIR)/.make/skipped.txt

.PHONY: help
help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Create .venv with the pinned packages (once; seconds when nothing changed)
	@scripts/setup.sh

.PHONY: prerequisites
prerequisites: setup ## Install the Debian packages that the local cluster needs (root or sudo)
	@$(PYTHON) -m e2e.cluster prerequisites

.PHONY: demo
demo: prerequisites ## The main job: cluster, images, chart, a model, and an answer from inside the cluster
	@$(PYTHON) -m e2e.demo up

.PHONY: demo-down
demo-down: ## Remove the cluster and everything it put on this machine (image store and builds stay cached)
	@$(PYTHON) -m e2e.demo down

.PHONY: chat
chat: ## Talk to the demo model, from inside the cluster
	@$(PYTHON) -m e2e.demo chat

.PHONY: scale
scale: ## Scale the demo model: make scale N=3
	@$(PYTHON) -m e2e.demo scale $(or $(N),2)

.PHONY: logs
logs: ## Follow the demo model's engine logs
	@$(PYTHON) -m e2e.demo logs

.PHONY: lint
lint: setup ## ruff, format, mypy --strict, import layers, generated files
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports
	$(PYTHON) -m modelfleet_api.generate --check

.PHONY: unit
unit: setup ## Unit tests: no cluster, no API server, no model
	$(PYTEST) -q -m "not cluster and not apiserver and not model"

.PHONY: check
check: lint unit ## The fast half: lint, types, layers, unit tests (at most 3 minutes)

.PHONY: integration
integration: prerequisites ## Tests against a real API server and with the real model's weights
	$(PYTHON) -m e2e.cluster build
	$(PYTEST) -q -m "(apiserver or model) and not cluster"

.PHONY: e2e
e2e: prerequisites ## Tests on a real cluster (kind where Docker and kind are there, else the local cluster)
	$(PYTHON) -m e2e.cluster build
	$(PYTEST) -q -m cluster e2e

.PHONY: test
test: ## Everything: check, integration and e2e; what could not run here is listed at the end
	@mkdir -p .make && rm -f $(MODELFLEET_SKIP_REPORT)
	$(MAKE) --no-print-directory check
	$(MAKE) --no-print-directory integration
	$(MAKE) --no-print-directory e2e
	@echo; echo "Not run on this machine, and why:"; sort -u $(MODELFLEET_SKIP_REPORT) 2>/dev/null || echo "  nothing: all of it ran"

.PHONY: soak
soak: setup ## Ten minutes at four times the KV cache: make soak DURATION=600
	$(PYTHON) -m bench.soak --seconds $(or $(DURATION),600)

.PHONY: bench
bench: setup ## The engine's speed beside its peers on this machine (25 minutes)
	$(PYTHON) -m bench.engine

.PHONY: generate
generate: setup ## Write the CRD and the chart's copy from the pydantic types
	$(PYTHON) -m modelfleet_api.generate

.PHONY: verify
verify: setup ## Fail when generated files are stale
	$(PYTHON) -m modelfleet_api.generate --check

.PHONY: images
images: prerequisites ## Build the control and engine images (cached by content)
	$(PYTHON) -m e2e.images all

.PHONY: format
format: setup ## Format and fix what ruff can
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

.PHONY: constraints
constraints: setup ## Pin the newest versions of all dependencies anew
	.venv/bin/uv pip compile pyproject.toml --all-extras --universal --upgrade --no-header --no-annotate -o constraints.txt
