# `make train` and `make test` do everything on a fresh machine; the first one sets up .venv.

.DEFAULT_GOAL := help
.PHONY: train results test test-native test-faults test-gpu lint format build bench pretrain golden clean help
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
LIBRARY := kernels/cpp_impl/liblcpo_kernels.so

# OpenMP threads spin while they wait unless told not to, and then one other busy process makes small
# torch ops some 15 times slower (docs/benchmarks.md). It is read once, when torch is imported.
export OMP_WAIT_POLICY ?= PASSIVE

train: .venv/.installed ## train the L1-Exact model; ARGS="train.steps=20 seed=1" overrides settings
	$(PY) -m trainer.run +experiment=l1_exact $(ARGS)

results: .venv/.installed ## train and judge the paper's claims in miniature: docs/results.md, three seeds and ablations
	$(PY) -m trainer.results $(ARGS)

test: .venv/.installed ## run all tests
	$(PY) -m pytest $(ARGS)

test-native: .venv/.installed ## build the C++ kernels under ASan and UBSan and run their own tests
	$(PY) -m pytest tests/kernels/test_csrc.py $(ARGS)

test-faults: .venv/.installed ## kill real runs at random moments and compare how they end; KILLS=500
	LCPO_KILLS=$(or $(KILLS),50) $(PY) -m pytest -m slow tests/fault $(ARGS)

test-gpu: .venv/.installed ## run the tests that need a CUDA device
	$(PY) -m pytest -m gpu $(ARGS)

lint: .venv/.installed ## check style; `make format` repairs what can be repaired
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

format: .venv/.installed
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: .venv/.installed ## time the ops and the training step; on an idle machine only
	$(PY) -m bench $(ARGS)

pretrain: .venv/.installed ## make the embedded base model again
	$(PY) -m trainer.pretrain $(ARGS)

golden: .venv/.installed ## write the golden numbers again, after a change that is meant to change them
	$(PY) -m tests.numerics.golden

build: .venv/.installed ## build the native library again and show what the compiler says
	rm -rf build $(LIBRARY)
	$(PIP) install -v --no-deps -e .

clean: ## remove .venv, build outputs and caches; runs/ stays
	rm -rf .venv build $(LIBRARY) *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s%s\n", $$1, $$2 }' Makefile

# ---- set-up -------------------------------------------------------------------------------------
# The newest Python that can make a virtual environment; PYTHON=/path/to/python names another one.
PYTHONS := $(or $(PYTHON),python3.14 python3.13 python3.12 python3.11 python3.10 python3)
USABLE := import ensurepip, sys; sys.exit(sys.version_info < (3, 10))

.venv/bin/pip:
	@for python in $(PYTHONS); do \
	  if $$python -c '$(USABLE)' 2>/dev/null; then exec $$python -m venv .venv; fi; \
	done; \
	echo "No Python 3.10 or newer with its venv module among: $(PYTHONS)." >&2; \
	echo "Debian, Ubuntu: apt install python3 python3-venv. Elsewhere: make PYTHON=/path/to/it" >&2; \
	exit 1

# PyPI's torch for Linux carries CUDA, several gigabytes. Without a CUDA device take the pinned CPU
# build: from where pip looks anyway, else from PyTorch's own index, asked briefly as it may be blocked.
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
CPU_TORCH := $(PIP) install -q --no-deps -c constraints-cpu.txt torch

.venv/.installed: pyproject.toml setup.py CMakeLists.txt constraints-cpu.txt \
                  $(shell find kernels/csrc -type f) | .venv/bin/pip
	@echo "Installing into .venv: minutes the first time, seconds after a change of the C++ sources"
	@if nvidia-smi -L >/dev/null 2>&1; then pins=""; \
	elif $(CPU_TORCH) 2>/dev/null || $(CPU_TORCH) --index-url $(CPU_INDEX) --timeout 15 --retries 1; \
	then pins="-c constraints-cpu.txt"; \
	else pins=""; echo "No CPU build of torch within reach: taking the default one, large on Linux"; \
	fi; \
	rm -f $(LIBRARY); $(PIP) install -q $$pins -e '.[dev]'
	@test -e $(LIBRARY) || echo "C++ kernels not built, CPU ops use torch; \`make build\` shows why"
	@touch $@
