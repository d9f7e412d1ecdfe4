# The two commands: `make demo` and `make test`. Each sets up .venv by itself and uses it again afterwards.
PYTHON ?= python3
BIN := .venv/bin
# Numeric libraries start one thread per core in every process; with many processes that is too many.
export OMP_NUM_THREADS ?= 1
# Tests run in two processes, each file whole in one of them: a run with actors waits as much as it computes. The long
# ones with actors run alone, since some of them measure time.
IN_TWO := -n 2 --dist loadfile
# What PYTEST_ARGS names may have no test for one of the two.
MAY_BE_NONE = $(if $(PYTEST_ARGS),|| [ $$? = 5 ])

.PHONY: help install demo test test-unit test-all lint lock docs docs-site audit clean

help:
	@echo "make demo     train the small task on this machine (about 3 minutes after installation)"
	@echo "make test     lint, types, unit and integration tests, the real stack included (about 20 minutes)"
	@echo "make test-unit  what needs no actors (a few minutes)"
	@echo "make test-all   also the long ones: faults, node loss, soak, Slurm, jobs, suites (about an hour)"
	@echo "make install  only the set-up: .venv with the locked CPU packages"
	@echo "make lint     ruff and mypy"
	@echo "make docs     write the generated pages of docs/ again"
	@echo "make docs-site  the documentation as a site, in build/site; dead links end it"
	@echo "make audit    known vulnerabilities of the locked packages, and bills of materials in build/"
	@echo "make lock     resolve requirements/cpu.lock again"

install: .venv/.installed

.venv/.installed: requirements/cpu.lock requirements/install.sh pyproject.toml
	@PYTHON="$(PYTHON)" requirements/install.sh
	@touch $@

demo: install
	@echo "Training the small task: hybrid post-training of a weak base model on this machine"
	@$(BIN)/python -m hpt_ray.main

lint: install
	@echo "Checking style and types"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: lint
	@echo "Running unit and integration tests"
	@$(BIN)/python -m pytest $(IN_TWO) -m "not long and not cluster" $(PYTEST_ARGS) $(MAY_BE_NONE)
	@$(BIN)/python -m pytest $(IN_TWO) -m "not long and cluster" $(PYTEST_ARGS) $(MAY_BE_NONE)

test-unit: install
	@$(BIN)/python -m pytest $(IN_TWO) -m "not cluster" $(PYTEST_ARGS)

test-all: lint
	@echo "Running every test"
	@$(BIN)/python -m pytest $(IN_TWO) -m "not cluster" $(PYTEST_ARGS) $(MAY_BE_NONE)
	@$(BIN)/python -m pytest -m cluster $(PYTEST_ARGS) $(MAY_BE_NONE)

docs: install
	@$(BIN)/python -m hpt_ray.config.docs
	@$(BIN)/python -m hpt_ray.observe.metrics
	@$(BIN)/python docs/notebook.py

docs-site: install
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-build-isolation --editable ".[docs]" || \
		{ echo "error: the site is built by mkdocs-material, which cannot be installed (no connection?)" >&2; exit 2; }
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build --strict
	@echo "Open build/site/index.html, or with its search: $(BIN)/python -m http.server --directory build/site"

audit: install
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-build-isolation --editable ".[audit]"
	@$(BIN)/python requirements/audit.py

lock:
	@$(PYTHON) requirements/lock.py

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
