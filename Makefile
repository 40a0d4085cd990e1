# minilib: every target makes what it needs, can be interrupted, and picks up where it stopped when run again.

PYTHON   ?= python3
CHAPTERS ?= all
PROFILE  ?= quick
RUNS     ?= runs

VENV  := .venv
BIN   := $(VENV)/bin
# Written last, so that it stands only beside a complete environment.
READY := $(VENV)/.ready
# Stands while pip works: found at the start, it tells of an interrupted install, which is thrown away.
BUSY  := $(VENV)/.installing

SHELL       := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env reproduce notebooks test lab book bench lint clean

# Steps say what they do in one visible line (without a comma: make would end the text there).
say = @printf '\n\033[1m==> %s\033[0m\n' "$(1)"

help: ## what can be made (this list)
	@printf 'usage: make TARGET [PYTHON=python3] [CHAPTERS=all] [PROFILE=quick] [RUNS=runs]\n\n'
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(READY) ## the environment .venv, with the versions of constraints.txt

$(READY): pyproject.toml constraints.txt
	@if [ -e $(BUSY) ]; then echo "The last install was interrupted: starting it afresh."; rm -rf $(VENV); fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "minilib needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(call say,Making $(VENV) with $$($(PYTHON) --version): a few minutes and about 6 GB where torch brings the CUDA libraries)
	@mkdir -p $(VENV) && touch $(BUSY)
	@[ -x $(BIN)/python ] && [ -e $(BIN)/pip ] || $(PYTHON) -m venv $(VENV) \
	    || { echo "$(PYTHON) has no venv module (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[book,test]'
	@$(BIN)/python -m pip check
	@rm -f $(BUSY) && touch $@

reproduce: $(READY) ## run every chapter that is not up to date, print the claims table, build the book
	$(call say,Running the chapters ($(CHAPTERS)) with profile $(PROFILE); finished and unchanged ones are skipped)
	@$(BIN)/python -m minilib reproduce --chapters $(CHAPTERS) --profile $(PROFILE)
	@$(MAKE) --no-print-directory book

notebooks: $(READY) ## run the notebooks and store their outputs in them, for after the library has changed
	$(call say,Running the notebooks and storing what they show)
	@$(BIN)/python -m minilib reproduce --chapters all --profile quick
	@$(BIN)/python -m minilib publish
	@$(BIN)/jupyter nbconvert --log-level=WARN --to=notebook --inplace --execute \
	    --ExecutePreprocessor.record_timing=False notebooks/emojiscenes.ipynb

test: $(READY) ## unit, parity, reproduce, notebook and book tests; stages already green for this very tree are not repeated
	$(call say,Testing)
	@$(BIN)/python tests/stages.py

lab: $(READY) ## JupyterLab on the notebooks
	$(call say,Starting JupyterLab; stop it with Ctrl-C)
	@$(BIN)/jupyter lab --notebook-dir=. notebooks

book: $(READY) ## build the book into book/_build/html
	$(call say,Building the book)
	@$(BIN)/jupyter-book build book --all -n -W --keep-going --quiet
	@echo "Open book/_build/html/index.html in a browser."

bench: $(READY) ## benchmarks: ratios measured side by side in one run
	$(call say,Measuring; leave the machine alone meanwhile)
	@mkdir -p $(RUNS)
	@$(BIN)/python -m pytest tests/benchmarks -s --benchmark-columns=median,iqr,rounds --benchmark-json=$(RUNS)/benchmarks.json

lint: $(READY) ## ruff over library and tests and scripts and notebooks; types of the library; no working notes
	$(call say,Linting)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy minilib
	@$(BIN)/python tests/notes.py

clean: ## remove the environment, the built book and caches (runs/ is kept: it may hold hours of work)
	$(call say,Removing $(VENV) and book/_build and caches; $(RUNS)/ is kept)
	@rm -rf $(VENV) book/_build build minilib.egg-info .pytest_cache .ruff_cache .benchmarks
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
