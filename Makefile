# One virtual environment, .venv, for everything. It is made on first use, and installed into again only when
# pyproject.toml has changed. Another interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# More arguments for the target's script: make demo ARGS="--out elsewhere"
ARGS ?=
# Compiling every module of every package takes longer than installing them; instead, each is compiled when it is first
# imported, for which Python must be allowed to write.
export PYTHONDONTWRITEBYTECODE :=
# One process for each core, and one thread in each; the tests of a module stay together.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadscope
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile --editable

.PHONY: help demo test test-slow check structure mini model-card examples readme bench clean

help:
	@echo "make demo        localize the example photos; installs the light core only"
	@echo "make test        the default tests; installs all extras (torch among them)"
	@echo "make test-slow   the other tests"
	@echo "make check       format, lint, types, layers, structure"
	@echo "make structure   print the figures of the code's structure"
	@echo "make mini        synthesize, train, calibrate and export the embedded model (ARGS=\"--data FOLDER\")"
	@echo "make model-card  measure the embedded model: the numbers of docs/models.md (ARGS=\"--data FOLDER\")"
	@echo "make examples    make examples/photos and examples/masks anew (ARGS=\"--autoencoder FOLDER\")"
	@echo "make readme      write the pages of figures (docs/models.md, README.md) from docs/models.json"
	@echo "make bench       measure speed and memory, and write docs/performance.md (ARGS=\"--only networks\")"
	@echo "make clean       remove .venv and the caches of the tools; results stay"

demo: $(VENV)/.core
	$(BIN)/python examples/demo.py $(ARGS)

test: $(VENV)/.all
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(VENV)/.all
	$(PYTEST) -m slow $(ARGS)

check: $(VENV)/.all
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell src tools bench examples docs README.md CONTRIBUTING.md CHANGELOG.md
	$(BIN)/python tools/structure.py --check

structure: $(VENV)/.all
	$(BIN)/python tools/structure.py $(ARGS)

mini: $(VENV)/.all
	$(BIN)/python tools/make_mini.py $(ARGS)

model-card: $(VENV)/.all
	$(BIN)/python tools/model_card.py $(ARGS)

examples: $(VENV)/.all
	$(BIN)/python tools/make_examples.py $(ARGS)

readme: $(VENV)/.all
	$(BIN)/python tools/model_page.py
	$(BIN)/python tools/recipe_page.py

bench: $(VENV)/.all
	$(BIN)/python bench/speed.py $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests examples tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "declip needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another interpreter: make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.core: pyproject.toml | $(VENV)/.made
	$(INSTALL) .
	@touch $@

# torch and torchvision in one call: pip then takes two that belong together.
$(VENV)/.all: pyproject.toml | $(VENV)/.made
	$(INSTALL) '.[all,dev]'
	@touch $(VENV)/.core $@
