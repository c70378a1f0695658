# Every target works on a fresh clone by itself; PYTHON=… chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Puts this folder on sys.path: other ways lose against a clone that is called drwr_dist, seen from the folder above it.
HERE   := --config-settings editable_mode=compat
TWO    := -n 2 --dist loadfile --no-loadscope-reorder   # two test files at a time: most tests of processes wait

.DEFAULT_GOAL := help
.PHONY: help install demo pretrained test test-all test-cluster lint coverage mutation docs bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

install: $(STAMP)  ## the environment in .venv (quick when nothing changed)

# torch comes first and pinned, so that nothing else can pull another build of it.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit("drwr_dist needs Python 3.11 or newer: make PYTHON=python3.11 …") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): PyTorch first, then Ray and the rest; about 3 GB on disk, a few minutes"
	$(BIN)/python -m pip install --disable-pip-version-check $$(grep '^torch==' constraints.txt) -c constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check $(HERE) -e '.[dev]' -c constraints.txt
	touch $@

demo: install  ## train on the demo shards with 2 workers, evaluate, and show the shapes (under 8 minutes on 2 cores)
	$(BIN)/python -m drwr_dist.train config=configs/demo.yaml

pretrained: install  ## train the network that comes with the package again (740 MB of Debian packages; about an hour)
	test -f build/open_shapes_cc/index.json || $(BIN)/python -m drwr_dist.shards import \
	    source=open_shapes input=build/debs output=build/open_shapes_cc \
	    manifest=shards/open_shapes/manifest.csv splits=shards/open_shapes/splits.csv name=open_shapes_cc views=20 \
	    shard_samples=32 'licences=[CC0-1.0,CC-BY-3.0,CC-BY-3.0-US]' 'categories=[cabinet,chair,lamp,sofa,table]'
	$(BIN)/python -m drwr_dist.train config=configs/laptop.yaml name=pretrained data=build/open_shapes_cc
	$(BIN)/python -m drwr_dist.export run=runs/pretrained checkpoint=best format=run output=drwr_dist/pretrained

test: install  ## the tests that CI runs
	$(BIN)/python -m pytest $(TWO)

test-all: install  ## the slow tests too, but for those of test-cluster
	$(BIN)/python -m pytest -m '' --ignore tests/cluster $(TWO)

test-cluster: install  ## Ray on five hosts in namespaces, trained on and broken, and nodes replaced (root; iproute2, openssh-server, rsync, curl; slurm-wlm)
	$(BIN)/python -m pytest tests/cluster -m '' -rs

lint: install  ## ruff, mypy, and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

coverage: install  ## which lines the fast tests run, in Ray's workers too
	rm -rf build/coverage
	PYTHONPATH=$(CURDIR)/tests/ray_coverage $(BIN)/coverage run -m pytest $(TWO)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=90

mutation: install  ## small errors put into the mathematics: how many of them the tests see; goes on where it stopped
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(HERE) -e '.[mutation]' -c constraints.txt
	$(BIN)/python benchmarks/mutation.py sample=400

docs: install  ## the documentation as a site, in build/site
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(HERE) -e '.[docs]' -c constraints.txt
	rm -rf build/docs-source build/site
	mkdir -p build/docs-source
	cp -r --parents README.md CHANGELOG.md LICENSE docs launch configs shards/*.md build/docs-source
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

bench: install  ## what a training costs on this machine, phase by phase, and what to change
	$(BIN)/python -m drwr_dist.bench config=configs/demo.yaml

clean:  ## remove the environment and the caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist mutants *.egg-info
