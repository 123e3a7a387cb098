# Every target sets up what it needs: Python 3.11 or newer, pip, git and make are all that must be there.
# PYTHON=/path/to/python make setup   chooses the interpreter; PIP_ARGS=... is passed to pip install.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PYTHON ?= $(shell for python in python3.11 python3 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
PIP_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format notebooks pretrain-tiny pretrain-pictures clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## Install everything into .venv (again only when pyproject.toml changed).

$(STAMP): pyproject.toml setup.py
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed and was not found" >&2; \
		echo "  fix: install it, or name it: make PYTHON=/path/to/python3.11 setup" >&2; exit 1; }
	@echo "Installing into $(VENV) with $(PYTHON); this takes a few minutes, once."
	@$(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) cannot make a virtual environment" >&2; \
		echo "  fix: on Debian or Ubuntu, apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -e ".[dev]"
	@touch $(STAMP)

demo: $(STAMP) ## Run the whole path in about ten minutes; the result is runs/demo/index.html.
	@$(BIN)/unival demo

test: $(STAMP) ## Run the default tests: offline, on the CPU, in two processes.
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

check: $(STAMP) ## Check style, format and types.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

format: $(STAMP) ## Format the code and repair what can be repaired by itself.
	@$(BIN)/ruff check --fix-only --exit-zero --quiet .
	@$(BIN)/ruff format .

notebooks: $(STAMP) ## Execute notebooks/*.py and store them with their outputs as notebooks/*.ipynb.
	@$(BIN)/python -c "import ipykernel, jupytext, nbclient" 2>/dev/null || \
		$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -e ".[notebooks]"
	@rm -rf runs/notebooks
	@$(BIN)/python notebooks/render.py

# Each encoder has one processor core; two of them are made at a time, and say in lines how far they are, because two
# bars would overwrite each other.
runs/encoders/image.safetensors: | $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m unival.tiny.pretrain_encoder image configs/pretrain/tiny.yaml --out $@ --steps 8000

runs/encoders/video.safetensors: | $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m unival.tiny.pretrain_encoder video configs/pretrain/tiny.yaml --out $@ --steps 4500

runs/encoders/audio.safetensors: | $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m unival.tiny.pretrain_encoder audio configs/demo/audio.yaml --out $@ --steps 1500 --batch 32

runs/aligned/model.safetensors: runs/encoders/image.safetensors runs/encoders/video.safetensors
	@$(BIN)/python -m unival.tiny.align_names configs/pretrain/tiny.yaml --out runs/aligned

# As many processes as GPUs, or two on the processor. What is complete is kept; what was stopped goes on.
PROCESSES ?= $(shell nvidia-smi -L 2>/dev/null | grep -c . | sed 's/^0$$/2/')

pretrain-tiny: | $(STAMP) ## Train the model that ships: 68 minutes of two cores; complete parts are kept.
	@TTY_COMPATIBLE=0 $(MAKE) --no-print-directory -j 2 runs/encoders/image.safetensors runs/encoders/video.safetensors runs/encoders/audio.safetensors
	@$(MAKE) --no-print-directory runs/aligned/model.safetensors
	@OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node $(PROCESSES) -m unival.train configs/pretrain/tiny.yaml
	@$(BIN)/python -m unival.tiny.ship runs/pretrain-tiny --audio-encoder runs/encoders/audio.safetensors

runs/pictures/codec/model.safetensors: | $(STAMP)
	@$(BIN)/unival codec train runs/pictures/codec --patch 8 --steps 3000

runs/pictures/train.jsonl: runs/pictures/codec/model.safetensors
	@$(BIN)/unival codec encode "{world: train, limit: 12000, content: detailed_caption, options: {augment: false, concepts: cast, max_objects: 1}}" \
		$@ --codec runs/pictures/codec --side 64

pretrain-pictures: runs/pictures/train.jsonl ## Train the model that draws; complete parts are kept.
	@$(BIN)/unival train configs/pretrain/tiny_pictures.yaml
	@$(BIN)/python -m unival.tiny.ship_pictures runs/pictures/run --codec runs/pictures/codec

clean: ## Remove caches and builds; keep .venv and runs.
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find unival soups preprocessing tests -name __pycache__ -type d -prune -exec rm -rf {} +
