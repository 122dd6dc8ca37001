# Every target sets up what it needs: `make demo` and `make test` work on a fresh machine with only Python 3.11+ (and its venv module).

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN = $(VENV)/bin
RAY_VENV ?= .venv-ray
STAMP = $(VENV)/.installed
PYTEST_ARGS ?=

.PHONY: help venv demo test chaos soak lint format bench bench-quick bench-learning clean

help:
	@echo "make demo         evolution strategies on CartPole: one page of user code"
	@echo "make test         the test suite"
	@echo "make chaos        a cluster under kill -9 for ten to twenty minutes: eight workloads, results compared with the serial program"
	@echo "make soak         10,000 seeds of simulated clusters in which everything breaks, and 100 times the usual of one node's"
	@echo "make lint         ruff, mypy, import contracts"
	@echo "make format       let ruff format and fix what it can"
	@echo "make bench        the engine's benchmark beside Ray, Dask and the stdlib pools (installs Ray into $(RAY_VENV))"
	@echo "make bench-quick  the same without Ray and Dask: ours and the stdlib pools, shorter; fails when a target is missed, as on a busy machine"
	@echo "make bench-learning  figures of learning, training, search and the compared systems, into docs/benchmarks.md (35 minutes at most)"
	@echo "make clean        remove the environments, and what builds and runs have left here"

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11+ with venv found; install one or run: make PYTHON=/path/to/python"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,demo,bench]'
	@touch $(STAMP)

venv: $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/evolution_strategies.py

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

soak: $(STAMP)
	$(BIN)/python -m shoal.simulator campaign --seeds 10000
	PYTHONPATH=src $(BIN)/python -m tests.campaigns refs --seeds 10000
	SHOAL_EXAMPLES=soak $(BIN)/python -m pytest -q -m hypothesis
	SHOAL_SIM_SEEDS=1200 $(BIN)/python -m pytest -q tests/runtime/test_task_simulation.py tests/runtime/test_actor_simulation.py \
		tests/runtime/test_owner_simulation.py
	SHOAL_OWNER_PLANS=3000 $(BIN)/python -m pytest -q --timeout 1200 tests/engine/test_owner_chaos.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src
	PYTHONPATH=src $(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

chaos: $(STAMP)
	SHOAL_CHAOS_SECONDS=20 $(BIN)/python -m pytest tests/chaos -s $(PYTEST_ARGS)

$(RAY_VENV)/.installed:
	@test -x $(RAY_VENV)/bin/python || $(BIN)/python -m venv $(RAY_VENV)
	$(RAY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'ray==2.60.*' numpy psutil
	@touch $@

bench: $(STAMP) $(RAY_VENV)/.installed
	$(BIN)/python benchmarks/engine.py --ray $(RAY_VENV)/bin/python --json out/engine.jsonl; \
	$(BIN)/python benchmarks/report.py out/engine.jsonl

bench-learning: $(STAMP) $(RAY_VENV)/.tune
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[rl,tune,train,mujoco]'
	$(BIN)/python benchmarks/learning.py --ray $(RAY_VENV)/bin/python --write

$(RAY_VENV)/.tune: $(RAY_VENV)/.installed
	$(RAY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'ray[tune]==2.60.*'
	@touch $@

bench-quick: $(STAMP)
	$(BIN)/python benchmarks/engine.py --quick --no-dask --json out/engine.jsonl

clean:
	rm -rf $(VENV) $(RAY_VENV) out build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
