PYTHON ?= .venv/bin/python
export PYTHONHASHSEED ?= 0

.PHONY: venv check format lint types test docs bench

venv: ## a virtual environment with everything a developer needs
	python3 -m venv .venv
	.venv/bin/pip install -e '.[dev]'

check: format lint types docs test ## all that a change must pass

format:
	$(PYTHON) -m ruff format --check .

lint:
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest

docs:
	$(PYTHON) -m mkdocs build --strict --quiet

bench: ## figures of docs/benchmarks.md, in one run
	$(PYTHON) -m pytest tests/benchmarks --benchmark-enable --benchmark-only -s
