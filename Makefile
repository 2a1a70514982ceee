# make quickstart   installs, distils a real teacher into a one-step generator, shows the result
# make test         installs, runs the test suite
# make quick        installs, runs the tests of what a run computes: under a minute
# make browser      installs, tests the page of `sid-ray serve` in a headless Chromium of the machine
# make lint         installs, checks style, types and import directions
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: quickstart test quick browser lint format slow constraints clean
.DELETE_ON_ERROR:

quickstart: $(INSTALLED)
	@$(BIN)/sid-ray distill digits-sid --run quickstart

# Three processes share the files of tests: much of a test of processes is waiting, also on two cores.
test: $(INSTALLED)
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

QUICK := $(addprefix tests/,test_architecture.py test_cli.py test_groups.py config diffusion objectives \
	recipes training checkpoint storage/test_fence.py data/test_order.py)

quick: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist loadfile $(QUICK)

browser: $(INSTALLED)
	$(BIN)/pytest -m browser tests/serving/test_page.py

slow: $(INSTALLED)
	$(BIN)/pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest tests/test_architecture.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# Versions are pinned in constraints.txt. On a machine without a GPU, the CPU build of torch saves
# gigabytes: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make quickstart
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, found " + sys.version.split()[0] + "; set PYTHON=") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# After a change of dependencies: resolves anew and writes the pins.
constraints:
	rm -rf .cache/pins && $(PYTHON) -m venv .cache/pins
	.cache/pins/bin/pip install --quiet torch==2.13.0
	.cache/pins/bin/pip install --quiet -e '.[dev]'
	.cache/pins/bin/pip freeze --exclude-editable | sed 's/+cpu//' > constraints.txt

clean:
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache
