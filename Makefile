# Every target works on a fresh clone by itself; PYTHON=… chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-cluster lint coverage mutation docs bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

install: $(STAMP)  ## the environment in .venv (quick when nothing changed)

# torch comes first and pinned, so that nothing else can pull another build of it.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit("drwr_dist needs Python 3.11 or newer: make PYTHON=python3.11 …") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt) -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

demo: install  ## train on the demo shards with 2 workers, evaluate, and show the shapes (under 8 minutes on 2 cores)
	$(BIN)/python -m drwr_dist.train config=configs/demo.yaml

test: install  ## the tests that CI runs
	$(BIN)/python -m pytest

test-all: install  ## the slow tests too
	$(BIN)/python -m pytest -m ''

test-cluster: install  ## Ray on five hosts in namespaces, trained on and broken (root; iproute2, openssh-server, rsync, curl; slurm-wlm)
	$(BIN)/python -m pytest tests/cluster -m '' -rs

lint: install  ## ruff, mypy, and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

coverage: install  ## which lines the fast tests run, in all processes: at least 90 % of them
	rm -rf build/coverage
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=90

mutation: install  ## small errors put into the mathematics: how many of them the tests see; goes on where it stopped
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[mutation]' -c constraints.txt
	$(BIN)/python benchmarks/mutation.py sample=400

docs: install  ## the documentation as a site, in build/site
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]' -c constraints.txt
	rm -rf build/docs-source build/site
	mkdir -p build/docs-source
	cp -r --parents README.md CHANGELOG.md LICENSE docs launch configs shards/*.md build/docs-source
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

bench: install  ## what a training costs on this machine, phase by phase, and what to change
	$(BIN)/python -m drwr_dist.bench config=configs/demo.yaml

clean:  ## remove the environment and the caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist mutants *.egg-info
