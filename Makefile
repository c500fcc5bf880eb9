PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint bench bench-gpu docs fuzz faults mutants clean

demo: $(VENV)/demo.stamp
	$(BIN)/roialign extract sample_data/images sample_data/boxes.json -c quickstart -o demo/features.h5
	$(BIN)/roialign inspect demo/features.h5

test: $(VENV)/dev.stamp # files are shared out to two processes
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(VENV)/dev.stamp
	$(BIN)/pytest -m slow

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/cpu.py --json benchmarks/results/cpu.json
	$(BIN)/python benchmarks/pipeline.py --json benchmarks/results/pipeline.json

bench-gpu: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/gpu.py --json benchmarks/results/gpu.json

$(VENV)/demo.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	mkdir -p demo
	touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

# mkdocs without --quiet, which would hide warnings from `strict`: broken links would pass.
docs: $(VENV)/dev.stamp # the site; the page of the command line comes from the commands. Broken links fail
	$(BIN)/python -m typer roialign_cli.cli utils docs --name roialign --output docs/reference/cli.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --site-dir site

fuzz: $(VENV)/dev.stamp # every parser of box files, 200,000 damaged files each: hours
	ROIALIGN_FUZZ=200000 $(BIN)/pytest tests/unit/inputs -k 'anything or damaged_files' --timeout 0

faults: $(VENV)/dev.stamp # every fault of tests/faults, thousands of them: about an hour
	ROIALIGN_FAULTS=full ROIALIGN_FAULTS_TABLE=faults.md $(BIN)/pytest tests/faults -s

mutants: $(VENV)/dev.stamp # faults in the storage code, one at a time: do the quick tests notice? About 40 minutes
	PYTHONPATH=tests $(BIN)/python -m mutants.judge --table mutants.md

clean:
	rm -rf $(VENV) demo dist site
