# Everything begins with a Python of 3.11 or later: `make demo`, `make test`.
PYTHON ?= python3
UV_VERSION := 0.13.9

BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test lint audit chaos lock clean

# Of `make chaos`: for how long, and the seed of the first plan (the time, where none is given).
MINUTES ?= 60
SEED ?=

demo: $(READY)
	$(BIN)/aewatch demo

# Two processes side by side, each with a Kafka and a Valkey of its own, and one thread, or they would wait for one
# another. In order, as the tests that take long come first.
test: lint audit
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Known vulnerabilities of what requirements.lock names.
audit: $(READY)
	$(BIN)/python .ci/audit

# Random faults of all kinds against the whole pipeline; a failure prints the seed that draws the same plan again.
chaos: $(READY)
	$(BIN)/aewatch chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# Newer versions of everything: `make lock UPGRADE=--upgrade`.
lock: $(BIN)/uv
	echo 'uv==$(UV_VERSION)' | $(BIN)/uv pip compile pyproject.toml - --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate \
		--custom-compile-command 'make lock' --quiet $(UPGRADE) --output-file requirements.lock

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist runs *.egg-info

$(READY): requirements.lock pyproject.toml | $(BIN)/uv
	@echo 'Installing what requirements.lock names; the first time downloads PyTorch, the largest part.'
	$(BIN)/uv pip sync --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# uv is in the lock as well, so that pip can check its hash.
$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'aewatch needs Python 3.11 or later, but $(PYTHON) says "'"$$($(PYTHON) --version 2>&1)"'";' \
			'install one and name it, as in: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo '$(PYTHON) cannot make virtual environments: install its venv module (on Debian and Ubuntu:' \
			'apt install python3-venv) or name another Python: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	awk '/^[a-z]/ {wanted = /^uv==/} wanted' requirements.lock > .venv/uv.txt
	$(BIN)/python -m pip install --disable-pip-version-check --require-hashes --requirement .venv/uv.txt
