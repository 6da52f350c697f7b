# `make demo` and `make test` set everything up by themselves; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
OLD_SPIKINGJELLY := $(VENV)/spikingjelly-0.0.0.0.14

.PHONY: demo test test-old-spikingjelly lint clean

demo: $(READY)
	$(BIN)/seenn demo

test: $(READY) $(OLD_SPIKINGJELLY)
	$(BIN)/python -m pytest --numprocesses auto
	PYTHONPATH=$(OLD_SPIKINGJELLY) $(BIN)/python -m pytest --numprocesses auto tests/spikingjelly tests/zoo/test_spikingjelly_models.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $(READY)

# The generation that most published networks are written for, beside the current one. Its metadata pins nothing useful.
$(OLD_SPIKINGJELLY): $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(OLD_SPIKINGJELLY) spikingjelly==0.0.0.0.14
	touch $(OLD_SPIKINGJELLY)

clean:
	rm -rf $(VENV)
