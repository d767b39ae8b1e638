# dreamfusion_nb: `make` lists what there is to make. Everything is installed into .venv in this folder and nowhere else.
PYTHON ?= python3
BIN := .venv/bin

# The prompt goes to the command as an environment variable, letter by letter: neither make nor the shell reads what is in it.
override PROMPT := $(value PROMPT)
export PROMPT

# Set-up stamps carry a number of this folder, so that a project that was moved or copied is set up again.
HERE := $(shell pwd -P | cksum | cut -d' ' -f1)
RUN_READY := .venv/.ready-to-run-$(HERE)
DEVELOP_READY := .venv/.ready-to-develop-$(HERE)

.PHONY: help dream words test notebooks docs clean set-up check-prompt check-quarto browser
.DELETE_ON_ERROR:

help:
	@echo 'make dream PROMPT="a red mug"   make an object from a sentence (ARGS="--quality standard --seed 1" for more)'
	@echo 'make words                      list the words that the prior which ships with the package knows'
	@echo 'make test                       run every notebook and every test'
	@echo 'make notebooks                  re-run all notebooks, save their outputs, export the modules'
	@echo 'make docs                       build the website into _docs (needs Quarto)'
	@echo 'make clean                      remove what builds and tests left behind; keeps .venv and runs'
	@echo
	@echo 'The first call sets up .venv, which takes a few minutes and needs Python 3.11 or newer (PYTHON=python3.12 picks one).'

dream: check-prompt $(RUN_READY)
	@$(BIN)/dreamfusion generate "$$PROMPT" $(ARGS)

words: $(RUN_READY)
	@$(BIN)/dreamfusion words

set-up: $(DEVELOP_READY)

test: $(DEVELOP_READY) browser
	@$(BIN)/python -m pytest $(ARGS)

notebooks: $(DEVELOP_READY)
	$(BIN)/nbdev-export
	cd nbs && for notebook in *.ipynb; do \
	    ../$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=900 --ExecutePreprocessor.store_widget_state=False "$$notebook" || exit 1; done
	$(BIN)/nbdev-clean
	$(BIN)/nbdev-export

docs: check-quarto $(DEVELOP_READY)
	$(BIN)/nbdev-docs
	cp -RL nbs/gallery _docs/

clean:
	rm -rf build dist *.egg-info _proc _docs .pytest_cache nbs/nbdev.yml nbs/sidebar.yml nbs/llms.txt
	find dreamfusion_nb nbs tests -name __pycache__ -type d -prune -exec rm -rf {} +
	find nbs -name .ipynb_checkpoints -type d -prune -exec rm -rf {} +

check-prompt:
	@if [ -z "$$PROMPT" ]; then echo 'Say what to make: make dream PROMPT="a red mug"' >&2; exit 2; fi

# Tests that look at pages need Chromium and are skipped without it
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then echo 'Installing Chromium for the tests of pages ...'; \
	        apt-get install -y -qq --no-install-recommends chromium >/dev/null 2>&1 || echo 'It could not be installed, so these tests are skipped.'; \
	    else echo 'There is no Chromium, so tests of pages are skipped; on Debian and Ubuntu: sudo apt-get install chromium'; fi; }

check-quarto:
	@command -v quarto >/dev/null || { \
	    echo 'Building the website needs Quarto (https://quarto.org); the notebooks themselves need no build to be read.' >&2; exit 1; }

# ---- set-up: a stamp is written only after everything before it succeeded, so a second call is instant and a failed one is tried again
INSTALL_FROM := setup.py settings.ini pyproject.toml constraints.txt

$(RUN_READY): $(INSTALL_FROM)
	@$(call set_up,.)
	@touch $@

$(DEVELOP_READY): $(INSTALL_FROM)
	@$(call set_up,.[dev])
	@touch $(RUN_READY) $@

# $(1): what pip installs. A .venv whose pip does not run from this folder (half made, moved or copied) is made anew.
define set_up
set -e; \
command -v "$(PYTHON)" >/dev/null || { echo 'This needs Python 3.11 or newer, and there is no $(PYTHON) on this machine.' >&2; exit 1; }; \
"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
    echo "This needs Python 3.11 or newer, and $(PYTHON) is $$("$(PYTHON)" --version 2>&1); name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }; \
"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
    echo 'This Python cannot make virtual environments (no venv or ensurepip); on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }; \
echo 'Setting up .venv ...'; \
$(BIN)/pip --version 2>/dev/null | grep -qF "$$(pwd -P)/.venv/" || "$(PYTHON)" -m venv --clear .venv; \
$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '$(1)' || { \
    echo 'The set-up did not finish: pip says why above. The next make tries again.' >&2; exit 1; }
endef
