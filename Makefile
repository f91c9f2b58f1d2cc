# Two commands for a newcomer: `make demo` and `make test`. Each sets itself up in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := $(VENV)/.demo

.PHONY: demo test lint bench coverage dist smoke smoke-clean gpu tune kernels-linked report clean

# Pre-train on 4,000 embedded digits, judge on 1,000, and show every command and the time left; a GPU is
# used if there is one.
demo: $(DEMO)
	$(BIN)/python -m benchmarks.demo

# Files of tests side by side, one thread each: threads of several processes only hinder one another.
# One process more than cores, as some tests wait, four at most; the slowest files first (tests/conftest.py).
WORKERS := $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 4 ? cores + 1 : 4)))
TESTS := pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=10
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m $(TESTS)

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Measures on this machine, under ten minutes on two idle cores; appends to benchmarks/results/. Apart:
# make bench-large_batch bench-quality bench-methods, longer, and bench_demo, for the run of make demo.
BENCHES := nce losses augment mixture train_step data
bench: $(INSTALLED) $(BENCHES:%=bench-%)
bench-%: $(INSTALLED)
	$(BIN)/python -m benchmarks.bench_$*

# Runs the tests, somewhat slower than make test; fails where they reach too few of the lines.
coverage: $(INSTALLED)
	$(BIN)/python -m coverage erase
	OMP_NUM_THREADS=1 $(BIN)/python -m coverage run -m $(TESTS) -q
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

# The wheel is built from the sdist, so both are known to be whole; it is for all GPUs, not those here.
dist: $(INSTALLED)
	rm -rf dist
	TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST:-8.0;9.0;10.0+PTX}" $(BIN)/python -m build --no-isolation

# The wheel without the repository: over the packages of .venv, or in an environment of its own.
SMOKE = $(CURDIR)/tests/smoke.py
smoke: dist
	rm -rf build/smoke
	mkdir -p build/smoke/empty
	$(PIP) --no-deps --target build/smoke/wheel dist/*.whl
	cd build/smoke/empty && PYTHONPATH=../wheel $(abspath $(BIN))/python $(SMOKE) ../wheel

smoke-clean: dist
	rm -rf build/clean
	mkdir -p build/clean/empty
	$(PYTHON) -m venv build/clean/venv
	build/clean/venv/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	cd build/clean/empty && ../venv/bin/python $(SMOKE) ../venv

# Tests and benchmarks that need a GPU, with any Python that has torch: make gpu PYTHON=python3.
# Seven minutes at most, the build for this card included; PARTS="steps large" chooses parts.
# Needs no network and no .venv; where the package is not installed, kernels/ is linked into it.
gpu: kernels-linked
	$(PYTHON) -m benchmarks.gpu $(if $(PARTS),--parts build $(PARTS))

# Measures which tiles are fastest on this GPU, into tiles.json for AMDIM_FAST_BLOCKS.
tune: kernels-linked
	$(PYTHON) -m amdim_fast.bench.autotune --file tiles.json

kernels-linked:
	$(PYTHON) -c "import amdim_fast.kernels" 2>/dev/null || ln -sfn ../kernels amdim_fast/kernels

# Rewrites the generated blocks of README.md and the plots from the rows.
report: $(INSTALLED)
	$(BIN)/python -m benchmarks.report

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage* .pytest_cache .mypy_cache .ruff_cache

# The extensions are built against the torch that is installed, not against one fetched for the build.
# The demo needs few extras and, without a GPU, no library for CUDA; Python compiles what it imports.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := pyproject.toml setup.py constraints.txt $(shell find csrc -type f)
$(INSTALLED): EXTRAS = data,demo,backbones,parquet,huggingface,onnx,dev
$(DEMO): EXTRAS = data,demo
$(DEMO): PIP += --no-compile
$(DEMO): LIBRARIES = AMDIM_FAST_BUILD=$$(nvidia-smi -L >/dev/null 2>&1 && echo 1 || echo cpu)
$(INSTALLED) $(DEMO): $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch ninja pybind11 'setuptools>=77'
	$(LIBRARIES) $(PIP) --no-build-isolation --editable '.[$(EXTRAS)]'
	touch $@ $(if $(filter $@,$(INSTALLED)),$(DEMO))
