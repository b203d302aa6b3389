# What a contributor types. Every target sets up what it needs; what is done already is not done again.
PYTHON ?= python3
OUT ?= build/gpu
TORCH = torch==2.11.0 torchvision==0.26.0
NVCC = 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-cccl==13.0.*'

VENV = .venv
NEWEST = .venv-newest
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check -qq
NEWEST_PIP = $(NEWEST)/bin/python -m pip --disable-pip-version-check -qq
NATIVE = setup.py $(shell find csrc -type f)
WITH_NVCC = home=$$(cat $(VENV)/nvcc); [ ! -d "$$home" ] || export CUDA_HOME="$$home"
SAY = @printf '\033[1mudskd:\033[0m %s\n'
.DEFAULT_GOAL = help
.PHONY: help build demo test test-newest sanitize gpu bench lint format clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

build: $(VENV)/built  ## environment in .venv, library compiled in place

demo: build  ## teacher, then ce, kd and udskd on generated images: a table and a picture
	@$(BIN)/udskd demo

test: build  ## the test-suite (tests that need a GPU skip themselves without one)
	@$(BIN)/python -m pytest -q -n auto

# With the machine's own Python, PyTorch and nvcc: such machines often have no network.
gpu:  ## on a machine with an NVIDIA GPU: build for it, tests, sanitizers, benchmarks, all within 8 minutes [OUT=dir ONLY=parts]
	@$(PYTHON) -m bench.gpu --out $(OUT)$(if $(ONLY), --only '$(ONLY)')

bench: build  ## the loss beside eager and compiled PyTorch, one thread of this CPU; also to build/bench
	@$(BIN)/python -m bench.loss --device cpu --threads 1 --json build/bench/loss.json --markdown build/bench/loss.md --plot build/bench

lint: build  ## style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict udskd
	@find csrc -type f -regex '.*\.\(cpp\|cu\|h\)' | xargs $(BIN)/clang-format --dry-run -Werror

format: build  ## rewrite the sources in the house style
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .
	@find csrc -type f -regex '.*\.\(cpp\|cu\|h\)' | xargs $(BIN)/clang-format -i

clean:  ## remove the environments and all that was built
	rm -rf $(VENV) $(NEWEST) build dist *.egg-info udskd/*.so

# --- the environment --------------------------------------------------------------------------------------------------------------

$(VENV)/ready: Makefile
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("udskd needs Python 3.10 or newer: make PYTHON=python3.12")'
	@command -v c++ >/dev/null || { echo "udskd needs a C++ compiler, such as g++ (Debian: apt install g++)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(SAY) "installing PyTorch and the build's tools into $(VENV) (a minute or two)"
	@$(PIP) install $(TORCH) 'setuptools>=77,<82' wheel ninja 'pybind11>=3'
	@touch $@

# A CUDA compiler of PyTorch's own major version, from pip where the machine has none, so that the kernels are compiled everywhere.
$(VENV)/nvcc: $(VENV)/ready
	@if [ "$$UDSKD_CUDA" = 0 ]; then echo unused >$@; \
	elif PATH="$${CUDA_HOME:-$$CUDA_PATH}/bin:$$PATH" nvcc --version 2>/dev/null | grep -q 'release 13'; then echo found >$@; \
	elif [ "$$(uname -s)" != Linux ]; then echo none >$@; \
	else \
	  printf '\033[1mudskd:\033[0m no nvcc 13 on this machine, installing the one from pip\n'; \
	  $(PIP) install $(NVCC) && ls -d "$$PWD"/$(VENV)/lib/python3*/site-packages/nvidia/cu13 >$@; \
	fi

# Without its library: setuptools compiles an editable package from scratch every time, and ninja, below, only what changed.
$(VENV)/installed: $(VENV)/ready pyproject.toml setup.py
	$(SAY) "installing what udskd and its tests depend on"
	@UDSKD_NATIVE=0 $(PIP) install --no-build-isolation -e '.[dev]'
	@touch $@

$(VENV)/built: $(VENV)/nvcc $(VENV)/installed $(NATIVE)
	$(SAY) "compiling the C++ and CUDA sources"
	@mkdir -p build
	@$(WITH_NVCC); UDSKD_STRICT=1 $(BIN)/python setup.py build_ext --inplace >build/log 2>&1 || { cat build/log; exit 1; }
	@touch $@

# --- the same library under the newest PyTorch -------------------------------------------------------------------------------------

$(NEWEST)/ready: Makefile
	@test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(SAY) "installing the registry's newest PyTorch into $(NEWEST) (a minute or two)"
	@$(NEWEST_PIP) install --upgrade torch torchvision
	@touch $@

test-newest: build $(NEWEST)/ready  ## the library as built against 2.11, unchanged, under the newest PyTorch
	$(SAY) "packing the library as it is into a wheel, installing it into $(NEWEST)"
	@rm -rf build/newest && mkdir -p build/newest && cp -r tests build/newest/
	@$(WITH_NVCC); UDSKD_STRICT=1 $(PIP) wheel --no-deps --no-build-isolation -w build/newest .
	@$(NEWEST_PIP) install build/newest/udskd-*.whl pytest pytest-timeout hypothesis
	@$(NEWEST_PIP) install --force-reinstall --no-deps build/newest/udskd-*.whl
	@cmp udskd/_C.*.so $(NEWEST)/lib/python3*/site-packages/udskd/_C.*.so
	@cd build/newest && ../../$(NEWEST)/bin/python -m udskd
	@cd build/newest && ../../$(NEWEST)/bin/python -m pytest -q -c ../../pyproject.toml --rootdir . tests/loss
	@cd build/newest && ../../$(NEWEST)/bin/udskd train ../../udskd/demo/demo.toml --teacher.epochs 1 --training.epochs 1 --output run

# --- the CPU kernels under sanitizers ----------------------------------------------------------------------------------------------

# The runtime goes before Python, which was built without it, and libstdc++ with it, whose exceptions it looks up when it starts.
# Memory that Python and PyTorch still hold at exit would count as leaked. On abort, pytest says which test it was. No GPU: this
# build has nothing for one.
UNDER_ASAN = CUDA_VISIBLE_DEVICES= LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1:abort_on_error=1
# This machine's levels, said by the very library that is to be tested.
LEVELS = import torch; from udskd import _C, build_info; had = build_info(); levels = had["simd_levels"]; \
  assert _C.__file__.startswith("$(CURDIR)/build/sanitize/"), _C.__file__; print(*levels[: levels.index(had["simd"]) + 1])
# What tests start in turn, such as torch.compile's g++, runs without the runtime: it could hang there.
PYTEST = import os, sys, pytest; del os.environ["LD_PRELOAD"]; sys.exit(pytest.main())

# capture=sys: otherwise a finding is written to a file that pytest no longer gets to show.
SANITIZED = -q -x -rfE -p no:cacheprovider --capture=sys

# Not test_simd.py, which starts the tests again for other levels; nor the reference backend, which runs no C++. The CUDA kernels'
# tests run beside those of the levels, and are shown after them.
sanitize: $(VENV)/installed  ## the operator's tests under AddressSanitizer and UndefinedBehaviorSanitizer: every SIMD level, and CUDA's
	$(SAY) "compiling the CPU kernels with sanitizers into build/sanitize"
	@mkdir -p build/sanitize && cd build/sanitize && rm -rf csrc tests udskd recipes
	@tar -c --exclude=__pycache__ --exclude='*.so' csrc tests udskd recipes setup.py pyproject.toml README.md LICENSE | tar -x -C build/sanitize
	@cd build/sanitize && UDSKD_CUDA=0 UDSKD_SANITIZE=1 UDSKD_STRICT=1 ../../$(BIN)/python setup.py build_ext --inplace --force >log 2>&1 || \
	  { cat log; exit 1; }
	@for runtime in asan ubsan; do \
	  nm -D build/sanitize/udskd/_C.*.so | grep -q "__$${runtime}_" || { echo "the library was built without $$runtime"; exit 1; }; \
	done
	@cd build/sanitize && levels=$$(UDSKD_SIMD= $(UNDER_ASAN) ../../$(BIN)/python -c '$(LEVELS)') || exit; \
	UDSKD_EMULATED_SANITIZE=1 $(UNDER_ASAN) ../../$(BIN)/python -c '$(PYTEST)' $(SANITIZED) \
	  -m emulated tests/loss/test_emulated.py tests/loss/test_extremes.py tests/loss/test_raw_operators.py tests/loss/test_scaling.py \
	  tests/data/test_resize_emulated.py \
	  >emulated.log 2>&1 & emulated=$$!; trap 'kill $$emulated 2>/dev/null; exit 130' INT TERM; \
	for level in $$levels; do \
	  printf '\033[1mudskd:\033[0m %s\n' "$$level"; \
	  UDSKD_SIMD=$$level $(UNDER_ASAN) ../../$(BIN)/python -c '$(PYTEST)' $(SANITIZED) \
	    -m 'not gpu and not emulated' -k 'not [reference and not simd_level and not nothing_beyond' --ignore tests/loss/test_simd.py \
	    tests/loss tests/data/test_resize.py tests/data/test_resize_bad_input.py || { kill $$emulated; exit 1; }; \
	done; \
	wait $$emulated; status=$$?; \
	printf '\033[1mudskd:\033[0m the CUDA kernels, on the CPU, meanwhile\n'; cat emulated.log; exit $$status
