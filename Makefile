# A bare machine needs Python 3.11 or newer, make and git.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test check faults production bench pictures reference clean

run: .venv/ready
	$(BIN)/stepladder run sample
	$(BIN)/stepladder open sample

# Two processes, each with the tests of a file at a time; tests/conftest.py says which stay together.
test: check
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Our stages and the naive way side by side; writes tests/benchmarks/benchmarks.md.
bench: .venv/ready
	$(BIN)/python -m tests.benchmarks

# The README's pictures, out of the report of the latest run; needs Chromium.
pictures: .venv/ready
	$(BIN)/python -m tests.pictures

# RECIPES.md, from the code.
reference: .venv/ready
	$(BIN)/python -m tests.reference

# Hundreds of killed runs, damaged files and random edits instead of a few, and a table of them.
faults: .venv/ready
	STEPLADDER_FAULTS=full $(BIN)/python -m pytest tests/test_faults.py tests/test_plan.py tests/test_registry.py

# Machines that die under a real server and worker: some minutes.
production: .venv/ready
	STEPLADDER_PRODUCTION=full $(BIN)/python -m pytest tests/test_production.py tests/test_runners.py tests/test_nightly.py

# Installed once; again only when what is installed has changed.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv
