# make test   everything CI runs: lint, types, docs checks, all but the slow tests under the C kernel, the codec's under NumPy
# make slow   the slow tests: long crash, fuzz and conformance runs
# make explore  the fast tests with new random examples, as often as you like
# make quick  as test, under the C kernel alone
# make lint   ruff: lint and format
# make types  mypy
# make docs   write docs/cli.md anew from the command line's own help
# make bench  measure the codec beside its peers; JSON under bench/results/
# make golden check the golden blobs (no run ever rewrites one)
# make build  a wheel and an sdist under dist/

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST_FLAGS ?= -q -n auto
# A missing compiler is an error here; `pip install .` alone falls back to NumPy.
export NBMF_STRICT_BUILD ?= 1

# What the kernel has a part in; the rest runs the same code over either.
NUMPY_TESTS := tests/codec tests/train tests/test_cli.py tests/test_samples.py

READY := $(VENV)/.ready
NATIVE := $(wildcard src/nbmf/codec/*.c src/nbmf/codec/*.h)

.PHONY: all test slow explore quick lint types docs docs-check bench golden build clean
all: test

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Installs in place and compiles the kernel; again whenever the build files or the C sources change.
$(READY): $(BIN)/python pyproject.toml setup.py $(NATIVE)
	$(BIN)/python -m pip install --quiet --editable '.[bench,dev]'
	@touch $@

test: lint types docs-check $(READY)
	NBMF_KERNEL=c $(BIN)/python -m pytest $(PYTEST_FLAGS) -m 'not slow'
	NBMF_KERNEL=numpy $(BIN)/python -m pytest $(PYTEST_FLAGS) -m 'not slow' $(NUMPY_TESTS)

slow: $(READY)
	NBMF_KERNEL=c $(BIN)/python -m pytest $(PYTEST_FLAGS) -m slow

explore: $(READY)
	NBMF_EXPLORE=1 $(BIN)/python -m pytest $(PYTEST_FLAGS) -m 'not slow'

quick: $(READY)
	NBMF_KERNEL=c $(BIN)/python -m pytest $(PYTEST_FLAGS) -m 'not slow'

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/python scripts/cli_docs.py

docs-check: $(READY)
	$(BIN)/python scripts/cli_docs.py --check

bench: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	mkdir -p bench/results
	$(BIN)/nbmf bench --out bench/results/bench-$$(date -u +%Y%m%d-%H%M%S).json

golden: $(READY)
	$(BIN)/python -m pytest $(PYTEST_FLAGS) -k golden

build: $(READY)
	rm -rf build dist
	$(BIN)/python -m build

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src -name '*.so' -delete
