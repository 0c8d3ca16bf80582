# make reproduce [PROFILE=smoke|quick|paper] · make test · make help
PROFILE ?= quick
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help reproduce test book serve lint bench install lock clean distclean
.DEFAULT_GOAL := help

help:
	@echo "make reproduce [PROFILE=smoke|quick|paper]   run every figure and build the book (default: quick)"
	@echo "make test                                    run the tests"
	@echo "make serve     [PROFILE=...]                 show the book at http://localhost:8000"
	@echo "make lint | bench                            check the code | measure the speed"
	@echo "make install | lock                          only install into .venv | write the locked versions anew"
	@echo "make clean | distclean                       delete the runs' products | .venv and networks as well"

reproduce: $(VENV)/.run
	@$(BIN)/isorepro reproduce --profile $(PROFILE)

# The book is built at the end of every run; after a change to its pages only, nothing else is done again.
book: reproduce

test: $(VENV)/.run
	@echo "== running the tests"
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

serve: $(VENV)/.run
	@test -f _output/$(PROFILE)/book/index.html || { echo "error: no book for '$(PROFILE)' yet; run: make reproduce PROFILE=$(PROFILE)"; exit 1; }
	@echo "the book: http://localhost:8000 (stop with Ctrl-C)"
	@$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory _output/$(PROFILE)/book

lint: $(VENV)/.run
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/.run
	@$(BIN)/python benchmarks/speed.py

clean:
	@if [ -x $(BIN)/isorepro ]; then $(BIN)/isorepro clean; fi

# Only a .venv that make itself made, which says so.
distclean:
	@if [ -x $(BIN)/isorepro ]; then $(BIN)/isorepro clean --all; else echo "left as it is, without $(BIN)/isorepro: _output"; fi
	@if [ -f $(VENV)/.isorepro ]; then rm -rf "$(VENV)"; elif [ -e $(VENV) ]; then echo "left as it is, since make did not make it: $(VENV)"; fi

PIP := $(BIN)/python -m pip --disable-pip-version-check
GET_UV = $(PIP) install --quiet --only-binary :all: --require-hashes -r requirements-uv.lock
# uv does not read pip's configuration: the index that pip is set to is handed on.
INDEX = $$($(PIP) config list | sed -n "s/^[^=]*\.index-url='\(.*\)'$$/\1/p" | head -n 1)
UV = UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$(INDEX)}" $(BIN)/uv

install: $(VENV)/.run

# The newest versions that pyproject.toml allows, one of each package for all systems and Pythons, and of uv itself.
# The next make installs them.
COMPILE = $(UV) pip compile --quiet --upgrade --generate-hashes --no-annotate --custom-compile-command "make lock"
lock: $(VENV)/.run
	@$(GET_UV)
	@$(COMPILE) --universal --fork-strategy fewest --python-version 3.11 --all-extras --output-file requirements.lock pyproject.toml
	@echo uv | $(COMPILE) --output-file requirements-uv.lock -

# Compiled at once, as pip does: a package's first import must neither count as a notebook's time nor warn (POT does).
$(VENV)/.run: pyproject.toml requirements.lock requirements-uv.lock
	@if [ -e $(VENV) ] && [ ! -f $(VENV)/.isorepro ] && [ ! -f $(VENV)/.run ]; then echo "error: make did not make $(VENV), and would change what is installed there: move it elsewhere, or name another with make VENV=..."; exit 1; fi
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"error: Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}; name another with make PYTHON=...")'
	@echo "== installing the locked versions into $(VENV) (once: a few minutes, 7 GB)"
	@test -x $(BIN)/python || { if mkdir $(VENV) 2> /dev/null; then touch $(VENV)/.isorepro; fi; $(PYTHON) -m venv $(VENV); }
	@{ $(GET_UV) && $(UV) pip install --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock; } || { \
	  echo "== uv is not to be had here, or failed: installing with pip, which takes longer"; \
	  $(PIP) install --require-hashes -r requirements.lock; }
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@
