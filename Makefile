# crungo: `make demo` and `make test` work as the first command in a fresh clone. `make help` lists the rest.
#
# A step leaves a stamp in build/stamps and is not repeated while nothing that it depends on has changed. Nothing is
# written outside the checkout, apt's packages aside.

PYTHON ?= python3
BIN := .venv/bin
STAMPS := build/stamps

# Containers need root. Where make is not run by root, sudo runs the steps that make containers, and those alone.
# Without sudo they say themselves what they miss.
SUDO := $(shell [ "$$(id -u)" = 0 ] || ! command -v sudo >/dev/null || echo sudo --preserve-env=PATH,HOME,TERM,PYTHONDONTWRITEBYTECODE)
ROOT_PYTHON := PYTHONDONTWRITEBYTECODE=1 $(SUDO) $(BIN)/python

NATIVE := setup.py $(wildcard crungo/*/native/* crungo/runtime/programs/*)
SOURCES := pyproject.toml MANIFEST.in README.md LICENSE NOTICE $(NATIVE) $(shell find crungo -name '*.py' -o -name '*.json')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: docs soak bench bench-run bench-pull bench-thousand fuzz help setup check format test test-unit test-integration test-wheel test-v2 demo build clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(STAMPS)/installed ## packages, .venv and the native module

check: $(STAMPS)/installed ## lint and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(STAMPS)/installed ## put the code into the house's form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: check test-unit test-integration ## lint, types, unit and integration tests

test-unit: $(STAMPS)/installed ## tests that need neither root nor a network
	$(BIN)/python -m pytest tests/unit

test-integration: $(STAMPS)/installed $(STAMPS)/host-test $(STAMPS)/wheelhouse $(STAMPS)/debian-12 ## real registry, containers, terminals
	$(ROOT_PYTHON) -m pytest -p no:cacheprovider tests/integration

test-wheel: $(STAMPS)/installed $(STAMPS)/host-test $(STAMPS)/wheelhouse $(STAMPS)/debian-12 ## the wheel in a bare Debian 12
	$(ROOT_PYTHON) -m pytest -p no:cacheprovider tests/integration/test_wheel.py

test-v2: $(STAMPS)/installed $(STAMPS)/host-vm $(STAMPS)/debian-12 ## what depends on cgroup v2, in a virtual machine (minutes)
	@$(ROOT_PYTHON) scripts/vm.py

demo: $(STAMPS)/installed $(STAMPS)/host-demo ## a tour: pull and run from a throw-away registry
	@$(ROOT_PYTHON) scripts/demo.py

bench: bench-run bench-pull bench-thousand ## all benchmarks

BENCH := $(STAMPS)/installed $(STAMPS)/host-bench $(STAMPS)/venv-bench

bench-run: $(BENCH) ## containers, exec and streams, beside installed peers (7 minutes)
	@$(ROOT_PYTHON) -m bench.run $(BENCH_OPTIONS)

bench-pull: $(BENCH) ## pulls, beside installed peers (the first time also makes the images; 7 minutes)
	@$(ROOT_PYTHON) -m bench.pull $(BENCH_OPTIONS)

bench-thousand: $(BENCH) ## a thousand containers at once
	@$(ROOT_PYTHON) -m bench.thousand $(BENCH_OPTIONS)

soak: $(STAMPS)/installed $(STAMPS)/host-demo ## ten thousand containers in a row: nothing may grow (minutes)
	@$(ROOT_PYTHON) -m tests.soak 10000

docs: $(STAMPS)/installed $(STAMPS)/venv-docs ## the documentation, in site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

fuzz: $(STAMPS)/installed ## feed the unpacker with damaged archives, for a minute
	@$(ROOT_PYTHON) fuzz/run.py --seconds 60

build: $(STAMPS)/dist ## an sdist and a wheel, in dist/

clean: ## remove everything that make has made
	@rm -rf build dist site .venv .demo crungo.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis 2>/dev/null \
	  || $(SUDO) rm -rf build dist .venv .demo crungo.egg-info
	@rm -f crungo/*/_*.c crungo/*/_*.o crungo/*/_*.so crungo/runtime/crungo-init crungo/runtime/crungo-isolate crungo/runtime/crungo-forks crungo/runtime/crungo-unpack
	@find crungo tests scripts bench examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# The steps.

$(STAMPS):
	@mkdir -p $@

$(STAMPS)/host-%: scripts/host_packages.py | $(STAMPS)
	@$(PYTHON) scripts/host_packages.py $*
	@touch $@

$(STAMPS)/venv: scripts/make_venv.py pyproject.toml $(STAMPS)/host-build
	@$(PYTHON) scripts/make_venv.py examples
	@touch $@

$(STAMPS)/venv-%: scripts/make_venv.py pyproject.toml $(STAMPS)/venv
	@$(PYTHON) scripts/make_venv.py $*
	@touch $@

$(STAMPS)/installed: $(STAMPS)/venv $(NATIVE)
	@echo "building the native module (the first time takes half a minute)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

# From a source distribution, so that one which lacks a file fails here.
$(STAMPS)/dist: $(STAMPS)/installed $(SOURCES) scripts/build_dist.py
	@$(BIN)/python scripts/build_dist.py
	@touch $@

$(STAMPS)/wheelhouse: $(STAMPS)/dist scripts/wheelhouse.py
	@$(BIN)/python scripts/wheelhouse.py
	@touch $@

$(STAMPS)/debian-12: $(STAMPS)/host-test scripts/debian_root.py
	@$(SUDO) $(PYTHON) scripts/debian_root.py
	@touch $@
