# make reproduce [PROFILE=smoke|quick|paper] · make test · make help
PROFILE ?= quick
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help reproduce test book serve lint bench clean distclean lock
.DEFAULT_GOAL := help

help:
	@echo "make reproduce [PROFILE=smoke|quick|paper]   run every figure and build the book (default: quick)"
	@echo "make test                                    run the tests"
	@echo "make serve     [PROFILE=...]                 show the book at http://localhost:8000"
	@echo "make lint | bench                            check the code | measure the speed"
	@echo "make clean | distclean                       delete the runs' products | .venv and networks as well"

reproduce: $(VENV)/.run
	@$(BIN)/isorepro reproduce --profile $(PROFILE)

# The book is built at the end of every run; after a change to its pages only, nothing else is done again.
book: reproduce

test: $(VENV)/.test
	@echo "== running the tests"
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

serve: $(VENV)/.run
	@test -f _output/$(PROFILE)/book/index.html || { echo "error: no book for '$(PROFILE)' yet; run: make reproduce PROFILE=$(PROFILE)"; exit 1; }
	@echo "the book: http://localhost:8000 (stop with Ctrl-C)"
	@$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory _output/$(PROFILE)/book

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/.test
	@$(BIN)/python benchmarks/speed.py

clean:
	@if [ -x $(BIN)/isorepro ]; then $(BIN)/isorepro clean; fi

distclean:
	@if [ -x $(BIN)/isorepro ]; then $(BIN)/isorepro clean --all; else echo "left as it is, without $(BIN)/isorepro: _output"; fi
	@$(REMOVE_VENV)

# Only one that make itself made, which says so.
REMOVE_VENV = if [ -f "$(VENV)/.isorepro" ]; then rm -rf "$(VENV)"; elif [ -e $(VENV) ]; then echo "left as it is, since make did not make it: $(VENV)"; fi
MAKE_VENV = if mkdir $(VENV) 2> /dev/null; then touch $(VENV)/.isorepro; fi; $(PYTHON) -m venv $(VENV)

# Write requirements.lock anew: the newest versions that pyproject.toml allows.
lock:
	@$(REMOVE_VENV)
	@if [ -e $(VENV) ]; then echo "error: the lock is written from a fresh $(VENV): move that one elsewhere"; exit 1; fi
	$(MAKE_VENV)
	$(BIN)/python -m pip install -e ".[test,explore]"
	$(BIN)/python -m pip freeze --exclude-editable | grep -E '^[A-Za-z0-9._-]+==' > $(VENV)/lock
	mv $(VENV)/lock requirements.lock
	touch $(VENV)/.run $(VENV)/.test

$(VENV)/.run: pyproject.toml requirements.lock
	@if [ -e $(VENV) ] && [ ! -f $(VENV)/.isorepro ] && [ ! -f $(VENV)/.run ]; then echo "error: make did not make $(VENV), and would change what is installed there: move it elsewhere, or name another with make VENV=..."; exit 1; fi
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"error: Python 3.11 or newer is needed, $(PYTHON) is {v[0]}.{v[1]}; name another with make PYTHON=...")'
	@echo "== installing the locked versions into $(VENV) (once: a few minutes, 6 GB)"
	@test -x $(BIN)/python || { $(MAKE_VENV); }
	@$(BIN)/python -m pip install --disable-pip-version-check -c requirements.lock -e .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	@echo "== installing what the tests need"
	@$(BIN)/python -m pip install --disable-pip-version-check -c requirements.lock -e ".[test]"
	@touch $@
