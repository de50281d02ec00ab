# Everything a newcomer or a build machine needs. Each target makes what it stands on.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= 2.10.0 2.13.0 2.14.1 2.15.0
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: venv demo test check bench matrix release-check pages fmt clean

venv: $(BIN)/python

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.%: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) --editable '.[$*]'
	touch $@

demo: $(VENV)/.demo
	$(BIN)/lissom demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(VENV)/.test
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyrefly check
	$(BIN)/python -m pytest -q tests/test_house.py
	$(BIN)/python -m pytest -n 2 --dist worksteal --ignore tests/test_house.py

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/rewriting.py
	$(BIN)/python benchmarks/folding.py
	$(BIN)/python benchmarks/capture.py

matrix: venv
	$(BIN)/python benchmarks/matrix.py $(TORCH)

release-check: $(VENV)/.test $(VENV)/.diversity
	$(BIN)/python benchmarks/release.py --out release.jsonl

pages: $(VENV)/.test
	$(BIN)/lissom test passes/ --certificate docs/rules/certificate.json
	$(BIN)/lissom pages passes/ --certificate docs/rules/certificate.json --out docs/rules
	$(BIN)/lissom explain --markdown > docs/reference.md

fmt: $(VENV)/.test
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	$(BIN)/lissom fmt passes/*.lissom

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
