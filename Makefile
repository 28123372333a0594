# `make help` lists what there is. Every target sets up what it needs first, and does nothing twice.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
# Where it is set, every trainer that a test starts compiles torch anew: 12 CPU-seconds instead of 5.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
# --no-compile: Python compiles what it imports, once; compiling all of torch ahead takes longer than the rest.
PIP_INSTALL = $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --use-pep517
FIND_PYTHON = for python in python3.11 python3.12 python3; do \
	if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; \
	then echo $$python; exit; fi; done; \
	echo 'Python 3.11 or 3.12 is needed (Debian: apt install python3 python3-venv)' >&2; exit 1

.PHONY: help
help: ## List the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1\t\2/p' Makefile | while IFS=$$'\t' read -r name what; \
	do printf '  make %-12s %s\n' "$$name" "$$what"; done

.PHONY: setup
setup: .venv/.installed ## Make .venv from the lock

.venv/.python:
	@python=$$($(FIND_PYTHON)); \
	echo "making .venv with $$($$python --version)"; \
	$$python -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "Python's venv module is missing (Debian: apt install python3-venv)" >&2; exit 1; }; \
	$$python -m venv .venv
	@touch $@

.venv/.installed: .venv/.python requirements.lock requirements-dev.lock pyproject.toml
	@echo 'installing the packages of requirements-dev.lock'
	@$(PIP_INSTALL) -r requirements-dev.lock
	@$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: demo
demo: setup ## Watch a tiny model learn which answers to prefer: the whole service in a few minutes
	@$(BIN)/python examples/two_plus_two/demo.py

.PHONY: illustrated
illustrated: setup ## Write docs/dpo.md and its figures anew, every number from dpo_core
	@PYTHONPATH=docs $(BIN)/python -m illustrated

.PHONY: lint
lint: setup ## Style: ruff's rules and format
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .

.PHONY: types
types: setup ## mypy, strict outside tests
	@$(BIN)/python -m mypy

.PHONY: imports
imports: setup ## Who may import whom: import-linter's contracts in pyproject.toml
	@$(BIN)/lint-imports

.PHONY: test
# Tests of the worker mostly wait: for leases, polls, processes.
test: setup ## Every test but the long ones, two files at a time on each core
	@$(BIN)/python -m pytest -q -m 'not long' -n $$((2 * $$(nproc) < 8 ? 2 * $$(nproc) : 8)) --dist loadfile --no-loadscope-reorder --durations 30

.PHONY: check
check: lint types imports test ## What CI runs

.PHONY: clients
clients: $(patsubst tests/contract/clients/%.txt,build/%/.installed,$(wildcard tests/contract/clients/*.txt)) ## The openai clients that the API is tested with

build/openai-%/.installed: tests/contract/clients/openai-%.txt
	@echo 'installing $< into build/openai-$*'
	@rm -rf build/openai-$* && mkdir -p build
	@python=$$($(FIND_PYTHON)); $$python -m venv build/openai-$*
	@build/openai-$*/bin/python -m pip --disable-pip-version-check install --quiet --no-compile -r $<
	@touch $@

.PHONY: check-long
check-long: setup clients hub-clients ## The tests that take longer; run before an issue is called done
	@$(BIN)/python -m pytest -q -m long

.PHONY: faults
faults: setup ## Every fault at random moments, some hours on 2 cores, resumable: SEED=7 KINDS=redis,worker LANES=2 TRAINERS=stub
	@$(if $(KINDS),,DPO_MODEL_RUNS=2000 $(BIN)/python -m pytest -q -s tests/model)
	@$(BIN)/python -m tests.faults $(if $(SEED),--seed $(SEED)) $(if $(KINDS),--kinds '$(KINDS)') \
		$(if $(LANES),--lanes $(LANES)) $(if $(TRAINERS),--trainers $(TRAINERS))

.PHONY: compose-test
compose-test: setup ## docker-compose.yml from nothing to a checkpoint, under docker or podman; says so where neither is
	@DPO_COMPOSE_TEST=1 $(BIN)/python -m pytest -q --log-cli-level=INFO --log-cli-format='%(asctime)s %(message)s' tests/compose

.PHONY: bench-train
bench-train: setup build/trl/.installed ## This trainer and TRL 1.16 on the same pairs and cores, in turn (benchmarks/README.md)
	@$(BIN)/python -m benchmarks.train

.PHONY: bench-sharing
bench-sharing: setup ## What sharing prompts saves, in parts of what it could save, from short prompts to long ones
	@$(BIN)/python -m benchmarks.sharing

.PHONY: bench-gpu
bench-gpu: setup build/trl/.installed ## On a machine with an NVIDIA GPU: exactness in bfloat16, speed and memory beside TRL
	@$(BIN)/python -m benchmarks.gpu

.PHONY: bench-data
bench-data: setup build/trl/.installed ## A million pairs checked, rendered and tokenized, beside TRL 1.16's preparation of them
	@$(BIN)/python -m benchmarks.data

.PHONY: bench-api
bench-api: setup ## List, read and create jobs at 50 requests a second in a table of 100,000: latencies
	@$(BIN)/python -m benchmarks.api

.PHONY: bench-overhead
bench-overhead: setup ## What the service costs: a step under its worker, from a POST to step 1, claims of 100,000 jobs
	@$(BIN)/python -m benchmarks.overhead

.PHONY: bench-losses
bench-losses: build/trl/.installed ## Every loss and its gradient beside TRL's, in float64
	@PYTHONPATH=. build/trl/bin/python benchmarks/losses_against_trl.py

.PHONY: bench-memory
bench-memory: setup ## The memory plan against measured peaks; on a GPU: make bench-memory DEVICE=cuda
	@$(BIN)/python -m benchmarks.memory --device $(or $(DEVICE),cpu)

.PHONY: bench-transfer
bench-transfer: setup ## Uploads beside a loop that copies a file, downloads beside nginx; the last line is JSON
	@$(BIN)/python -m benchmarks.transfer

# TRL is measured against, never depended on: it lives apart, with the same torch.
build/trl/.installed: benchmarks/requirements-trl.txt
	@echo 'installing the packages of benchmarks/requirements-trl.txt into build/trl'
	@rm -rf build/trl && mkdir -p build
	@python=$$($(FIND_PYTHON)); $$python -m venv build/trl
	@build/trl/bin/python -m pip --disable-pip-version-check install --quiet --no-compile -r benchmarks/requirements-trl.txt
	@touch $@

.PHONY: hub-clients
hub-clients: build/hub/1/.installed build/hub/0/.installed ## Older huggingface_hub clients for tests/contract, each in a venv

# Others' clients are tested against, never depended on.
build/hub/1/.installed: HUB_CLIENT = huggingface_hub>=1,<2
build/hub/0/.installed: HUB_CLIENT = huggingface_hub>=0.36,<1
build/hub/%/.installed: Makefile
	@echo "installing $(HUB_CLIENT) into $(@D)"
	@rm -rf $(@D) && mkdir -p build/hub
	@python=$$($(FIND_PYTHON)); $$python -m venv $(@D)
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile '$(HUB_CLIENT)'
	@touch $@

.PHONY: lock
lock: ## Write the lock anew: the newest versions that pyproject.toml allows
	@rm -rf build/lock && mkdir -p build
	@python=$$($(FIND_PYTHON)); $$python -m venv build/lock
	@build/lock/bin/python -m pip install --quiet --upgrade pip
	@build/lock/bin/python -m pip install --quiet --no-compile -e .
	@{ echo '# What the service runs on, by `make lock`. A CPU and a CUDA build of torch share the version: no hashes.'; \
		$(FREEZE); } > requirements.lock
	@build/lock/bin/python -m pip install --quiet --no-compile --group dev
	@{ echo '# What its developers add, by `make lock`.'; echo '-r requirements.lock'; \
		$(FREEZE) | grep -vxFf requirements.lock; } > requirements-dev.lock
	@rm -rf build/lock

# A local version such as +cpu names a build, not a version: who installs the lock gets the build that fits.
FREEZE = build/lock/bin/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+.*//'

.PHONY: clean
clean: ## Remove what was made here, .venv too; data folders of `dpo up` stay
	@rm -rf .venv build dist demo-output *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
