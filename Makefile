# Two commands do everything on a fresh machine, each from a clean clone: make quickstart, make test.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python
SHELL := bash
# The torch to install. TORCH=torch takes the newest, with CUDA on Linux; TORCH=torch==2.11.0 takes that one.
TORCH ?= torch==2.13.0
PIP := pip==26.3
UV := uv==0.13.9
TWINE := twine==7.0.0
# Without compiled files each child of a test would compile decero anew.
unexport PYTHONDONTWRITEBYTECODE
# A worker a core, four at most; one that is done takes tests of another.
PYTEST := -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: help install lock quickstart test test-latest test-oldest test-long test-slow conformance gpu-check faults lint \
	docs package clean

help:
	@echo "make quickstart   corpus in, verdict out: train a tokenizer, pretrain, compare (runs/quickstart/)"
	@echo "make test         the short tests, in minutes; make test-long the longer ones; make test-slow the longest"
	@echo "make test-latest  the tests with the newest release of every dependency, in .venv-latest"
	@echo "make test-oldest  the tests with the oldest releases that pyproject.toml allows, in .venv-oldest"
	@echo "make conformance  the model tests of transformers on our classes; fetches its source archive from PyPI"
	@echo "make gpu-check    on a machine with a GPU: is it right, and how fast (runs/gpu_check.json)"
	@echo "make faults       attack it: 2,000 cases of hostile input; runs killed at every moment and damaged"
	@echo "make lint         ruff and mypy"
	@echo "make docs         build the documentation site; warnings are errors"
	@echo "make package      the wheel and the sdist in dist/, checked; the wheel tried in an environment of its own"
	@echo "make install      .venv with what constraints.txt locks, and torch; the others make it when it is missing"
	@echo "make lock         write constraints.txt anew from the newest releases that pyproject.toml allows"
	@echo "make clean        remove the environments, runs/ and builds"

install: .venv/installed

# The lock first, so that torch finds what it needs and adds only itself and its CUDA packages. uv is faster than
# pip, but does not read pip's settings (a mirror, local wheels). So pip installs torch, and all if uv fails.
.venv/installed: pyproject.toml constraints.txt | .venv-uv/installed
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PIP)
	.venv-uv/bin/uv pip install --quiet --python $(RUN) --no-deps --require-hashes --build-constraints constraints.txt \
		--requirement constraints.txt || $(BIN)/pip install --quiet --no-deps --require-hashes \
		--build-constraint constraints.txt --requirement constraints.txt
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --no-deps --build-constraint constraints.txt --editable .
	$(BIN)/pip check
	@touch $@

# A torch named by hand is installed even where another one is.
ifneq ($(origin TORCH),file)
.PHONY: .venv/installed
endif

# The lock leaves torch out: its file and its CUDA packages differ by machine. TORCH names its version instead.
# It adds what torch needs besides (networkx, sympy) and what builds packages (setuptools, setuptools-scm).
lock: .venv-uv/installed
	printf 'networkx\nsetuptools\nsetuptools-scm\nsympy\n' | .venv-uv/bin/uv pip compile --quiet --upgrade --universal \
		--python-version 3.11 --generate-hashes --excludes <(echo torch) --all-extras --custom-compile-command "make lock" \
		--output-file constraints.txt pyproject.toml -

.venv-uv/installed: Makefile
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/pip install --quiet $(UV)
	@touch $@

# Each step resumes what it finds: run again, it goes on where it stopped and repeats nothing that is done.
quickstart: install
	$(RUN) recipes/train_tokenizer.py configs/tokenizer/quickstart.yaml --resume
	$(RUN) recipes/pretrain_mlm.py configs/pretrain/mlm_quickstart.yaml --resume
	$(RUN) recipes/pretrain_mlm.py configs/pretrain/mlm_quickstart.yaml seed=1 output=runs/quickstart/pretrain_1 --resume
	$(RUN) recipes/pretrain_mlm.py configs/pretrain/mlm_quickstart.yaml seed=2 output=runs/quickstart/pretrain_2 --resume
	$(RUN) recipes/compare.py configs/compare/quickstart.yaml --resume

test: install
	$(RUN) $(PYTEST)

test-long: install
	$(RUN) $(PYTEST) -m "long and not slow and not gpu"

# test-latest: does tomorrow's release break us? It lifts the upper bounds of pyproject.toml.
# test-oldest: is every lower bound true? Both take the torch that TORCH names; uv leaves it alone. So torch's own lower
# bound is not tested here (2.13.0 was): on Linux the older wheels want gigabytes of CUDA. Try it with TORCH=torch==2.9.0.
test-latest: OPTIONS := --overrides <(sed -n 's/^ *"\([^>]*\)>=[^"]*,<.*/\1/p' pyproject.toml)
test-oldest: OPTIONS := --resolution lowest-direct
test-latest test-oldest: test-%: .venv-uv/installed
	$(PYTHON) -m venv .venv-$*
	.venv-uv/bin/uv pip install --quiet --upgrade --python .venv-$* --excludes <(echo torch) $(OPTIONS) \
		--editable ".[quickstart,dev,peft,explain,vision,demo]"
	.venv-$*/bin/pip install --quiet "$(TORCH)"
	.venv-$*/bin/python $(PYTEST) -m "not slow and not gpu"

test-slow: install
	HYPOTHESIS_PROFILE=thorough $(RUN) -m pytest -m "(slow or hypothesis) and not gpu"

# Only the source archive of transformers holds its tests. The result stands in docs/experiments/stock_models.md.
SOURCE := .venv/transformers_source
conformance: install
	$(BIN)/pip install --quiet parameterized
	rm -rf $(SOURCE)
	$(BIN)/pip download --quiet --no-deps --no-binary transformers --dest $(SOURCE) \
		transformers==$$($(RUN) -c "import transformers; print(transformers.__version__)")
	tar --extract --gzip --strip-components 1 --directory $(SOURCE) --file $(SOURCE)/transformers-*.tar.gz
	TRANSFORMERS_TESTS=$(SOURCE)/tests $(RUN) $(PYTEST) -m slow tests/conformance

# It installs nothing: it takes .venv where there is one, else the packages of PYTHON. Without a GPU it says so.
GPU_PYTHON := $(if $(wildcard $(RUN)),$(RUN),$(PYTHON))
gpu-check:
	PYTHONPATH=src $(GPU_PYTHON) -m decero.benchmark.gpu_check configs/benchmark/gpu.yaml

# CASES generated cases from seed SEED on (counts in runs/faults.json), then runs killed at every moment and damaged.
# A short version is part of make test.
CASES ?= 2000
SEED ?= 0
faults: install
	$(RUN) -m tests.faults --cases $(CASES) --first $(SEED) --json runs/faults.json
	HYPOTHESIS_PROFILE=faults $(RUN) $(PYTEST:worksteal=load) -m "slow or not slow" \
		tests/faults tests/training/test_checkpoint.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/mkdocs build --strict

# What `make install` checks out is not what a user installs: so the wheel is built, installed elsewhere, and used.
package: install .venv-uv/installed
	rm -rf build dist
	.venv-uv/bin/uv build --quiet --build-constraints constraints.txt
	.venv-uv/bin/uv tool run --quiet --from $(TWINE) twine check --strict dist/*
	$(RUN) -m pytest -m slow tests/test_package.py

clean:
	rm -rf .venv .venv-* runs site build dist src/*.egg-info
