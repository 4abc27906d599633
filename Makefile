# Every target does its own set-up: a virtual environment in .venv with the versions that were tested (constraints.txt).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q
OUT    ?= demo-out

.DEFAULT_GOAL := help
.PHONY: help demo test check lint types docs bench pocket-sound browser-packages speech-packages debian-package constraints clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

demo: $(VENV)/demo.stamp speech-packages  ## index the photographs that ship with scikit-image and scikit-learn, search them, write a contact sheet
	$(BIN)/chiasm demo --out $(OUT)

test: $(VENV)/dev.stamp speech-packages browser-packages  ## all tests
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile $(ARGS)

check: lint types test  ## what a change must pass: ruff, format, types, tests

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/pyright

docs: $(VENV)/dev.stamp  ## build the documentation into site/
	$(BIN)/mkdocs build --strict

bench: $(VENV)/dev.stamp  ## speed beside the named peers (quiet machine, some minutes)
	$(BIN)/python -m pip --disable-pip-version-check -q install -c constraints.txt -e '.[bench]'
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

pocket-sound: $(VENV)/dev.stamp  ## teach the pocket space sound again (needs CHIASM_DATA; some minutes); what it writes is in src/chiasm/encode/pocket
	@test -d "$(CHIASM_DATA)/esc10_sounds" || { echo "Set CHIASM_DATA to the folder that holds esc10_sounds (see docs)."; exit 1; }
	CHIASM_DATA=$(CHIASM_DATA) $(BIN)/python -m chiasm.learn.alignment.one_encoder.pocket_sound $(ARGS)

$(VENV)/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Chiasm needs Python 3.11 or newer; found $$($(PYTHON) --version). Set PYTHON=python3.12, for example."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "Cannot make a virtual environment. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@touch $@

$(VENV)/demo.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt
	@echo "Installing Chiasm into $(VENV) (once; a minute or two) ..."
	$(PIP) install -c constraints.txt -e '.[media,demo]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt
	@echo "Installing Chiasm and its development tools into $(VENV) (once; a minute or two) ..."
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

# The Debian packages are optional: what needs them says so and is skipped when they are not there.
speech-packages:
	@command -v espeak-ng >/dev/null || $(MAKE) -s debian-package PACKAGES=espeak-ng WHY="the spoken sentence of the demo and the speech tests"

browser-packages:
	@command -v chromedriver >/dev/null || $(MAKE) -s debian-package PACKAGES="chromium chromium-driver" WHY="the tests of the gallery page"

debian-package:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing $(PACKAGES) (for $(WHY)) ..."; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGES); } >/dev/null 2>&1 \
	    || echo "Could not install $(PACKAGES); $(WHY) will be skipped."; \
	else \
	  echo "Not installed: $(PACKAGES). $(WHY) will be skipped. On Debian and Ubuntu: sudo apt-get install $(PACKAGES)"; \
	fi

constraints: $(VENV)/dev.stamp  ## pin the versions of the current environment
	@{ echo "# The versions that were tested together; used by every make target (pip install -c constraints.txt)."; \
	   $(BIN)/python -m pip --disable-pip-version-check freeze --exclude-editable | sed 's/+cpu//' | grep -v '^chiasm'; } > constraints.txt

clean:  ## remove the virtual environment and everything that was built
	rm -rf $(VENV) site build dist demo-out .pytest_cache .ruff_cache .hypothesis
