# `make demo` and `make test` set everything up by themselves; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
OLD_SPIKINGJELLY := $(VENV)/spikingjelly-0.0.0.0.14

LOWEST := .venv-lowest

.PHONY: demo test test-lowest lint docs clean

demo: $(READY)
	$(BIN)/seenn demo

test: $(READY) $(OLD_SPIKINGJELLY)
	$(BIN)/python -m pytest --numprocesses auto
	PYTHONPATH=$(OLD_SPIKINGJELLY) $(BIN)/python -m pytest --numprocesses auto tests/spikingjelly tests/zoo/test_spikingjelly_models.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

# A warning is an error: a broken reference fails.
docs: $(READY)
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

# A part of the tests with the oldest versions that pyproject.toml allows; about four minutes once they are installed.
test-lowest: $(LOWEST)/ready
	$(LOWEST)/bin/python -m pytest -p no:xdist tests/test_invariants.py tests/test_calibration.py tests/test_readout.py \
		tests/test_stream.py tests/test_readme.py tests/test_time_loop.py

$(LOWEST)/ready: pyproject.toml constraints-lowest.txt
	test -d $(LOWEST) || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable '.[all]' pytest hypothesis
	touch $(LOWEST)/ready

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev,docs]'
	touch $(READY)

# The generation that most published networks are written for, beside the current one. Its metadata pins nothing useful.
$(OLD_SPIKINGJELLY): $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(OLD_SPIKINGJELLY) spikingjelly==0.0.0.0.14
	touch $(OLD_SPIKINGJELLY)

clean:
	rm -rf $(VENV) $(LOWEST)
