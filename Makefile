# Two commands matter: `make app` opens the workbench, `make test` checks it. Both set everything up.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PORT   ?= 5006

.PHONY: app test test-all lint bench browser notebooks screenshots translations docs clean
.DEFAULT_GOAL := app

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[app,jupyter,search,distributed,hf,docs,dev]"
	# An editable install puts no files into etc/jupyter: NetronView needs its routes switched on.
	$(BIN)/jupyter server extension enable workbench.netron_server --sys-prefix 2>/dev/null
	touch $@

app: $(READY)
	$(BIN)/panel serve apps/ --address localhost --port $(PORT) --show

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# A browser for the tests: the system's Chromium if there is one, else Debian's as root, else Playwright's own.
browser: $(READY)
	@if command -v chromium >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y chromium >/dev/null; \
	else $(BIN)/playwright install chromium; fi

# One thread a process: three test processes share two cores, because those with a browser wait for
# most of their time. A file is run by one of them, in the order of tests/conftest.py: the longest begin.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder
# The tests start many processes: each compiles our sources anew unless it may keep what it compiled.
unexport PYTHONDONTWRITEBYTECODE

test: lint browser
	$(PYTEST) -m "not slow"

test-all: lint browser
	$(PYTEST)

bench: $(READY)
	$(BIN)/python -m benchmarks

notebooks: $(READY)
	$(BIN)/jupyter lab notebooks

screenshots: browser
	$(BIN)/python docs/screenshots.py

# Texts of the code into workbench/locale/*/LC_MESSAGES/workbench.po, and those compiled.
translations: $(READY)
	$(BIN)/python tools/translations.py

# The site in docs/build, built anew: parts of pages are read from the code. A warning is an error.
docs: $(READY)
	$(BIN)/python docs/diagrams.py
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -E -a -W --keep-going -q -b html docs docs/build
	@echo "docs/build/index.html"

clean:
	rm -rf $(VENV) build dist docs/build *.egg-info .mypy_cache .ruff_cache .pytest_cache
