PYTHON ?= .venv/bin/python
export PYTHONHASHSEED ?= 0

.PHONY: venv engines guests check format lint types test test-browser test-engines test-guests test-gpu docs docs-tables alarms borders map explorer vectors peers bench bench-engines bench-gpu

venv: ## a virtual environment with everything a developer needs
	python3 -m venv .venv
	.venv/bin/pip install -e '.[dev]'

engines: ## a virtual environment of its own with the real engines, CPU build
	python3 -m venv .venv-engines
	.venv-engines/bin/pip install -e '.[test,engines-cpu]'
	.venv-engines/bin/pip uninstall -y torchvision torchaudio torchcodec # CUDA builds, which break transformers beside a CPU torch

guests: ## a virtual environment of its own with trainers of others, in which the examples run
	python3 -m venv .venv-guests
	.venv-guests/bin/pip install -e . trl==1.16.0 'pytest>=8.2' 'pytest-benchmark>=4.0'

check: format lint types docs test ## all that a change must pass

format:
	$(PYTHON) -m ruff format --check .

lint:
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest

test-browser: ## the pages in a real browser; needs Chromium: apt-get install -y --no-install-recommends chromium chromium-driver
	$(PYTHON) -m pytest tests/browser

test-engines: PYTHON = .venv-engines/bin/python
test-engines: ## tests of the real engines; needs `make engines`
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests/backends tests/benchmarks/engines

test-guests: PYTHON = .venv-guests/bin/python
test-guests: ## tests inside trainers of others; needs `make guests`
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests/guests

test-gpu: PYTHON = .venv-engines/bin/python
test-gpu: ## tests that need a GPU, where .venv-engines holds the extra engines-cuda
	$(PYTHON) -m pytest -m gpu tests/gpu

docs: ## not --quiet, which hides warnings from --strict as well: it would never fail
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

docs-tables: ## tables and the picture of the rooms, from the code into the pages; a test sees that they are current
	$(PYTHON) docs/generate.py

alarms: ## the table of alarms in the package, ANSWER=what `firstorder study warnings --json` wrote
	$(PYTHON) docs/shipped.py alarms $(ANSWER)

borders: ## the borders in the package, ANSWER=what `firstorder study regimes --json` wrote
	$(PYTHON) docs/shipped.py borders $(ANSWER)

map: ## the map in the package, ANSWER=what `firstorder study map --json` wrote
	$(PYTHON) docs/shipped.py map $(ANSWER)

explorer: ## the data of `firstorder explore` in the package, from the map and the simulator; two minutes
	$(PYTHON) docs/explorer.py

vectors: ## the golden vectors in the package, from the code; numbers that change need another VERSION
	$(PYTHON) -m firstorder.core.conformance.vectors core/conformance/vectors.json

peers: ## other frameworks' code on the golden vectors, in an environment of its own, 2 GB; the record
	$(PYTHON) -m firstorder.cli.entry conformance peers --env .venv-peers --json tests/records/peers.json

bench: ## figures of docs/benchmarks.md, in one run; not those of the engines, which are not installed here
	$(PYTHON) -m pytest $(wildcard tests/benchmarks/*.py) --benchmark-enable -s $(ARGS)

bench-engines: PYTHON = .venv-engines/bin/python
bench-engines: ## the same on the real engines; needs `make engines`
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests/benchmarks/engines --benchmark-enable

bench-gpu: PYTHON = .venv-engines/bin/python
bench-gpu: ## the trainer's figures on one GPU, where .venv-engines holds the extra engines-cuda
	$(PYTHON) tests/gpu/figures.py tests/records/gpu.json $(ARGS)
