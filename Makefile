# `make` alone lists the targets. All of them work in .venv, which is set up on first use and again when pyproject.toml changes.
.DEFAULT_GOAL := help
.PHONY: help run test lint format data figures reproduce bench clean
SHELL := /bin/bash

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
ARGS ?= optimizer=kfac damping=1e0

help: ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 20

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[test,oracles]'
	touch $@

run: $(READY) ## train with K-FAC on MNIST (other runs: make run ARGS="optimizer=sgd lr=0.1")
	$(BIN)/fisherlab train $(ARGS)

test: $(READY) data ## fetch the data, run all tests, one process per core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(READY) ## style, docstrings, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(READY) ## lay out the code, mend what can be mended mechanically
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

data: $(READY) ## fetch and verify every data set
	$(BIN)/fisherlab data

figures: $(READY) ## re-draw all committed figures from their tables, training nothing
	$(BIN)/fisherlab figures
	$(BIN)/python scripts/compare_optimizers.py --figures
	$(BIN)/python -m scripts.bench --figures

reproduce: $(READY) ## run every study at paper scale , going on where it stopped
	$(BIN)/fisherlab study all scale=paper

bench: $(READY) ## measure speed against peers
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m scripts.bench

clean: ## remove what can be made again, but for results and data
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
