# Commands for contributors. Every target prepares what it needs and skips what is up to date.
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
WITH_NVCC = home=$$(cat $(VENV)/nvcc 2>/dev/null); [ ! -d "$$home" ] || export CUDA_HOME="$$home"
WITH_NINJA = PATH="$(abspath $(BIN)):$$PATH"  # PyTorch calls ninja by name, and without it compiles one file after the other
SAY = @printf '\033[1mudskd:\033[0m %s\n'
.DEFAULT_GOAL = help
.PHONY: help build build-all demo test test-all test-newest sanitize gpu bench wheel wheel-here test-wheel lint format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

build: $(VENV)/built  ## create the environment in .venv and compile the library for this machine: with CUDA kernels if it has a GPU

build-all: $(VENV)/built-all  ## compile the CUDA kernels too, for all architectures (or those of TORCH_CUDA_ARCH_LIST)

demo: build  ## train a teacher, then ce, kd and udskd on generated images; prints a table and draws a figure
	$(SAY) "starting the demo (the first import of PyTorch can take a minute)"
	@$(BIN)/udskd demo

# worksteal: a worker takes a block of consecutive tests, so that most modules set up their fixtures once.
TESTS = $(BIN)/python -m pytest -q -n auto --dist worksteal

test: build  ## run the tests of every behaviour, a few minutes (those that need a GPU are skipped without one)
	@$(TESTS) -m 'not slow'

test-all: build  ## run all tests, the slow ones too, as .ci/run does
	@$(TESTS)

# Uses the machine's own Python, PyTorch and nvcc, because machines with a GPU often have no network.
gpu:  ## build, test, sanitize and benchmark on a machine with an NVIDIA GPU, within 8 minutes [OUT=dir ONLY=parts]
	@$(PYTHON) -m bench.gpu --out $(OUT)$(if $(ONLY), --only '$(ONLY)')

bench: build  ## measure the loss beside eager and compiled PyTorch on one thread; results in build/bench
	@$(BIN)/python -m bench.loss --device cpu --threads 1 --json build/bench/loss.json --markdown build/bench/loss.md --plot build/bench

lint: $(VENV)/installed  ## check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict udskd
	@find csrc -type f -regex '.*\.\(cpp\|cu\|h\)' | xargs $(BIN)/clang-format --dry-run -Werror

format: $(VENV)/installed  ## format all sources
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .
	@find csrc -type f -regex '.*\.\(cpp\|cu\|h\)' | xargs $(BIN)/clang-format -i

clean:  ## remove the environments and everything that was built
	rm -rf $(VENV) $(VENV)-3.* $(NEWEST) build dist *.egg-info udskd/*.so

# --- the environment --------------------------------------------------------------------------------------------------------------

$(VENV)/ready: Makefile
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("udskd needs Python 3.10 or newer: make PYTHON=python3.12")'
	@command -v c++ >/dev/null || { echo "udskd needs a C++ compiler, such as g++ (Debian: apt install g++)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(SAY) "installing PyTorch and the build's tools into $(VENV) (a minute or two)"
	@$(PIP) install $(TORCH) 'setuptools>=77,<82' wheel ninja 'pybind11>=3'
	@touch $@

# Finds a CUDA compiler of PyTorch's major version, or installs one with pip. The file holds its folder, or "found".
$(VENV)/nvcc: $(VENV)/ready
	@if PATH="$${CUDA_HOME:-$$CUDA_PATH}/bin:$$PATH" nvcc --version 2>/dev/null | grep -q 'release 13'; then echo found >$@; \
	elif [ "$$(uname -s)" != Linux ]; then echo "there is no CUDA compiler for this system"; exit 1; \
	else \
	  printf '\033[1mudskd:\033[0m no nvcc 13 on this machine, installing the one from pip\n'; \
	  $(PIP) install $(NVCC) && ls -d "$$PWD"/$(VENV)/lib/python3*/site-packages/nvidia/cu13 >$@; \
	fi

# Installs the package without its library: setuptools would recompile everything each time; ninja, below, recompiles only what changed.
$(VENV)/installed: $(VENV)/ready pyproject.toml setup.py
	$(SAY) "installing what udskd and its tests depend on"
	@UDSKD_NATIVE=0 $(PIP) install --no-build-isolation -e '.[all,dev]'
	@touch $@

WANTS_CUDA = $(BIN)/python -c 'import setup; raise SystemExit(not setup.wants_cuda())' 2>/dev/null
INPLACE = --inplace
COMPILE = mkdir -p build; $(WITH_NVCC); \
  $(WITH_NINJA) UDSKD_STRICT=1 $(BIN)/python setup.py build_ext $(INPLACE) >build/log 2>&1 || { cat build/log; exit 1; }

# A library for all architectures is up to date here too: build-all touches both files.
$(VENV)/built: $(VENV)/installed $(NATIVE)
	@! $(WANTS_CUDA) || $(MAKE) --no-print-directory $(VENV)/nvcc
	$(SAY) "compiling the library for this machine (a minute or two; longer for a GPU)"
	@rm -f $(VENV)/built-all
	@$(COMPILE)
	@touch $@

$(VENV)/built-all: $(VENV)/nvcc $(VENV)/installed $(VENV)/architectures $(NATIVE)
	$(SAY) "compiling the library with CUDA kernels for $${TORCH_CUDA_ARCH_LIST:-all architectures} (many minutes)"
	@export FORCE_CUDA=1; $(COMPILE)
	@touch $(VENV)/built $@

# Is written when TORCH_CUDA_ARCH_LIST changes.
$(VENV)/architectures: $(VENV)/ready always
	@echo "$$TORCH_CUDA_ARCH_LIST" | cmp -s - $@ || echo "$$TORCH_CUDA_ARCH_LIST" >$@

.PHONY: always
always:

# --- wheels -----------------------------------------------------------------------------------------------------------------------

# Every other Python gets an environment of its own, such as .venv-3.12, and links the objects that the first one has compiled.
PYTHONS = python3.10 python3.11 python3.12 python3.13 python3.14
VERSION = import sys; print("%d.%d" % sys.version_info[:2])
OBJECTS = build/temp.*-$$($(BIN)/python -c 'import sys; print(sys.implementation.cache_tag)')$(if $(filter 0,$(FORCE_CUDA)),,-cuda)

wheel: export FORCE_CUDA := $(or $(FORCE_CUDA),1)
wheel: INPLACE =
wheel: $(VENV)/installed  ## build an sdist and wheels in dist, for every python3.10 to python3.14 on PATH and all GPUs, and test them
	@[ "$$(uname -s)" = Linux ] || { echo "make wheel needs Linux: its wheels are manylinux wheels"; exit 1; }
	@[ $(FORCE_CUDA) = 0 ] || $(MAKE) -s --no-print-directory $(VENV)/nvcc
	$(SAY) "compiling the library $(if $(filter 0,$(FORCE_CUDA)),without CUDA kernels,with CUDA kernels for $${TORCH_CUDA_ARCH_LIST:-all architectures} (many minutes))"
	@rm -f dist/udskd-*; $(COMPILE)
	@$(WITH_NVCC); \
	export UDSKD_OBJECTS=$$(echo "$$PWD"/$(OBJECTS)); own=$$($(BIN)/python -c '$(VERSION)'); \
	$(MAKE) --no-print-directory wheel-here test-wheel || exit; \
	for python in $(PYTHONS); do \
	  version=$$($$python -c '$(VERSION)' 2>/dev/null) || continue; \
	  there=$(VENV)-$$version; \
	  [ $$version = $$own ] || $(MAKE) -s --no-print-directory VENV=$$there PYTHON=$$python $$there/installed wheel-here test-wheel || exit; \
	done
	@ls dist

# Builds the wheel of one Python from the sdist, and gives it the oldest manylinux tag that its symbols allow. PyTorch's libraries are those
# of the PyTorch that is imported first; CUDA's runtime is linked statically.
wheel-here:
	$(SAY) "building a wheel for $$($(BIN)/python --version)"
	@rm -rf udskd.egg-info build/wheel && mkdir -p build/wheel
	@$(BIN)/python -m build --sdist --no-isolation --outdir dist . >build/wheel/log 2>&1 || { cat build/wheel/log; exit 1; }
	@$(WITH_NINJA) $(PIP) wheel --no-index --no-deps --no-build-isolation -w build/wheel dist/udskd-*.tar.gz
	@$(WITH_NINJA) $(BIN)/python -m auditwheel repair --exclude 'libtorch*.so' --exclude 'libc10*.so' -w dist build/wheel/*.whl \
	  >build/wheel/log 2>&1 || { cat build/wheel/log; exit 1; }

test-wheel:
	@UDSKD_DIST=$(CURDIR)/dist $(BIN)/python -m pytest -q -m packaging tests/test_packaging.py

# --- the same library under the newest PyTorch -------------------------------------------------------------------------------------

$(NEWEST)/ready: Makefile
	@test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(SAY) "installing the registry's newest PyTorch into $(NEWEST) (a minute or two)"
	@$(NEWEST_PIP) install --upgrade torch torchvision
	@touch $@

test-newest: build-all $(NEWEST)/ready  ## test the library as built against PyTorch 2.11 under the newest PyTorch
	$(SAY) "packing the compiled library into a wheel and installing it into $(NEWEST)"
	@rm -rf build/newest && mkdir -p build/newest && cp -r tests build/newest/
	@$(WITH_NVCC); $(WITH_NINJA) FORCE_CUDA=1 UDSKD_STRICT=1 $(PIP) wheel --no-deps --no-build-isolation -w build/newest .
	@$(NEWEST_PIP) install $$(echo build/newest/udskd-*.whl)'[train]' pytest pytest-timeout hypothesis
	@$(NEWEST_PIP) install --force-reinstall --no-deps build/newest/udskd-*.whl
	@cmp udskd/_C.*.so $(NEWEST)/lib/python3*/site-packages/udskd/_C.*.so
	@cd build/newest && ../../$(NEWEST)/bin/python -m udskd
	@cd build/newest && ../../$(NEWEST)/bin/python -m pytest -q -c ../../pyproject.toml --rootdir . tests/loss
	@cd build/newest && ../../$(NEWEST)/bin/udskd train ../../udskd/demo/demo.toml --teacher.epochs 1 --training.epochs 1 --output run

# --- the CPU kernels under sanitizers ----------------------------------------------------------------------------------------------

# Python is built without the sanitizer's runtime, which must therefore be loaded before it, together with libstdc++, whose exception
# functions the runtime looks up when it starts. Leaks are not checked, because Python and PyTorch do not free everything at exit. After
# an abort, pytest names the test. GPUs are hidden, because this build has no CUDA kernels.
UNDER_ASAN = CUDA_VISIBLE_DEVICES= LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1:abort_on_error=1
# Prints the SIMD levels of this machine, as the library under test reports them.
LEVELS = import torch; from udskd import _C, build_info; had = build_info(); levels = had["simd_levels"]; \
  assert _C.__file__.startswith("$(CURDIR)/build/sanitize/"), _C.__file__; print(*levels[: levels.index(had["simd"]) + 1])
# Runs pytest without LD_PRELOAD in the environment: processes that tests start, such as torch.compile's g++, can hang with the runtime.
PYTEST = import os, sys, pytest; del os.environ["LD_PRELOAD"]; sys.exit(pytest.main())

# capture=sys: with pytest's default, an abort loses the captured report of the sanitizer.
SANITIZED = -q -x -rfE -p no:cacheprovider --capture=sys

# Leaves out test_simd.py, which starts the tests again for other levels, and the reference backend, which runs no C++. The tests of the
# CUDA kernels run in parallel with those of the SIMD levels; their output is printed after them.
sanitize: $(VENV)/installed  ## run the operator's tests under AddressSanitizer and UBSan: every SIMD level, and emulated CUDA
	$(SAY) "compiling the CPU kernels with sanitizers into build/sanitize"
	@mkdir -p build/sanitize && cd build/sanitize && rm -rf csrc tests udskd recipes
	@tar -c --exclude=__pycache__ --exclude='*.so' csrc tests udskd recipes setup.py pyproject.toml README.md LICENSE | tar -x -C build/sanitize
	@cd build/sanitize && $(WITH_NINJA) FORCE_CUDA=0 UDSKD_SANITIZE=1 UDSKD_STRICT=1 ../../$(BIN)/python setup.py build_ext --inplace --force >log 2>&1 || \
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
	    -m 'not gpu and not emulated and not subprocess' -k 'not [reference' --ignore tests/loss/test_simd.py \
	    tests/loss tests/data/test_resize.py tests/data/test_resize_bad_input.py || { kill $$emulated; exit 1; }; \
	done; \
	wait $$emulated; status=$$?; \
	printf '\033[1mudskd:\033[0m the CUDA kernels in the emulator\n'; cat emulated.log; exit $$status
