# make demo     the whole way on a synthetic world; make test: the whole suite. Both make .venv first.
# make .venv    BUILD=cuda for NVIDIA GPUs
# make lint     style, types, import contracts
# make soak     campaigns of an hour: kills, broken files, checkpoints under every plan
# make docs     the documentation as HTML in build/docs, warnings as errors
# make other-versions TORCH=2.14  tests with the releases of requirements/torch-2.14.txt; PYTHON=python3.12, PYTEST_ARGS
# make lock     new lock files; UPGRADE=--upgrade moves every pin, without it only those that pyproject.toml forces
# make check-cuda  whether the CUDA lock still resolves, from the wheels' metadata alone

PYTHON ?= python3.11
BUILD ?= cpu
PYTEST_ARGS ?=
UPGRADE ?=
PIP := .venv/bin/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install -q --root-user-action=ignore --no-deps --no-build-isolation
NO_WHEEL := "If pip found no torch==2.13.0+cpu: name PyTorch's CPU package index in PIP_EXTRA_INDEX_URL and run make again."

.PHONY: demo test soak lint docs other-versions lock check-cuda clean .venv

.venv: .venv/$(BUILD)

# --no-deps: the locks are whole closures, and torchrec's own wish would put a CUDA build of FBGEMM over the CPU one.
# launch.txt comes last: torchx holds urllib3 at 1.26, which nothing else does.
.venv/$(BUILD): requirements/$(BUILD).txt requirements/dev.txt requirements/launch.txt \
                requirements/fbgemm-gpu/pyproject.toml pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	rm -f .venv/cpu .venv/cuda
	@echo "installing requirements/$(BUILD).txt, requirements/dev.txt and requirements/launch.txt"
	@$(INSTALL) -r requirements/$(BUILD).txt -r requirements/dev.txt || { echo $(NO_WHEEL); exit 1; }
	$(INSTALL) -r requirements/launch.txt
	$(if $(filter cpu,$(BUILD)),$(INSTALL) ./requirements/fbgemm-gpu)
	$(INSTALL) -e .
	$(PIP) check
	touch $@

demo: .venv
	.venv/bin/python -m launch.demo

# Tests start ranks of their own: one thread each keeps them from spinning against one another. Three workers keep two
# cores busy, as many tests wait for ranks; the tests of a file share a worker, and with it what the file makes once.
# PYTEST_ARGS comes last and wins: make test PYTEST_ARGS="-n 0 tests/sid"
test: .venv
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

soak: .venv
	OMP_NUM_THREADS=1 .venv/bin/python -m tests.soak all --out build/soak

lint: .venv
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy sidrec data_prep launch benchmarks tests
	.venv/bin/lint-imports

docs: .venv
	.venv/bin/sphinx-build -q -W --keep-going -b html docs build/docs

# The locks' packages, and over them another torch, torchrec and FBGEMM with what they need. PyPI has CUDA builds of torch
# alone: without a GPU they compute as CPU builds do, and the mark of one makes sidrec's commands take FBGEMM's CPU build.
# Not tests/golden: recorded losses are bits of one torch release.
TORCH ?= 2.14
OTHER := build/torch-$(TORCH)
other-versions: $(OTHER)/installed
	OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(OTHER)/bin:$$PATH" $(OTHER)/bin/python -m pytest -n 1 --ignore tests/golden $(PYTEST_ARGS)

$(OTHER)/installed: requirements/torch-$(TORCH).txt requirements/cpu.txt requirements/dev.txt requirements/launch.txt \
                    requirements/fbgemm-gpu/pyproject.toml pyproject.toml setup.py
	$(PYTHON) -m venv $(OTHER)
	grep -vE '^(torch|torchrec|fbgemm-gpu-cpu)==' requirements/cpu.txt > $(OTHER)/rest.txt
	$(subst .venv,$(OTHER),$(INSTALL)) -r $(OTHER)/rest.txt -r requirements/dev.txt
	$(subst .venv,$(OTHER),$(INSTALL)) -r requirements/launch.txt
	$(subst .venv,$(OTHER),$(PIP)) install -q --root-user-action=ignore --no-build-isolation \
	  -r requirements/torch-$(TORCH).txt ./requirements/fbgemm-gpu
	$(subst .venv,$(OTHER),$(INSTALL)) -e .
	sed -i 's/^cuda: .*/cuda: Optional[str] = None/' $(OTHER)/lib/python3*/site-packages/torch/version.py
	touch $@

# The CPU wheel of torch may lie in a folder that only pip is told about; CUDA must not see it. dev.txt serves both
# builds, so it leaves torch to them.
COMPILE := build/uv/bin/uv pip compile -q --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
  --no-annotate --custom-compile-command "make lock" $(UPGRADE)
EXTRAS := --extra data --extra study --extra export --extra serve
LAUNCH := import tomllib; file = open('pyproject.toml', 'rb'); \
  print(*tomllib.load(file)['project']['optional-dependencies']['launch'], sep='\n')
lock: build/uv/bin/uv
	UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(COMPILE) pyproject.toml --extra cpu $(EXTRAS) \
	  --no-emit-package fbgemm-gpu -o requirements/cpu.txt
	$(COMPILE) pyproject.toml --extra cuda $(EXTRAS) -o requirements/cuda.txt
	UV_FIND_LINKS="$(PIP_FIND_LINKS)" $(COMPILE) --group dev -c requirements/cpu.txt --no-emit-package torch \
	  -o requirements/dev.txt
	grep -v ^urllib3 requirements/cpu.txt > build/uv/pins.txt
	$(PYTHON) -c "$(LAUNCH)" | $(COMPILE) - -c build/uv/pins.txt -o requirements/launch.txt

# Fails where a pin is missing, two disagree, or one has no wheel for Linux x86_64 and Python 3.11.
check-cuda: build/uv/bin/uv
	$(COMPILE) --only-binary :all: requirements/cuda.txt -o build/uv/cuda.txt
	diff requirements/cuda.txt build/uv/cuda.txt

build/uv/bin/uv:
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install -q uv

clean:
	rm -rf .venv build demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
