# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet
# The exact files of this platform with their SHA-256, where `make lock` has written them; otherwise
# the versions in constraints.txt. `make test LOCK=` takes the versions anyway.
PLATFORM = $(shell $(PYTHON) -c "import sys, sysconfig; print(sysconfig.get_platform(), sys.implementation.cache_tag, sep='-')")
LOCK ?= $(wildcard .ci/lock-$(PLATFORM).txt)

.PHONY: demo test lint lock lowest clean

demo: $(VENV)/core
	$(VENV)/bin/gem-lite demo

test: $(VENV)/test
	$(VENV)/bin/python -m pytest -n auto --dist loadfile

lint: $(VENV)/test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

lock:
	$(PYTHON) .ci/lock.py .ci/lock-$(PLATFORM).txt

# The tests under the lowest versions that setup.cfg allows; another Python: make lowest LOWEST=...
LOWEST ?= python3.10
lowest:
	$(PYTHON) .ci/lowest.py $(LOWEST) $(VENV)-lowest

clean:
	rm -rf $(VENV) $(VENV)-lowest build dist *.egg-info

$(VENV)/core: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt --editable .
	touch $@

$(VENV)/test: setup.cfg pyproject.toml constraints.txt $(LOCK)
	$(PYTHON) -m venv $(VENV)
	.ci/install $(VENV) $(LOCK)
	touch $@ $(VENV)/core
