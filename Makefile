# Two commands for a newcomer: `make demo` and `make test`. Each sets itself up in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint bench gpu report clean

# Pre-train on 4,000 embedded digits, judge on 1,000, and show every command; minutes on two cores.
demo: $(INSTALLED)
	$(BIN)/python -m benchmarks.demo

test: lint
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Measures the loss, the views and reading of images on this machine; appends to benchmarks/results/.
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.bench_nce
	$(BIN)/python -m benchmarks.bench_augment
	$(BIN)/python -m benchmarks.bench_data

# Tests and benchmarks that need a GPU, with any Python that has torch: make gpu PYTHON=python3.
# Needs no network and no .venv; where the package is not installed, kernels/ is linked into it.
gpu:
	$(PYTHON) -c "import amdim_fast.kernels" 2>/dev/null || ln -sfn ../kernels amdim_fast/kernels
	$(PYTHON) setup.py --quiet build_ext --inplace
	$(PYTHON) -m benchmarks.gpu

# Rewrites the generated blocks of README.md and the plots from the rows.
report: $(INSTALLED)
	$(BIN)/python -m benchmarks.report

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

# The extensions are built against the torch that is installed, not against one fetched for the build.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
$(INSTALLED): pyproject.toml setup.py constraints.txt $(shell find csrc -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch ninja pybind11 'setuptools>=77'
	$(PIP) --no-build-isolation --editable '.[data,demo,dev]'
	touch $@
