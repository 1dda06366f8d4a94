# Two commands set everything up on a machine that has Python 3.11 and git: make demo, make test.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_OUT ?= demo
STAMP := $(VENV)/.installed

.PHONY: demo test lint types bench soak docs site wheels clean

demo: $(STAMP)
	$(BIN)/clipdistill demo --out $(DEMO_OUT)

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests

types: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/clipdistill bench

soak: $(STAMP)
	$(BIN)/clipdistill bench search-soak --minutes 30

docs: $(STAMP)
	$(BIN)/python -m pytest tests/docs

site: $(STAMP)
	$(BIN)/python -m mkdocs build --strict

wheels: $(STAMP)
	.ci/wheels $(PYTHONS)

clean:
	rm -rf $(VENV) demo site dist

# torch goes first and by exact version: a range would fetch a build with gigabytes of GPU libraries.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,serve,milvus,open-clip,data,track,nncf,docs,dev]'
	touch $@
