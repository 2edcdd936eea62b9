# Two commands: `make serve` runs Roadtrain, `make test` tests it. Each sets up .venv first.
# `make serve ARGS="--port 9000"` passes flags on; `make serve MODEL=org/name` picks a model.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# Compute threads that spin while they wait would fight with the test's other processes for the cores.
export OMP_WAIT_POLICY := passive

.PHONY: serve test full warm chaos soak fuzz compat lint constraints wheels clean

serve: $(VENV)/.serve
	@exec $(BIN)/roadtrain serve $(MODEL) $(ARGS)

test: $(VENV)/.dev lint warm
	$(BIN)/python -m pytest -m "not full" $(ARGS)
	$(BIN)/python -O -m pytest -m "optimized and not full" $(ARGS)

full: $(VENV)/.dev lint warm
	$(BIN)/python -m pytest $(ARGS)

# The chaos that `make test` runs, alone.
chaos: $(VENV)/.dev warm
	$(BIN)/python -m pytest -m "chaos and not full" $(ARGS)

# An hour of random faults; the report is soak/report.md. `make soak ARGS="--minutes 5 --seed 7"` is shorter, and repeats a seed.
soak: $(VENV)/.dev
	$(BIN)/python -m tests.chaos.soak --minutes 60 $(ARGS)

# An hour of fuzzing, every target in turn. `make fuzz ARGS="gguf --seconds 60"` runs one for a minute.
fuzz: $(VENV)/.dev
	@$(PIP) --no-build-isolation --editable ".[fuzz]"
	$(BIN)/python -m tests.fuzz $(ARGS)

# Other people's clients and their own tests, each in an environment of its own under .compat; writes docs/compatibility.md's tables.
compat: $(VENV)/.dev warm
	$(BIN)/python -m tests.compat $(ARGS)

# The default model fetched and the kernels compiled, so that no test waits for either.
warm: $(VENV)/.serve
	@$(BIN)/roadtrain pull >/dev/null
	@$(BIN)/python -c 'import kernels; from shared.config import cache_dir; kernels.load("cpu", cache_dir() / "kernels")'

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

COMPILE := $(BIN)/uv pip compile pyproject.toml --extra dev --extra redis --extra fuzz --only-binary :all: --quiet --no-header --no-annotate

# Pins the newest versions that resolve for every CPython from 3.11 on.
constraints: $(VENV)/.dev
	$(COMPILE) --universal --python-version 3.11 --output-file constraints.txt

# Whether what constraints.txt pins has binary wheels for each CPython; installs nothing.
wheels: $(VENV)/.dev
	@for version in 3.11 3.12 3.13 3.14; do \
		$(COMPILE) --constraint constraints.txt --python-version $$version --python-platform x86_64-manylinux_2_39 >/dev/null \
			&& echo "CPython $$version: every package has a binary wheel" || exit 1; \
	done

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
