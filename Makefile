# Everything runs in .venv, which `make venv` builds once from pinned versions.
#   make demo ARGS="--seeds 5"      PYTHON=python3.12 make venv
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu make venv   # where PyPI's torch comes with CUDA

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
TORCH_INDEX ?=

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export HF_HUB_OFFLINE = 1
export HF_DATASETS_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all check bench studies clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: $(STAMP)  ## build .venv from constraints.txt

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "treft needs Python 3.10 or newer; $(PYTHON) is older. Set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q "$$(grep '^torch==' constraints.txt)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## break a narrow finetune, repair it, prevent it (3 minutes)
	$(BIN)/treft demo $(ARGS)

test: $(STAMP)  ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile $(ARGS)

test-all: $(STAMP)  ## all tests, the slow ones too
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "slow or not slow" $(ARGS)

check: $(STAMP)  ## style, floors and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: $(STAMP)  ## what docs/benchmarks.md reports
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/generation.py

STUDIES := docs/results/studies
studies: $(STAMP)  ## every claim of the paper on the organism, and docs/paper_index.md
	$(BIN)/treft study run all --seeds 5 --output $(STUDIES) --overwrite $(ARGS); status=$$?; \
		$(BIN)/treft study index $(STUDIES) --output docs/paper_index.md && exit $$status

clean:  ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
