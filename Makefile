# Two commands: `make demo` and `make test`. Both set up .venv first, once.
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
DEMO ?= demo
AIRFLOW := .venv-airflow
SEED ?= 0
COUNT ?= 200
# The tests start penult some hundred times; to compile it anew is a quarter of a start.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo test test-airflow test-track test-import test-prism cluster-up cluster-down faults mutants check bench docs lock clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

setup: $(VENV)/installed  ## .venv with everything, as the lock says

$(VENV)/installed: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "penult needs Python 3.11 to 3.13: install one, or name it with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup  ## embed a small real corpus, compare heads, write a report
	$(BIN)/penult demo $(DEMO)

test: setup  ## the test suite
	$(BIN)/python -m pytest -n 3 --dist worksteal

$(VENV)/track: requirements-track.txt $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-track.txt
	@touch $@

test-track: $(VENV)/track  ## the tests with a real MLflow, which make test passes over
	$(BIN)/python -m pytest tests/pipelines/test_tracking.py tests/pipelines/test_retrain.py -k track

$(VENV)/import: requirements-import.txt $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-import.txt
	@touch $@

test-import: $(VENV)/import  ## the tests with a real torch, timm and transformers, which make test passes over; 5 GB
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/pipelines/test_import.py

$(AIRFLOW)/installed: requirements-airflow.txt
	$(PYTHON) -m venv $(AIRFLOW)
	$(AIRFLOW)/bin/pip install --quiet --disable-pip-version-check -r requirements-airflow.txt
	@touch $@

test-airflow: setup $(AIRFLOW)/installed  ## the Dags of examples/airflow in a real Airflow, in an environment of its own
	PENULT_COMMAND=$(abspath $(BIN))/penult $(AIRFLOW)/bin/python -m pytest -c tests/airflow/pytest.ini tests/airflow

$(VENV)/prism:
	GOBIN=$(abspath $(VENV)) go install github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0

test-prism: setup $(VENV)/prism  ## embed on Prism, a portable runner, which Go builds first
	PENULT_PRISM=$(abspath $(VENV))/prism $(BIN)/python -m pytest tests/pipelines/test_clusters.py -k prism

cluster-up: setup  ## a Dask cluster and an S3 server on this machine, to try penult on; says how
	$(BIN)/python examples/cluster/local.py up

cluster-down: setup  ## end exactly what make cluster-up started
	$(BIN)/python examples/cluster/local.py down

faults: setup  ## the fault battery, whole: SEED=0 COUNT=200 PARTS="kills disk" MATCH="at call"; takes hours
	cd tests && PYTHONPATH=$(CURDIR) $(abspath $(BIN))/python -m faults --seed $(SEED) --count $(COUNT) $(if $(PARTS),--only $(PARTS)) $(if $(MATCH),--match "$(MATCH)")

$(VENV)/mutants: requirements-mutants.txt $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-mutants.txt
	@touch $@

mutants: $(VENV)/mutants  ## random mutants against the tests that run their lines: SEED=0 COUNT=200 MODULES="heads pipelines/embed" LIMIT=60; the suite once, then up to LIMIT seconds of tests per mutant
	cd tests && PYTHONPATH=$(CURDIR) $(abspath $(BIN))/python -m mutants --seed $(SEED) --count $(COUNT) $(if $(LIMIT),--seconds $(LIMIT)) $(MODULES)

check: setup  ## lint, format, types, import rules, generated docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

docs: setup  ## write the generated parts of the README anew
	$(BIN)/python docs/generate.py

bench: setup  ## the figures in the README; takes a while
	$(BIN)/python -m benchmarks

COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes \
	--no-emit-index-url --no-annotate --custom-compile-command "make lock"

lock: setup  ## resolve the requirements anew for Python 3.11 to 3.13
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(COMPILE) $(addprefix --extra ,lite dask export dev) --output-file requirements.txt pyproject.toml
	$(COMPILE) --group mutants --constraint requirements.txt --output-file requirements-mutants.txt
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["track"], sep="\n")' \
		| $(COMPILE) --constraint requirements.txt --output-file requirements-track.txt -
	$(COMPILE) --group import --constraint requirements.txt --output-file requirements-import.txt
	$(COMPILE) --group airflow --output-file requirements-airflow.txt
	for peer in script daft datasets ray datachain; do \
		$(COMPILE) --output-file benchmarks/peers/requirements-$$peer.txt benchmarks/peers/requirements-$$peer.in || exit; done

clean:  ## remove the environments, the demo and what make mutants has kept
	rm -rf $(VENV) $(AIRFLOW) $(DEMO) .mutants .cluster
