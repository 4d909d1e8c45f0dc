# Everything that is done with this project, one target a habit. `make help` lists them.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/setup-stamp
TESTS ?= tests
# Numbers of a test run must not depend on how many cores happen to be free.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | \
	  awk -F '\t' '{printf "  make %-22s %s\n", $$1, $$2}'

.PHONY: setup
setup: $(STAMP) ## Make .venv and install everything; quick when nothing changed

$(STAMP): constraints.txt pyproject.toml clients/python/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "Python 3.11 is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt \
	  --editable clients/python --editable '.[all,dev]'
	@touch $@

.PHONY: demo
demo: setup ## Do the main job end to end on the demo deployment; writes report/
	$(BIN)/neuropil demo

.PHONY: up
up: setup ## Run everything on the demo deployment until Ctrl-C
	$(BIN)/neuropil up --config data/demo/deployment.yaml

.PHONY: test
test: setup lint types ## Lint, type check and all tests that this machine allows
	$(BIN)/python -m pytest $(TESTS)

.PHONY: test-without-torch
test-without-torch: ## The tests of records, gateway and client where torch is not installed
	$(PYTHON) -m venv .venv-without-torch
	.venv-without-torch/bin/pip install --quiet --constraint constraints.txt \
	  --editable clients/python --editable '.[records,gateway,launcher,testing]'
	.venv-without-torch/bin/python -m pytest $(TESTS) -m 'not torch' --ignore tests/contract

.PHONY: lint
lint: setup ## Check style, the contract's style, and that the contract breaks no client
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	cd protos && ../$(BIN)/buf lint && ../$(BIN)/buf format --diff --exit-code --path neuropil
	cd protos && ../$(BIN)/buf build --output - | \
	  ../$(BIN)/buf breaking -#format=binpb --against image.binpb

.PHONY: types
types: setup ## Type check shared/, services/ and clients/
	$(BIN)/mypy

.PHONY: format
format: setup ## Format code and contract
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format
	cd protos && ../$(BIN)/buf format --write --path neuropil

.PHONY: protos
protos: setup ## Generate the stubs from the contract
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python protos/generate.py

.PHONY: protos-image
protos-image: setup ## Record the contract as released: what later changes may not break
	cd protos && ../$(BIN)/buf build --output image.binpb

.PHONY: docs
docs: setup ## Generate the pages that are made from code
	$(BIN)/python -m services.scalars.catalogue

.PHONY: demo-data
demo-data: setup ## Make data/demo again: text, tokenizer, model, autoencoders, records
	$(BIN)/python -m data.recipe

.PHONY: bench
bench: setup ## Measure speed as ratios within one run
	$(BIN)/python -m tests.load.bench

.PHONY: bench-records
bench-records: setup ## Measure reads of records against their targets
	$(BIN)/python -m tests.load.bench records redis-client gateway

.PHONY: bench-scalars
bench-scalars: setup ## Measure derived scalars against the bare model on a CPU
	$(BIN)/python -m tests.load.scalars_bench

.PHONY: bench-scalars-forward
bench-scalars-forward: setup ## Measure our forward pass against transformers' own with hooks
	$(BIN)/python -m tests.load.scalars_forward

# Without `setup`: a machine with a GPU may have no network, and the torch that it needs.
.PHONY: bench-scalars-gpu
bench-scalars-gpu: ## Measure derived scalars against the bare model on a GPU; fails where there is none
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m tests.load.scalars_gpu_bench

.PHONY: mixed-scalars
mixed-scalars: setup ## Random requests, N= in all (500): batched answers against those alone
	$(BIN)/python -m tests.integration.scalars_mixed $(or $(N),500)

.PHONY: bench-simulation
bench-simulation: setup ## Measure calibration, scores, local simulators and shared prefixes
	$(BIN)/python -m tests.load.simulation_bench

.PHONY: simulation-coverage
simulation-coverage: setup ## How often intervals hold the true score: 2,000 data sets of 50 sequences
	$(BIN)/python -m tests.load.simulation_coverage
	$(BIN)/python -m tests.load.simulation_intervals

.PHONY: simulation-table
simulation-table: setup ## Score the demo with every offline simulator; writes into docs/simulation.md
	$(BIN)/python -m tests.load.simulation_table --write

.PHONY: bench-search
bench-search: setup ## Measure searches over 10,000 and 100,000 explanations
	$(BIN)/python -m tests.load.search_bench

.PHONY: fuzz
fuzz: setup ## Fuzz what reads files and requests: SECONDS= in all (600), new inputs are kept
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),600) --keep

.PHONY: faults-records
faults-records: setup ## Let parts fail under load, SECONDS= each (60), and check every answer
	$(BIN)/python -m tests.faults --seconds $(or $(SECONDS),60)

.PHONY: bulk-crash
bulk-crash: setup ## Kill the service 3 times in a bulk run of N= (1,000) explanations: is any lost?
	$(BIN)/python -m tests.faults.bulk_crash --components $(or $(N),1000)

.PHONY: load-records
load-records: setup ## Many kinds of user at once: HOST=, USERS=, RATE= (a second), SECONDS=
	$(BIN)/python -m tests.load.records_load --host '$(HOST)' --users $(or $(USERS),50) \
	  --spawn-rate $(or $(RATE),20) --seconds $(or $(SECONDS),60)

.PHONY: soak-records
soak-records: setup ## 200,000 reads of all kinds: does the record service keep its size?
	$(BIN)/python -m tests.load.soak

.PHONY: clean
clean: ## Remove everything that make made, but not report/
	rm -rf .venv .venv-without-torch .mypy_cache .ruff_cache .pytest_cache .hypothesis build
	rm -rf *.egg-info clients/python/src/*.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
