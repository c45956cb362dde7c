# Everything runs in `.venv`, which any target makes when it is missing or older than its lock.
# A GPU or a TPU: `ACCEL=cuda13 make didactic` (or cuda12, tpu). The choice is remembered until the
# next ACCEL=…; ACCEL=cpu goes back. Another interpreter: `PYTHON=/path/to/python make venv`.

INSTALLED := $(shell cat .venv/.ok 2>/dev/null)
ACCEL ?= $(or $(INSTALLED),cpu)
LOCK := requirements$(if $(filter-out cpu,$(ACCEL)),-$(ACCEL)).lock
RUN := .venv/bin/python
JOBS ?= 2

# uv reads no pip.conf and brings its own certificates; let it trust what the machine trusts.
export UV_SYSTEM_CERTS := true
export UV_NATIVE_TLS := true

# Modules are kept compiled even where the shell says not to: without, every start costs 2 s of CPU.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help venv didactic test learn check bench mutants doctor lock clean distclean
ifneq ($(ACCEL),$(INSTALLED))
.PHONY: .venv/.ok
endif

help: ## This list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-18s%s\n", $$1, $$2}'

didactic: .venv/.ok ## Train on the games with known optima and draw what each method found (ALL=1: every method)
	ALL=$(ALL) $(RUN) experiments/didactic.py

# Tests compile much and run each program for a moment: with loops emitted the old way that takes a third
# less time. `make learn` runs what users run.
test: export XLA_FLAGS := $(XLA_FLAGS) --xla_cpu_use_fusion_emitters=false
test: .venv/.ok ## Fast tests, in two processes (JOBS=n: in n)
	$(RUN) -m pytest -q -m "not slow" -n $(JOBS) --dist loadfile $(ARGS)

learn: .venv/.ok ## Longer learning tests
	$(RUN) -m pytest -q -m slow $(ARGS)

check: .venv/.ok ## Lint, format, types and the direction of imports
	.venv/bin/ruff check --quiet .
	.venv/bin/ruff format --check --quiet .
	.venv/bin/pyright
	PYTHONPATH=.:envs .venv/bin/lint-imports --no-logo

bench: .venv/.ok ## Time the didactic study, compilation apart
	$(RUN) benchmarks/didactic.py

mutants: .venv/.ok ## Break the code on purpose; every break must fail a test
	$(RUN) tests/mutants.py

doctor: .venv/.ok ## What this machine offers, and whether jax can use it
	@$(RUN) -m jaxmarl_tad doctor

venv: .venv/.ok ## The environment alone

lock: ## Resolve the dependencies anew (UPGRADE=1: to the newest versions)
	@uv=$$(command -v uv || echo .venv/bin/uv); \
	compile() { \
		out=$$1; shift; echo "resolving $$out"; touch $$out; \
		if test -n "$(UPGRADE)"; then : > $$out; fi; \
		UV_NO_CONFIG=1 $$uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
			--generate-hashes --no-header --no-annotate \
			--extra dev "$$@" --output-file $$out > /dev/null || return 1; \
		if grep -n "://" $$out; then echo "$$out holds an address; see above." >&2; return 1; fi; \
	}; \
	compile requirements.lock && \
	for accel in cuda12 cuda13 tpu; do \
		compile requirements-$$accel.lock --extra $$accel --constraint requirements.lock || exit 1; \
	done

clean: ## Remove caches and build outputs
	rm -rf .cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist *.egg-info
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +

distclean: clean ## Remove the environment too
	rm -rf .venv

# --- the environment ------------------------------------------------------------------------------

USABLE = import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))

.venv/.ok: pyproject.toml $(LOCK)
	@if ! .venv/bin/python -c "import pip; $(USABLE)" 2>/dev/null; then \
		for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14); do \
			if $$python -c "$(USABLE)" 2>/dev/null; then found=$$python; break; fi; \
		done; \
		if test -z "$$found"; then \
			echo "No usable Python: jaxmarl_tad needs 3.11, 3.12, 3.13 or 3.14, with its venv module" >&2; \
			echo "(on Debian and Ubuntu: the package python3-venv). Tried:" \
				"$(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14)." >&2; \
			echo "Name one yourself: PYTHON=/path/to/python make venv" >&2; \
			exit 1; \
		fi; \
		echo "creating .venv with $$($$found --version)"; \
		$$found -m venv --clear .venv; \
	fi
	@rm -f .venv/.ok; \
	uv=$$(command -v uv || command -v .venv/bin/uv); \
	if test -z "$$uv"; then \
		awk '/^[a-z]/ {keep = /^uv==/} keep' $(LOCK) > .venv/uv.txt; \
		$(RUN) -m pip install --quiet --no-compile --require-hashes -r .venv/uv.txt && uv=.venv/bin/uv; \
	fi; \
	echo "installing $(LOCK)"; \
	if test -n "$$uv" && $$uv pip install --quiet --python $(RUN) --require-hashes -r $(LOCK); then \
		$$uv pip install --quiet --python $(RUN) --no-deps --no-build-isolation -e .; \
	else \
		echo "uv could not install it; trying pip, which is slower"; \
		$(RUN) -m pip install --quiet --no-compile --require-hashes -r $(LOCK) && \
		$(RUN) -m pip install --quiet --no-compile --no-deps --no-build-isolation -e .; \
	fi
	@echo $(ACCEL) > .venv/.ok
