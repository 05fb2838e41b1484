# Each of these does all its set-up on a fresh machine that has nothing but python3 (3.11 or newer), and does it once.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
CONFIG := recipes/configs/filter_finetune/sandbox.yaml

.DEFAULT_GOAL := demo
.PHONY: demo test lint

demo: $(READY)  ## The main job on the sandbox: generate, score, select, fine-tune, evaluate, report.
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		recipes/filter_finetune.py --config $(CONFIG)

test: $(READY)
	$(BIN)/pytest

lint: $(READY)  ## Style, format and types.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright --pythonpath $(BIN)/python

# The environment is exactly requirements.lock, and the project itself, editable. It is compiled, as the tests start many
# processes, some where nothing may be written beside the code. Without a working uv on the PATH, one is installed in a
# virtual environment of its own (the system's python may be externally managed).
$(READY): requirements.lock pyproject.toml
	@uv --version >/dev/null 2>&1 || test -x .uv/bin/uv || { $(PYTHON) -m venv .uv && .uv/bin/pip install --quiet uv; }
	@set -e; if uv --version >/dev/null 2>&1; then uv=uv; else uv=.uv/bin/uv; fi; \
	$$uv venv --quiet --allow-existing --python $(PYTHON) .venv; \
	$$uv pip sync --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock; \
	$$uv pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $(READY)
