# Two commands: `make serve` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
DEVICE ?= cpu
PORT ?= 8080
REMOTE_URL ?=
# Keeps compiled code for the next start.
COMPILE_CACHE ?= .cache/compiled
ARGS ?=

DEMO_MODEL := .models/SmolLM2-135M-Instruct
MODEL ?= $(DEMO_MODEL)
MODEL_NAME ?= $(notdir $(MODEL))

BIN := $(VENV)/bin
# A locked install takes nothing that the lock does not name.
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
LOCKED := install --no-deps --require-hashes -r
TORCH := torch==2.13.0+cpu
TORCH_INDEX := https://download.pytorch.org/whl/cpu
SERVE_LOCK := $(VENV)/.locked-$(DEVICE)
TEST_LOCK := $(VENV)/.locked-test
DOCS_LOCK := $(VENV)/.locked-docs

.PHONY: help install install-test serve test test-all test-cluster test-matrix test-kserve test-gpu \
	gpu-wheels lint docs reference lock clean

help:
	@echo "make serve [REMOTE_URL=redis://…] [DEVICE=gpu] [PORT=8080] [MODEL=dir or hub id] [ARGS=…]"
	@echo "make test      lint, types and the default selection of tests (what .ci/run runs)"
	@echo "make test-all  lint, types and every test that needs no cluster; takes hours"
	@echo "make test-cluster IMAGE=… [KUBECONFIG=…] [MODEL_URI=…] [OCI_MODEL=oci://…] [POLICIES=no]"
	@echo "make test-matrix [MATRIX_ARGS=--sets=0.24,…]   tests on every supported set of versions"
	@echo "make test-kserve KSERVE_SRC=DIR   the clients' tests on the versions of KServe's image"
	@echo "make test-gpu [WHEELS=DIR] [OUTPUT=DIR] [GPU_ARGS=…]   10 minutes on a machine with a GPU"
	@echo "make gpu-wheels [OUTPUT=DIR] [WHEELS_ARGS=…]   what that needs without a package index"
	@echo "make install   only the set-up, into $(VENV)"
	@echo "make docs      the documentation, into build/docs; a dead link fails"
	@echo "make reference renew the generated pages in docs/reference"
	@echo "make lock      renew the locks under requirements/"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "Python 3.11 to 3.13 is needed; choose one by PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The CPU build of torch: from where pip is configured to look, else from PyTorch's own index.
$(VENV)/.torch-cpu: | $(BIN)/python
	@echo "Installing $(TORCH)"
	@$(PIP) install --no-deps $(TORCH) 2>/dev/null \
		|| $(PIP) install --no-deps --index-url $(TORCH_INDEX) $(TORCH)
	@touch $@

$(VENV)/.torch-gpu: | $(BIN)/python
	@touch $@  # the GPU lock names torch itself

$(VENV)/.locked-%: requirements/%.txt pyproject.toml | $(BIN)/python
	@echo "Installing requirements/$*.txt"
	@$(PIP) $(LOCKED) requirements/$*.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# What the tests take from Debian: a browser, Prometheus, one more Redis (7.0, which has TLS), and what
# makes an image. A container engine as well, where none answers: Debian's would replace another one.
$(VENV)/.debian: requirements/debian.txt | $(BIN)/python
	@packages="$$(cat $<) $$(docker version > /dev/null 2>&1 || echo docker.io)"; \
		dpkg --status $$packages > /dev/null 2>&1 \
		|| { apt-get -qq update && apt-get -qq install --yes --no-install-recommends $$packages; } \
		|| { echo "Install these packages of Debian, the tests need them: $$packages" >&2; exit 1; }
	@touch $@

install: $(VENV)/.torch-$(DEVICE) $(SERVE_LOCK)

# The test lock holds everything that the CPU lock does. The tests build the documentation.
install-test: $(VENV)/.torch-cpu $(TEST_LOCK) $(DOCS_LOCK)

$(DEMO_MODEL)/config.json:
	@$(BIN)/python -m kserve_lmcache demo-model $(DEMO_MODEL)

ifeq ($(MODEL),$(DEMO_MODEL))
serve: $(DEMO_MODEL)/config.json
$(DEMO_MODEL)/config.json: | install
endif
serve: install
	@$(if $(REMOTE_URL),LMCACHE_REMOTE_URL='$(REMOTE_URL)') \
		KSERVE_LMCACHE_COMPILE_CACHE_DIR='$(COMPILE_CACHE)' \
		PYTHON=$(BIN)/python exec ./entrypoint.sh \
		--model_id='$(MODEL)' --model_name='$(MODEL_NAME)' --http_port=$(PORT) $(ARGS)

lint: install-test docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation needs no engine: only what its generator needs is installed.
$(DOCS_LOCK): requirements/docs.txt | $(BIN)/python
	@echo "Installing $<"
	@$(PIP) $(LOCKED) $<
	@touch $@

docs: $(DOCS_LOCK)
	$(BIN)/zensical build --strict --clean

# The pages in docs/reference from the code's own tables, and the picture of the benchmark.
reference: install-test
	$(BIN)/python -m docs.generate_reference
	$(BIN)/python -m docs.draw_benchmark

# What runs with either place of the local tier.
BOTH_MODES = $(addprefix tests/e2e/,test_shared_remote.py test_numerics.py test_identity.py \
	clients/test_openai_client.py)
# tests/README.md lists the markers and the options for PYTEST_ARGS. Two processes, but for the tests that
# measure; all runs, whatever fails. A run may have none of the tests that -k chooses (5).
SELECTED = $(if $(filter test-all,$@),-m 'not kubernetes') $(PYTEST_ARGS)
TWO = -n 2 --dist loadscope --no-loadscope-reorder
test test-all: lint $(VENV)/.debian
	@test -f $(DEMO_MODEL)/config.json || $(BIN)/python -m kserve_lmcache demo-model $(DEMO_MODEL)
	@failed=0; pytest() { $(BIN)/pytest "$$@" $(SELECTED) || [ $$? = 5 ] || failed=1; }; \
	pytest $(TWO) --alone=no tests/e2e tests/integration tests/packaging tests/unit; \
	pytest $(TWO) --mode=multiprocess $(BOTH_MODES); \
	pytest --alone=only tests/e2e tests/integration; \
	exit $$failed

# On any cluster with KServe: in namespaces of its own, which are gone at the end. Nothing that a policy
# keeps out can be seen where no network plugin enforces policies: POLICIES=no leaves these tests out.
KUBECONFIG ?=
MODEL_URI ?= hf://HuggingFaceTB/SmolLM2-135M-Instruct
OCI_MODEL ?=
POLICIES ?= yes
test-cluster: install-test
	@test -n '$(IMAGE)' || { echo "IMAGE=…: this package's image for CPUs" >&2; exit 1; }
	$(BIN)/pytest -m kubernetes --cluster-kubeconfig='$(KUBECONFIG)' --cluster-image='$(IMAGE)' \
		--cluster-model='$(MODEL_URI)' --cluster-oci-model='$(OCI_MODEL)' \
		$(if $(OCI_MODEL),,--deselect tests/cluster/test_models.py::test_a_model_from_an_image) \
		$(if $(filter no,$(POLICIES)),--deselect tests/cluster/test_policies.py) \
		$(PYTEST_ARGS) tests/cluster

# Each set of versions in an environment of its own below .venv-matrix (tests/matrix).
MATRIX := $(PYTHON) -m tests.matrix
test-matrix:
	$(MATRIX) $(or $(MATRIX_ARGS),--page=docs/contributing/pins.md)

# The clients' tests on the versions of KServe's own image, with its huggingfaceserver on the path.
test-kserve:
	@test -d '$(KSERVE_SRC)/python/huggingfaceserver' \
		|| { echo "KSERVE_SRC=DIR: a checkout of KServe (v0.21.0)" >&2; exit 1; }
	$(MATRIX) --sets=0.24 --only-install
	PYTHONPATH='$(abspath $(KSERVE_SRC))/python/huggingfaceserver' \
		.venv-matrix/0.24/bin/python -m pytest $(or $(PYTEST_ARGS),tests/e2e/clients)

# One script of ten minutes for a machine with a GPU (tests/gpu). It reaches no package index: WHEELS
# is what gpu-wheels makes. Without WHEELS it runs in the environment that is there.
GPU_DEVICE = $(if $(filter command environment,$(firstword $(origin DEVICE))),$(DEVICE),auto)
test-gpu:
	$(PYTHON) -m tests.gpu --device=$(GPU_DEVICE) $(if $(WHEELS),--wheels=$(WHEELS)) \
		$(if $(OUTPUT),--output=$(OUTPUT)) $(GPU_ARGS)

gpu-wheels:
	$(PYTHON) -m tests.gpu.wheels pack --output=$(or $(OUTPUT),build/gpu-wheels) $(WHEELS_ARGS)

# Hashes and no addresses, so that the locks work wherever packages come from.
OVERRIDES = --overrides overrides.txt --overrides
COMPILE = .venv-lock/bin/uv pip compile --quiet --upgrade --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'
lock:
	$(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet uv
	cd requirements && rm -f cpu.txt test.txt vllm-*.txt gpu*.txt sbom.txt docs.txt
	cd requirements && ../$(COMPILE) --universal --python-version 3.11 \
		$(OVERRIDES) overrides-cpu.txt test.in -o test.txt
	cd requirements && ../$(COMPILE) --universal --python-version 3.11 \
		$(OVERRIDES) overrides-cpu.txt --constraints test.txt cpu.in -o cpu.txt
	cd requirements && ../$(COMPILE) --python-version 3.12 --python-platform x86_64-manylinux_2_28 \
		gpu.in -o gpu.txt
	cd requirements && ../$(COMPILE) --python-version 3.12 --python-platform x86_64-manylinux_2_28 \
		--overrides overrides-gpu.txt --constraints gpu.txt gpu-test.in -o gpu-test.txt
	cd requirements && ../$(COMPILE) --universal --python-version 3.11 \
		$(OVERRIDES) vllm-0.24.in test.in -o vllm-0.24.txt
	cd requirements && ../$(COMPILE) --universal --python-version 3.11 \
		$(OVERRIDES) overrides-cpu.txt --overrides vllm-0.28.in test.in -o vllm-0.28.txt
	cd requirements && ../$(COMPILE) --universal --python-version 3.11 sbom.in -o sbom.txt
	cd requirements && ../$(COMPILE) --universal --python-version 3.11 \
		--constraints test.txt docs.in -o docs.txt

clean:
	rm -rf $(VENV) .venv-matrix .venv-lock .models build .cache
