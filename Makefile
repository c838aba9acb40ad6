# Every target sets up what it needs: Python 3.11 or newer, make and a C++ compiler are enough to start.

PYTHON ?= python3
COMPILER := $(if $(filter default,$(origin CXX)),c++,$(CXX))
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
BENCHES ?= bench
OUT ?= runs/bench.json
BASELINE ?= $(wildcard bench/results/speed-*.json)

NATIVE := $(shell find csrc -type f)
# Vendored files keep their own style, so that they stay identical to upstream's.
SOURCES := $(shell find csrc -path csrc/third_party -prune -o \( -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) -print)
# The build tools' warnings address packagers only, so they are off; errors are shown.
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: help grid test test-faults sanitize lint format bench bench-check clean
.DELETE_ON_ERROR:

help:
	@echo 'make grid         train the study on the built-in images and write its page  (ARGS="--dry-run" adds arguments)'
	@echo 'make test         run the tests                                              (ARGS="-k dropout" adds arguments)'
	@echo 'make test-faults  kill, fill, corrupt and fuzz for a quarter of an hour     (FAULTS="--fault-seed 1" repeats others)'
	@echo 'make sanitize     run the tests of native code with memory access checked    (ARGS="-k augment" adds arguments)'
	@echo 'make lint         check style, types and the direction of imports'
	@echo 'make format       format Python and C++'
	@echo 'make bench        measure everything but whole studies, into runs/bench.json (ARGS="--quick"; BENCHES=bench/test_forms.py)'
	@echo 'make bench-check  check that no recorded speedup over PyTorch has shrunk     (BASELINE=runs/bench.json)'
	@echo 'make clean        remove build outputs and the environment; keep runs/'
	@echo ''
	@echo 'The first use creates the environment in $(VENV)/; PYTHON=python3.12 chooses its Python.'

grid: $(VENV)/.installed
	@$(BIN)/fasttransfer grid --split natural-manmade $(ARGS)

# As many tests at a time as there are cores, up to four, for each may need gigabytes; a file's share what they set up.
# Each has one thread, and compiles without helpers, which take as long to start as all there is to compile.
PYTEST := OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# The kernels of csrc/cuda are tested by `make sanitize`.
test: $(VENV)/.installed
	@$(PYTEST) --ignore tests/cuda $(ARGS)

# The tests of faults again, each with many faults instead of a few; their seed decides which.
FAULTS ?= --fault-seed 0
test-faults: $(VENV)/.installed
	@$(PYTEST) -o faulthandler_timeout=0 --fault-trials 20 --fault-seconds 60 $(FAULTS) tests/faults $(ARGS)

# This builds the libraries for CPUs and for shards in a copy of the package with GCC's sanitizers. The sanitizers must
# load before anything else, and so must libstdc++, whose exceptions they intercept. Leak detection is off because
# Python itself does not free all of its memory.
SANITIZED := build/sanitize
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined
WARNINGS := -Wall -Wextra -Werror
RUNTIMES = $(foreach name,asan ubsan stdc++,$(shell $(COMPILER) -print-file-name=lib$(name).so))

sanitize: $(VENV)/.installed
	@[ -e '$(firstword $(RUNTIMES))' ] || \
		{ echo "make sanitize needs GCC and its libasan: name it with make CXX=g++." >&2; exit 2; }
	@rm -rf $(SANITIZED)/fasttransfer && mkdir -p $(SANITIZED) && cp -RL fasttransfer $(SANITIZED)/
	@rm -f $(SANITIZED)/fasttransfer/ops/_native_* $(SANITIZED)/fasttransfer/features/_shards*
	@FASTTRANSFER_CUDA=0 CXX=$(COMPILER) CFLAGS='$(SANITIZERS) $(WARNINGS) -g1 -fno-omit-frame-pointer' LDFLAGS='$(SANITIZERS)' \
		$(BIN)/python setup.py --quiet build_ext --build-lib $(SANITIZED) --build-temp $(SANITIZED)/objects \
		> $(SANITIZED)/build.txt 2>&1 || { cat $(SANITIZED)/build.txt; exit 1; }
	@FASTTRANSFER_CUDA=0 PYTHONPATH=$(SANITIZED) LD_PRELOAD='$(RUNTIMES)' ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		$(BIN)/python -P -m pytest --capture=sys -m 'not compiled and not gpu' \
		tests/ops tests/features/test_shards.py --ignore tests/ops/test_forms.py $(ARGS) || [ $$? -eq 5 ]  # of the tests that ARGS choose, none is here
	@$(BIN)/python -m pytest tests/cuda $(ARGS) || [ $$? -eq 5 ]

lint: $(VENV)/.installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(call typed,build/typed)
	@cd build/typed && ../../$(BIN)/lint-imports --no-logo --no-cache ../../pyproject.toml > ../imports.txt || { cat ../imports.txt; exit 1; }
	@$(BIN)/clang-format --dry-run -Werror $(SOURCES)
	@$(call tidied,build/tidy)

format: $(VENV)/.installed
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(SOURCES)

bench: $(VENV)/.installed
	@mkdir -p $(dir $(OUT))
	@$(BIN)/python -m pytest -s -q --benchmark-quiet --benchmark-json=$(OUT) $(BENCHES) -k 'not test_grid' $(ARGS)

bench-check: $(VENV)/.installed
	@$(BIN)/fasttransfer bench operators --quick --baseline $(BASELINE)
	@$(BIN)/fasttransfer bench step --quick --only mini --baseline $(BASELINE)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find fasttransfer pipelines tests bench -name __pycache__ -prune -exec rm -rf {} +
	rm -f $(foreach end,so dylib pyd,fasttransfer/ops/_native_*.$(end) fasttransfer/features/_shards.*$(end))

# The flags are those of setup.py, with PyTorch's headers as a system's.
define tidied
mkdir -p $(1) && $(BIN)/python -c 'import sysconfig; from torch.utils.cpp_extension import include_paths; \
	print(*(f"-isystem{path}" for path in [*include_paths("cpu"), sysconfig.get_paths()["include"]]))' \
	2> /dev/null > $(1)/includes.txt && \
printf '%s\n' $(wildcard csrc/cpu/*.cpp csrc/shards/*.cpp) | xargs -P $$(getconf _NPROCESSORS_ONLN) -I FILE \
	$(BIN)/clang-tidy --quiet FILE -- -std=c++20 -Icsrc $$(cat $(1)/includes.txt) \
	-DTORCH_STABLE_ONLY -DTORCH_TARGET_VERSION=0x020a000000000000 > $(1)/found.txt 2> $(1)/errors.txt || \
	{ cat $(1)/found.txt; grep -v 'warnings generated' $(1)/errors.txt; exit 1; }
endef

# mypy cannot follow packages that setup.py maps from other folders, so it gets a folder of links that looks like the
# installed package, with bench/ beside it. sed makes the paths that it prints those of the tree.
define typed
rm -rf $(1) && mkdir -p $(1)/fasttransfer $(1)/bench && \
ln -s ../../setup.py $(1)/ && ln -s ../../../bench/suites $(1)/fasttransfer/bench && \
for entry in fasttransfer/* pipelines; do ln -s ../../../$$entry $(1)/fasttransfer/; done && \
for entry in bench/*.py; do ln -s ../../../$$entry $(1)/bench/; done && \
( cd $(1) && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache \
	fasttransfer bench setup.py > ../typed.txt; status=$$?; \
  sed 's|^fasttransfer/pipelines/|pipelines/|; s|^fasttransfer/bench/|bench/suites/|' ../typed.txt; exit $$status )
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

# The imports of the native library's build come first, so that PyTorch is downloaded once.
$(VENV)/.tools: constraints.txt | $(VENV)/bin/python
	@echo 'Setting up $(VENV): the first time this downloads PyTorch, on Linux several GB, and takes minutes.'
	@$(PIP) pip setuptools ninja torch
	@touch $@

$(VENV)/.installed: pyproject.toml setup.py $(NATIVE) $(VENV)/.tools
	@echo 'Building and installing fasttransfer into $(VENV).'
	@CXX=$(COMPILER) $(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@
