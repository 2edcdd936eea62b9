# Two commands: `make serve` runs Roadtrain, `make test` tests it. Each sets up .venv first.
# `make serve ARGS="--port 9000"` passes flags on; `make serve MODEL=org/name` picks a model.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: serve test full lint wheels clean

serve: $(VENV)/.serve
	@exec $(BIN)/roadtrain serve $(MODEL) $(ARGS)

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -m "not full" $(ARGS)
	$(BIN)/python -O -m pytest -m "optimized and not full" $(ARGS)

full: $(VENV)/.dev lint
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Whether what constraints.txt pins has binary wheels for CPython 3.11 to 3.14; needs a package index.
wheels: $(VENV)/.dev
	$(BIN)/python deploy/constraints.py check

clean:
	rm -rf $(VENV) shared/pb

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Roadtrain needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "making $(VENV)" >&2
	@$(PYTHON) -m venv $(VENV)

# The extra `redis` brings a redis-server; a machine that has one does not need it.
$(VENV)/.serve: $(BIN)/python pyproject.toml constraints.txt protos/*.proto
	@echo "installing Roadtrain (a few minutes, once)" >&2
	@$(PIP) hatchling grpcio-tools
	@$(PIP) --no-build-isolation --editable ".[serve$(if $(shell command -v redis-server),,$(comma)redis)]"
	@touch $@

$(VENV)/.dev: $(VENV)/.serve
	@echo "installing what the tests need" >&2
	@$(PIP) --no-build-isolation --editable ".[dev]"
	@touch $@

comma := ,
