# Everything is installed into .venv from requirements.lock; a fresh machine needs Python 3.11 to 3.13, make and git.
#   make run PYTHON=/path/to/python3.11     chooses the interpreter that .venv is made with
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
VENV := .venv
INSTALLED := $(VENV)/.installed
BENCH_VENV := .venv-bench
BENCH_INSTALLED := $(BENCH_VENV)/.installed
# dvc.yaml says `python`: it must be the one of .venv, and so must every tool.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# Stages side by side, as many as there are cores; `dvc repro` runs one at a time and leaves the same.
REPRO := sonolex repro

.PHONY: run
run: $(INSTALLED) ## run every stage that is not up to date, then print the results
	@before="$$(cksum dvc.lock 2>/dev/null || true)"; \
	$(REPRO); \
	if [ "$$before" = "$$(cksum dvc.lock)" ]; then \
		echo; echo "Nothing changed: every artifact is the one that dvc.lock already named."; \
	fi
	@sonolex results

# Where PYTHONDONTWRITEBYTECODE is set, every worker and every program of the tests would compile the sources anew.
test test-slow test-exhaustive: export PYTHONDONTWRITEBYTECODE :=

.PHONY: test
test: $(INSTALLED) ## run the tests, without the slow ones, two files at a time
	OMP_NUM_THREADS=1 pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: test-slow
test-slow: $(INSTALLED) ## run the slow tests (real recordings, killed runs), two files at a time
	OMP_NUM_THREADS=1 pytest -m "slow and not exhaustive" -n 2 --dist loadfile --no-loadscope-reorder --durations=25

.PHONY: test-exhaustive
test-exhaustive: $(INSTALLED) ## run every recipe, every setting, fifty kills and traced stages (half an hour or more; CI does not)
	OMP_NUM_THREADS=1 pytest -m exhaustive -n 2 --dist loadfile

# The peers that it compares with bring packages of their own, so they live in an environment of their own.
.PHONY: bench
bench: $(BENCH_INSTALLED) ## measure speed, beside what else one could use (minutes; BENCH="features reading": only these)
	@for name in $(BENCH); do \
		PYTHONPATH="$(CURDIR)" $(BENCH_VENV)/bin/python -m benchmarks.$$name --json benchmarks/results/$$name.json; \
	done

BENCH ?= features tokenise reading sampling training

$(BENCH_INSTALLED): requirements-bench.lock | $(INSTALLED)
	@[ -x $(BENCH_VENV)/bin/python ] || uv venv --quiet --python $(VENV)/bin/python $(BENCH_VENV)
	@uv pip install --quiet --compile-bytecode --python $(BENCH_VENV)/bin/python --require-hashes -r requirements-bench.lock
	@touch $@

.PHONY: check
check: $(INSTALLED) ## lint, formatting, types
	ruff check .
	ruff format --check .
	mypy

.PHONY: examples
examples: $(INSTALLED) ## execute the notebooks in examples/ and store their outputs
	python -m examples.execute examples/*.ipynb

.PHONY: install
install: $(INSTALLED) ## bring .venv up to date with the lock

# uv takes a minute and a half where pip takes seven. Bytecode is compiled at once: where PYTHONDONTWRITEBYTECODE is set, as in
# many containers, every process of the graph would compile what it imports anew (a stage of 2 workers: 11 s for 4). The
# stamp is touched last: an interrupted installation is taken up again.
$(INSTALLED): requirements.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "error: expected Python 3.11, 3.12 or 3.13, found '$(PYTHON)'; name one: make $(or $(MAKECMDGOALS),run) PYTHON=..." >&2; \
		exit 1; }
	@[ -x $(VENV)/bin/python ] || "$(PYTHON)" -m venv $(VENV)
	@echo "Installing into $(VENV) what requirements.lock names: 6.3 GB, some minutes, once"
	@echo "1 of 3: uv, which installs the rest"
	@python -m pip install -qq --require-hashes -r <(awk '/^[a-z]/ { uv = /^uv==/ } uv' requirements.lock)
	@echo "2 of 3: $$(grep -c '^[a-z]' requirements.lock) packages"
	@uv pip install --compile-bytecode --python $(VENV)/bin/python --require-hashes -r requirements.lock || { \
		echo "uv could not; pip, which follows its own configuration, tries now"; \
		python -m pip install --require-hashes -r requirements.lock; }
	@echo "3 of 3: sonolex itself"
	@python -m pip install -qq --no-deps --no-build-isolation -e .
	@touch $@

# Versions stay as they are where they can; LOCK_FLAGS=--upgrade takes the newest, `--upgrade-package NAME` one of them. The
# newest torch may be built for another CUDA release than the newest torchaudio: a test says so once they are installed, and
# LOCK_FLAGS="--upgrade --upgrade-package 'torch<2.15'" holds it back.
.PHONY: lock
lock: $(INSTALLED) ## write requirements.lock and requirements-bench.lock anew from pyproject.toml
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --fork-strategy fewest \
		--generate-hashes --annotation-style line --custom-compile-command "make lock" \
		--quiet $(LOCK_FLAGS) --output-file requirements.lock
	uv pip compile pyproject.toml --extra dev --extra bench --universal --python-version 3.11 --fork-strategy fewest \
		--generate-hashes --annotation-style line --custom-compile-command "make lock" \
		--quiet --constraint requirements.lock --output-file requirements-bench.lock

.PHONY: clean
clean: ## remove .venv and the caches of tools; data, artifacts and the DVC cache stay
	rm -rf $(VENV) $(BENCH_VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
