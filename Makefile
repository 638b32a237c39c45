PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# The CPU build of torch is what a server without a GPU needs; any version that pyproject.toml allows will do.
TORCH ?= torch==2.13.0
# Carrier of the real Triton server (2.51.0, release 24.10). Its Python dependencies are not needed and pin numpy below 2.
TRITON_SERVER := nvidia-pytriton==0.7.0

# Debian and Ubuntu leave two parts of Python out: what makes a venv, and the shared library that the server's
# Python process is linked to.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
APT := $(SUDO) apt-get install --yes
VERSION = $$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
HAS_LIBPYTHON = $(BIN)/python -c 'from sana_build.bundle import find_libpython; find_libpython()' 2>/dev/null

.PHONY: help setup demo live browser test style types bench bench-live bench-gpu card quality search clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv and install everything, the bundled Triton server included

$(STAMP): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("sana-build needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(APT) python$(VERSION)-venv
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --no-deps $(TRITON_SERVER)
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(HAS_LIBPYTHON) || $(APT) libpython$(VERSION)
	@touch $@

demo: setup ## compile the tiny model, serve it, edit the shipped clip: see out/
	$(BIN)/sana-build --model tiny --gpu cpu --output out/repo
	$(BIN)/python examples/demo.py

live: setup ## compile the tiny model, and open it to a browser: webcam, files, several viewers
	test -f out/repo/manifest.json || $(BIN)/sana-build --model tiny --gpu cpu --output out/repo
	$(BIN)/sana-gateway up out/repo --media assets

browser:
	@command -v chromium chromium-browser google-chrome >/dev/null || $(APT) chromium || \
		{ $(SUDO) apt-get update && $(APT) chromium; } || echo 'no Chromium: the tests of the page are skipped'

test: setup browser ## run the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not server' -n 2 --dist loadfile
	$(BIN)/python -m pytest -m server

style: setup ## check formatting and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup ## check types
	$(BIN)/mypy

bench: setup ## measure the served pipeline against its stages
	$(BIN)/python benchmarks/serving.py

bench-live: setup ## measure the gateway: eight live sessions, and what survives when parts of it die
	$(BIN)/python benchmarks/gateway_load.py
	$(BIN)/python benchmarks/gateway_chaos.py

bench-gpu: setup ## check and time the torch backend, on a machine with a GPU
	$(BIN)/python benchmarks/gpu

card: setup ## all that a machine with a GPU has to say: kernel tests, bench-gpu, repositories built and served
	$(BIN)/python benchmarks/card.py

quality: setup ## measure the edits of the tiny checkpoint through the server
	$(BIN)/python benchmarks/tiny_quality.py

search: setup ## search the precision policy of the tiny model: docs/search-tiny.md
	$(BIN)/sana-build search --model tiny --gpu rtx5090 --workers 2 --output out/search-tiny
	mkdir -p docs/search-tiny
	cp out/search-tiny/*.png out/search-tiny/*.jpg docs/search-tiny
	sed 's,](,](search-tiny/,' out/search-tiny/report.md > docs/search-tiny.md

clean: ## remove what the other targets made
	rm -rf out $(VENV) .pytest_cache .mypy_cache .ruff_cache
