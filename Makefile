# Two commands for newcomers (demo, test) and what contributors and CI use.
PYTHON ?= python3
BIN := .venv/bin
MARK ?= not slow

.PHONY: demo test check clean

demo: .venv/installed
	$(BIN)/accomplice run configs/digits.toml

# Files in their order: those of the fewest tests, which are slow ones, would else come last.
test: .venv/installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "$(MARK)"

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

clean:
	rm -rf .venv build dist *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	@echo "Installing into .venv: about a minute"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/installed-test: .venv/bin/python pyproject.toml
	@echo "Installing into .venv: about a minute"
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@
