# Every target sets up what it needs. `make` alone prints this list.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help setup run test long quick lint cover bench-retrieval bench-accuracy bench-accuracy-once bench-training bench-serving bench-import bench-experience pictures docs release-notes manifests rehearse fuzz faults soak dist image sbom audit pin clean

help:  ## print this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready  ## create .venv with the pinned packages

# torch first and alone: where a CPU build is at hand it satisfies the pin, and nothing pulls in another build later.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' \
		|| { echo "Python 3.11 or 3.12 is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[all,dev,docs]'
	@touch $@

run: setup  ## the whole pipeline on the 65,520-row demo data
	$(BIN)/salescast run

test: setup  ## lint, types and the tests, but for those of `make long`
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile

long: setup  ## the tests of some minutes each: every document, the notebooks, secrets in a whole run
	FAULT_ROUNDS=2 $(BIN)/python -m pytest -m 'long and not fault'

cover: setup  ## every test, in one process, and the lines that none of them reaches
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered

quick: setup  ## the tests that take less than 20 s each
	$(BIN)/python -m pytest -m 'not slow'

lint: setup  ## format and lint in place
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-retrieval: setup  ## point-in-time joins: feast_asof beside Feast's own stores
	$(BIN)/python benchmarks/retrieval.py --write

bench-accuracy: setup  ## backtest on real data beside the best known methods
	$(BIN)/python benchmarks/accuracy.py --kinds ../shared/cases/series --write docs/bench/accuracy.md

bench-accuracy-once: setup  ## the same from four origins not looked at before, and 39 weeks ahead
	$(BIN)/python benchmarks/accuracy.py --sets walmart --origins 2011-12-16,2012-03-16,2012-06-15,2012-08-31 --base --with lightgbm,mstl,svd --write docs/bench/accuracy-other-origins.md
	$(BIN)/python benchmarks/accuracy.py --sets walmart --origins 2012-01-27 --horizon 39 --write docs/bench/accuracy-39-weeks.md

bench-training: setup  ## samples per second beside the usual DataLoader + DDP
	$(BIN)/python benchmarks/training.py --write

bench-import: setup  ## import of 10 million receipts, beside plain Polars
	$(BIN)/python benchmarks/importing.py --write

bench-experience: setup  ## import, help, first output, first chart of the report (needs Chromium for the chart)
	$(BIN)/python benchmarks/experience.py --write

bench-serving: setup  ## latency and throughput of the forecast server
	$(BIN)/python benchmarks/serving.py --write

pictures: setup  ## the pictures of README.md, from the finished run in shared/ (needs Chromium)
	$(BIN)/python docs/pictures.py

docs: setup  ## build the documentation as a site in build/docs, readable without a network; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

release-notes: setup  ## print the section of CHANGELOG.md for the version in pyproject.toml
	@$(BIN)/python docs/release_notes.py

IMAGE ?= salescast:0.1.0
BASE_IMAGE ?= registry.access.redhat.com/ubi9/python-312-minimal:9.8
BUILDER ?= $(firstword $(foreach tool,podman buildah docker,$(if $(shell command -v $(tool)),$(tool))) podman)

manifests: setup  ## render and check the manifests; VALIDATOR="python validate_manifests.py" runs that one too
	$(BIN)/python -m pytest tests/manifests
	$(if $(VALIDATOR),$(BIN)/python tests/manifests/validate.py $(VALIDATOR))

rehearse: setup  ## run the manifests as real processes of this machine (Linux, root, kubectl, PostgreSQL)
	$(BIN)/python tests/rehearse/rehearse.py

dist: setup  ## build the wheel in dist/; it needs nothing of this repository
	rm -rf build dist
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	rm -rf build

image:  ## build the image of every pod as IMAGE, on BASE_IMAGE
	$(BUILDER) build --file Containerfile --build-arg BASE_IMAGE=$(BASE_IMAGE) \
		--build-arg REVISION=$$(git rev-parse HEAD) --tag $(IMAGE) .

fuzz: setup  ## import 12,000 damaged files of every form: no traceback, no row lost (bounded: 30 minutes)
	FUZZ_EXAMPLES=12000 timeout 1800 $(BIN)/python -m pytest tests/data/test_fuzz.py

faults: setup  ## break everything on purpose, many times, and write docs/reliability.md (Linux; some of it as root)
	FAULT_ROUNDS=$(or $(ROUNDS),5) PYTHONPATH=tests/faults $(BIN)/python -m pytest -p ledger -m fault --reliability docs/reliability.md --timeout 7200

soak: setup  ## half an hour of load on the server with model swaps and database restarts
	$(BIN)/python benchmarks/soak.py

sbom: setup  ## write sbom.cdx.json, every package of .venv with its version and licence (the image holds its own)
	$(BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-file sbom.cdx.json

audit:  ## look the pinned packages up among known vulnerabilities (needs the network)
	test -x .tools/bin/pip-audit || { $(PYTHON) -m venv .tools && .tools/bin/pip install --quiet pip-audit==2.10.1; }
	.tools/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

pin:  ## write IMAGE, best with its digest, into the manifests
	grep -rl 'image: salescast:0.1.0' manifests --include=*.yaml | xargs sed -i 's#image: salescast:0.1.0#image: $(IMAGE)#'

clean:  ## remove what runs and tests have made (not .venv)
	rm -rf shared *-run .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage*
