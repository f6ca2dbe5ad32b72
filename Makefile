# One virtual environment, made once per change of the dependencies; `make quickstart` and `make test` need nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-parity bench lint wheel clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'mtpt needs Python 3.11 or newer; set PYTHON=python3.11')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

quickstart: $(VENV)/.installed
	$(BIN)/mtpt train --config=quickstart --workdir=runs/quickstart

test: $(VENV)/.installed
	$(BIN)/python -m pytest -q -n auto --dist loadfile

# Against PyTorch and transformers, which nothing else needs: the tests that name them.
test-parity: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[parity]'
	MTPT_LIVE=1 $(BIN)/python -m pytest -q -n auto --dist loadfile -k 'live or torch or transformers'

bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[parity]'
	$(BIN)/python -m benchmarks

lint: $(VENV)/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

wheel: $(VENV)/.installed
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info
