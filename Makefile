# Two commands matter: `make book` and `make test`. Each works alone on a machine with Python 3.11 to 3.14.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
HTML := _build/html
NBVAL := --nbval --nbval-current-env --nbval-sanitize-with tests/sanitize.cfg

# One thread a process: networks of this size are bound by overhead, and processes share the cores.
export OMP_NUM_THREADS ?= 1
export PYTHONHASHSEED ?= 0

# make nbval INSTRUCTIONS=plain computes as a processor without AVX does: another order of additions.
ifeq ($(INSTRUCTIONS),plain)
export ATEN_CPU_CAPABILITY := default
export MKL_CBWR := COMPATIBLE
export ONEDNN_MAX_CPU_ISA := SSE41
export OPENBLAS_CORETYPE := Prescott
else ifneq ($(INSTRUCTIONS),)
$(error INSTRUCTIONS: got $(INSTRUCTIONS), allowed is plain)
endif

.DEFAULT_GOAL := help
.PHONY: help book live execute notebooks check replicate hooks lab serve pdf test lint unit nbval test-web bench bench-page lock clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(READY): requirements.txt constraints.txt code/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
	  { echo "Python 3.11 to 3.14 is needed: some of the pinned packages do not come for others." \
	         "Name one: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Installing the pinned packages into $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@touch $@

lock: $(READY)  ## write constraints.txt anew: every package of every platform, in its newest version that fits
	@sed '/^-c /d' requirements.txt | $(BIN)/uv pip compile - --universal --python-version 3.11 --upgrade --quiet \
	  --no-emit-package bnbook --no-annotate --custom-compile-command "make lock" --output-file constraints.txt

book: $(READY)  ## execute what changed and build the HTML
	@$(BIN)/python -m bookbuild.build

live: $(READY)  ## build, serve on http://localhost:8000, and rebuild at every save
	@$(BIN)/python -m bookbuild.live

execute: $(READY)
	@$(BIN)/python -m bookbuild.execute $(PAGE)

notebooks: execute  ## write notebooks/ from book/, executed; PAGE=batch_norm: that one alone
	@$(BIN)/python -m bookbuild.notebooks $(PAGE)

check: lint  ## all that a change of one page needs: make check PAGE=batch_norm
	@test -n "$(PAGE)" || { echo "Name a page: make check PAGE=batch_norm"; exit 1; }
	@$(BIN)/python -m bookbuild.execute $(PAGE)
	@$(BIN)/python -m bookbuild.notebooks $(PAGE)
	$(BIN)/python -m pytest -c tests/pytest.ini notebooks/$(PAGE).ipynb $(NBVAL)
	$(BIN)/python -m pytest -c tests/pytest.ini tests --ignore tests/web -k "$(notdir $(PAGE)) or claims or references"

replicate: $(READY)  ## run every page with other seeds, tell which claims flip: make replicate SEEDS=1000 [RECORD=1]
	@test -n "$(SEEDS)" || { echo "Say what is added to every seed: make replicate SEEDS=1000"; exit 1; }
	@$(BIN)/python -m bookbuild.replicate --seeds $(SEEDS) $(if $(RECORD),--record) $(PAGE)

hooks: $(READY)  ## let git check a commit before it is made
	$(BIN)/prek install

lab: $(READY)  ## open the notebooks in JupyterLab
	@mkdir -p $(VENV)/share/jupyter/lab/settings
	@# JupyterLab would ask at the first start whether it may fetch news.
	@echo '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}' \
	  > $(VENV)/share/jupyter/lab/settings/overrides.json
	$(BIN)/jupyter lab notebooks

serve: book  ## build, then serve the HTML on http://localhost:8000
	$(BIN)/python -m http.server --bind localhost --directory $(HTML) 8000

pdf: book  ## print the whole book (needs Chromium)
	$(BIN)/python -m bookbuild.pdf

test: lint unit nbval  ## style, types, unit and property tests, and nbval on every notebook

lint: $(READY)
	$(BIN)/ruff check --config code/pyproject.toml code tests benchmarks
	$(BIN)/ruff format --check --config code/pyproject.toml code tests benchmarks
	cd code && ../$(BIN)/mypy bnbook bookbuild
	cd code && ../$(BIN)/lint-imports

unit: $(READY)
	$(BIN)/python -m pytest -c tests/pytest.ini --doctest-modules tests code/bnbook --ignore tests/web \
	  --numprocesses auto --dist loadscope --cov=bnbook --cov-branch --cov-report=term:skip-covered --cov-fail-under=95

nbval: $(READY)
	@# Pages whose notebooks pass are not executed again by `make book`.
	$(BIN)/python -m pytest -c tests/pytest.ini notebooks $(NBVAL) -p bookbuild.from_nbval \
	  --numprocesses auto --dist loadscope

test-web: book  ## open the built pages in Chromium, with the network blocked
	$(BIN)/python -m pytest -c tests/pytest.ini tests/web --numprocesses auto --dist worksteal

bench: $(READY)  ## ratios of our times to those of peers
	$(BIN)/python benchmarks/bench_norms.py
	$(BIN)/python benchmarks/bench_training.py
	$(BIN)/python benchmarks/bench_race.py $(if $(FASHION_MNIST),--root $(FASHION_MNIST))

bench-page: book  ## weight and speed of the pages beside a stock Jupyter Book, speed of the playground
	$(BIN)/python benchmarks/bench_page.py
	$(BIN)/python benchmarks/bench_playground.py

clean:  ## remove what was built; the installation stays
	rm -rf _build
