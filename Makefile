# Everything a fresh machine needs: `make demo` and `make test` build the environment themselves.
VENV ?= .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
PYTHON ?= python3
STAMP := $(VENV)/.installed

.PHONY: install demo test proofs lint clean

install: $(STAMP)

# torch first, by the exact version that was tested: whatever asks for torch after it is content with what is there
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/stylora demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy

test: install lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

proofs: install
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'slow or not slow'

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
