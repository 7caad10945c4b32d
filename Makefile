# Every target makes .venv and installs what it needs; only Python >= 3.11, pip and make are required.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PYTEST = $(BIN)/python -m pytest
# two workers with one torch thread each suit two cores; change with WORKERS=...
WORKERS ?= 2
# uv installs sources alone: without this, where a container forbids it, every process compiles what it imports again
unexport PYTHONDONTWRITEBYTECODE
# the package with some extras, by uv, which takes a sixth of pip's time; by pip where uv finds no packages
install = $(BIN)/uv pip install --quiet --python $(BIN)/python -e ".[$(1)]" || $(BIN)/python -m pip install --quiet -e ".[$(1)]"

.PHONY: demo test test-slow campaigns check lint types layers docs bench bench-gpu results-check evidence wheel first-prediction matrix clean

demo: $(VENV)/installed
	$(BIN)/dinoneck demo --out dinoneck-demo

# each worker takes files one after the other, so that what the tests of a file share is made once
test: $(VENV)/installed-dev
	$(PYTEST) -n $(WORKERS) --dist worksteal -m "not slow"

test-slow: $(VENV)/installed-dev
	$(PYTEST) -n $(WORKERS) --dist loadfile -m "slow and not campaign"

# hours, before a release: mutants, faults, every published architecture, export and stage of the designs
campaigns: $(VENV)/installed-dev
	$(PYTEST) -n $(WORKERS) --dist loadfile -m campaign

check: lint types layers docs test test-slow wheel

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

layers: $(VENV)/installed-dev
	$(BIN)/lint-imports

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# a few minutes on a CPU: one setting per row, float32; to bench-results, which git ignores
bench: $(VENV)/installed-bench
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks speed --short --dtypes float32 --rounds 5

# eight minutes on one GPU, to benchmarks/results; installs nothing: without .venv the PYTHON that is there, with torch
bench-gpu:
	PYTHONPATH=src:. $(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks gpu

# fails where a stored CPU table measured other sources than those that are here
results-check:
	$(PYTHON) -m benchmarks.results

# results with published weights, see docs/explanation/results.md; DINONECK_WEIGHTS is hub or a folder
evidence: $(VENV)/installed-dev $(VENV)/installed-bench
	$(BIN)/python -m benchmarks evidence $(EVIDENCE)

# the built wheel, in an environment of its own that shares only the heavy dependencies, must run the demo
wheel: $(VENV)/installed-dev
	$(BIN)/python -m tests.wheel $(VENV)/wheel
	$(BIN)/python -m tests.wheel_without_torch $(VENV)/wheel-without-torch

# the wheel with all its dependencies in an empty environment: images -> head -> prediction, every command timed
first-prediction: $(VENV)/python
	$(BIN)/python -m tests.first_prediction $(VENV)/first-prediction $(FIRST)

# the quick tier on every Python found here, with the oldest and the newest dependencies (see noxfile.py)
matrix: $(VENV)/installed-matrix
	$(BIN)/nox

$(VENV)/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'dinoneck needs Python 3.11 or newer; set PYTHON=')"
	$(PYTHON) -m venv $(VENV)
	-$(BIN)/python -m pip install --quiet uv
	touch $@

$(VENV)/installed: $(VENV)/python pyproject.toml
	$(call install,train)
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(call install,dev)
	touch $@

$(VENV)/installed-bench: $(VENV)/installed
	$(call install,bench)
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(call install,docs)
	touch $@

$(VENV)/installed-matrix: $(VENV)/python
	$(BIN)/python -m pip install --quiet "nox>=2024.10"
	touch $@

clean:
	rm -rf $(VENV) .nox dist site dinoneck-demo bench-results
