# Every target sets up what it needs: Python 3.11 or newer, make and a C++ compiler are enough to start.

PYTHON ?= python3
COMPILER := $(if $(filter default,$(origin CXX)),c++,$(CXX))
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
BENCHES ?=

NATIVE := $(shell find csrc -type f)
# Vendored files keep their own style, so that they stay identical to upstream's.
SOURCES := $(shell find csrc -path csrc/third_party -prune -o \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) -print)
# Without the build tools' warnings, which only speak to packagers; errors are shown.
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: help grid test sanitize lint format bench bench-check clean
.DELETE_ON_ERROR:

help:
	@echo 'make grid      train the study on the built-in images and write its page   (ARGS="--dry-run" adds arguments)'
	@echo 'make test      run the tests                                                 (ARGS="-k dropout" adds arguments)'
	@echo 'make sanitize  run the tests of native code with every access to memory checked            (ARGS="-k augment" likewise)'
	@echo 'make lint      check style, types and the direction of imports'
	@echo 'make format    put Python and C++ into shape'
	@echo 'make bench     measure everything and write a page of it, in 15 minutes     (ARGS=--quick; BENCHES=bench/test_forms.py)'
	@echo 'make bench-check           compare how much faster than PyTorch things are with what was recorded'
	@echo 'make clean     remove what was built, the environment included; studies in runs/ stay'
	@echo ''
	@echo 'The environment in $(VENV)/ is made on first use; PYTHON=python3.12 chooses the Python for it.'

grid: $(VENV)/.installed
	@$(BIN)/fasttransfer grid --split natural-manmade $(ARGS)

test: $(VENV)/.installed
	@$(BIN)/python -m pytest $(ARGS)

# A copy of the package, its libraries for CPUs and for shards built with the sanitizers of GCC. They have to be in the
# process before anything else, and libstdc++ with them, whose exceptions they follow. Python itself never frees all
# that it holds: no search for leaks.
SANITIZED := build/sanitize
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined
RUNTIMES = $(foreach name,asan ubsan stdc++,$(shell $(COMPILER) -print-file-name=lib$(name).so))

sanitize: $(VENV)/.installed
	@[ -e '$(firstword $(RUNTIMES))' ] || \
		{ echo "make sanitize needs GCC and its libasan: name it with make CXX=g++." >&2; exit 2; }
	@rm -rf $(SANITIZED)/fasttransfer && mkdir -p $(SANITIZED) && cp -RL fasttransfer $(SANITIZED)/
	@rm -f $(SANITIZED)/fasttransfer/ops/_native_* $(SANITIZED)/fasttransfer/features/_shards*
	@FASTTRANSFER_CUDA=0 CXX=$(COMPILER) CFLAGS='$(SANITIZERS) -g1 -fno-omit-frame-pointer' LDFLAGS='$(SANITIZERS)' \
		$(BIN)/python setup.py --quiet build_ext --build-lib $(SANITIZED) --build-temp $(SANITIZED)/objects \
		> $(SANITIZED)/build.txt 2>&1 || { cat $(SANITIZED)/build.txt; exit 1; }
	@PYTHONPATH=$(SANITIZED) LD_PRELOAD='$(RUNTIMES)' ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		$(BIN)/python -P -m pytest --capture=sys -m 'not compiled and not gpu' \
		tests/ops/test_native.py::test_the_library_is_built_and_loaded tests/ops tests/features/test_shards.py $(ARGS)

lint: $(VENV)/.installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(call typed,build/typed)
	@cd build/typed && ../../$(BIN)/lint-imports --no-logo --no-cache ../../pyproject.toml > ../imports.txt || { cat ../imports.txt; exit 1; }
	@$(BIN)/clang-format --dry-run -Werror $(SOURCES)

format: $(VENV)/.installed
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(SOURCES)

# The page of everything; or suites, one JSON each, the machine described inside.
bench: $(VENV)/.installed
ifeq ($(BENCHES),)
	@$(BIN)/fasttransfer bench all $(ARGS)
else
	@mkdir -p bench/results
	@for suite in $(BENCHES); do \
		name=$$(basename $$suite .py); \
		$(BIN)/python -m pytest $$suite --benchmark-json=bench/results/$${name#test_}.json $(ARGS) || exit; \
	done
endif

bench-check: $(VENV)/.installed
	@$(BIN)/python bench/check.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find fasttransfer pipelines tests bench -name __pycache__ -prune -exec rm -rf {} +
	rm -f $(foreach end,so dylib pyd,fasttransfer/ops/_native_*.$(end) fasttransfer/features/_shards.*$(end))

# mypy knows no packages that are mapped from elsewhere: it is shown a folder of links that looks like what gets
# installed. Standing there, the paths it prints are those of the tree but for pipelines/.
define typed
rm -rf $(1) && mkdir -p $(1)/fasttransfer && \
ln -s ../../setup.py $(1)/ && \
for entry in fasttransfer/* pipelines bench; do ln -s ../../../$$entry $(1)/fasttransfer/; done && \
( cd $(1) && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache \
	fasttransfer setup.py > ../typed.txt; status=$$?; \
  sed 's|^fasttransfer/\(pipelines\|bench\)/|\1/|' ../typed.txt; exit $$status )
endef

$(VENV)/bin/python:
	@command -v $(PYTHON) > /dev/null || \
		{ echo "There is no $(PYTHON): install Python 3.11 or newer, or name one with make PYTHON=python3.12." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), 3.11 or newer is needed: name one with make PYTHON=python3.12." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
		{ echo "$(PYTHON) lacks the venv module: install it (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 2; }
	@command -v $(COMPILER) > /dev/null || \
		{ echo "There is no C++ compiler ($(COMPILER)): install one (on Debian and Ubuntu: apt install g++) or name one with make CXX=clang++." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV)

# What the build of the native library imports comes first, so that PyTorch is downloaded once.
$(VENV)/.tools: constraints.txt | $(VENV)/bin/python
	@echo 'Setting up $(VENV): the first time this downloads PyTorch, on Linux several GB, and takes minutes.'
	@$(PIP) pip setuptools ninja torch
	@touch $@

$(VENV)/.installed: pyproject.toml setup.py $(NATIVE) $(VENV)/.tools
	@echo 'Building and installing fasttransfer into $(VENV).'
	@CXX=$(COMPILER) $(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@
