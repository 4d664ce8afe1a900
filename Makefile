# Two commands do everything on a fresh machine, each from a clean clone: make quickstart, make test.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python
# The torch to install; on a machine with an accelerator TORCH=torch takes the newest with its CUDA
TORCH ?= torch==2.13.0

.PHONY: help install quickstart test test-slow faults lint clean

help:
	@echo "make quickstart   corpus in, verdict out: train a tokenizer, pretrain, compare (runs/quickstart/)"
	@echo "make test         the tests, minutes long; make test-slow the longer ones"
	@echo "make faults       kill runs at every moment and damage what they leave: which come back bit for bit"
	@echo "make lint         ruff and mypy"
	@echo "make install      .venv with everything; the others make it when it is missing"

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[quickstart,dev]"
	@touch $@

# Each step resumes what it finds: run again, it goes on where it stopped and repeats nothing that is done.
quickstart: install
	$(RUN) recipes/train_tokenizer.py configs/tokenizer/quickstart.yaml --resume
	$(RUN) recipes/pretrain_mlm.py configs/pretrain/mlm_quickstart.yaml --resume
	$(RUN) recipes/compare.py configs/compare/quickstart.yaml --resume

# A worker a core, four at most; a file of tests at a time.
test: install
	$(RUN) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test-slow: install
	$(RUN) -m pytest -m slow

# Runs killed at every moment, files damaged in every way: what a run survives. A short version is part of make test.
faults: install
	HYPOTHESIS_PROFILE=faults $(RUN) -m pytest -m "slow or not slow" \
		tests/recipes/test_faults.py tests/recipes/test_fuzz.py tests/training/test_checkpoint.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs build dist src/*.egg-info
