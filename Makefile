# Each target installs what it needs into .venv, pinned. CORPUS is a path to text, "tinystories" or "builtin" (the default of the laptop study).
PYTHON ?= python3
STUDY  ?= studies/laptop.toml
BIN    := .venv/bin

# A path may hold spaces, quotes and dollars: it is taken as it was typed, and reaches a shell as one word.
quoted = '$(subst ','\'',$(1))'
override STUDY  := $(value STUDY)
override CORPUS := $(value $(if $(filter undefined,$(origin CORPUS)),ABLATION_CORPUS,CORPUS))
PLACE := import os, sys; p = os.path.expanduser(sys.argv[1]); print(os.path.realpath(p) if os.path.exists(p) else p)
override ABLATION_CORPUS := $(if $(CORPUS),$(or $(shell $(PYTHON) -c '$(PLACE)' $(call quoted,$(CORPUS))),$(CORPUS)))
export ABLATION_CORPUS

STUDY_PINS := \# What a study needs, as it was tested with Python 3.11; made by `make pins`. torch has a file of its own; settings.ini holds the ranges.
DEV_PINS := \# What the project needs besides: JupyterLab, the site, tests, linters; made by `make pins`.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-compile

.PHONY: install dev pins study test lint bench gpu wheels lab docs readme clean

# Lists of packages that share none are installed side by side: two jobs, on two cores. Never by two such makes at once.
dev: | $(filter install study wheels,$(MAKECMDGOALS))

install: ; @$(MAKE) --no-print-directory --silent --jobs=2 .venv/.installed  ## what a study needs

dev: ; @$(MAKE) --no-print-directory --silent --jobs=2 .venv/.dev  ## what notebooks, tests and the site need besides

.venv/bin/python:
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"make install pins packages for Python 3.11 or newer, this is {v[0]}.{v[1]}: pass PYTHON=/path/to/python3.11, or use pip install -e . for the ranges of settings.ini.")'
	$(PYTHON) -m venv .venv

.venv/.packages: requirements.txt | .venv/bin/python
	echo "Installing what a study needs into .venv: about 1.4 GB with torch for CPUs, half of it torch; a minute and the time of the download."
	$(PIP) --quiet --no-deps --require-hashes --requirement $<
	touch $@

.venv/.torch: requirements-torch.txt | .venv/bin/python
	$(PIP) --no-deps --requirement $<
	touch $@

.venv/.tools: requirements-dev.txt | .venv/bin/python
	echo "Installing JupyterLab, Sphinx, tests and linters into .venv: about 0.6 GB more, a minute."
	$(PIP) --quiet --no-deps --require-hashes --requirement $<
	touch $@

# A torch for other devices brings packages of its own; that for CPUs has all of its own by now.
.venv/.installed: .venv/.packages .venv/.torch settings.ini setup.py pyproject.toml
	echo "Looking for what this torch needs besides."
	$(PIP) --quiet --requirement requirements-torch.txt
	$(PIP) --quiet --no-deps --no-build-isolation --editable .
	du -sh .venv
	touch $@

.venv/.dev: .venv/.installed .venv/.tools
	touch $@

HASHED := build/uv/bin/uv pip compile --quiet --no-deps --generate-hashes --no-annotate --no-header --python-version 3.11
pins: dev  ## requirements.txt and requirements-dev.txt anew: what lies in .venv, each file with its hash on PyPI
	$(PYTHON) -m venv build/uv && build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/python .ci/pins.py study > build/study.in
	$(BIN)/python .ci/pins.py dev > build/dev.in
	(echo '$(STUDY_PINS)'; $(HASHED) build/study.in) > build/requirements.txt
	(echo '$(DEV_PINS)'; $(HASHED) build/dev.in) > build/requirements-dev.txt
	mv build/requirements.txt build/requirements-dev.txt .

study: install  ## run the laptop study (or STUDY=...) and print its table
	$(BIN)/ablation run $(call quoted,$(STUDY))
	$(BIN)/ablation report $(call quoted,$(STUDY))

# A process more than there are cores, as some wait; not many more than there are files of tests that take minutes.
PROCESSES := import os; print(1 + min(8, os.cpu_count()))

# Several tests run at a time: threads that wait for each other on busy cores took four times as long.
test: export OMP_NUM_THREADS := 1
# Each process that would help to compile imports torch; each that may keep no bytecode compiles the package.
test: export TORCHINDUCTOR_COMPILE_THREADS := 1
test: export PYTHONDONTWRITEBYTECODE :=
# What the compiler of torch made once, it does not make again for every copy of the project.
test: export TORCHINDUCTOR_CACHE_DIR := $(CURDIR)/.cache/inductor
test: dev  ## names, then types, the notebooks' own tests and those from end to end, side by side
	$(BIN)/ruff check nbs tests ablation_nb setup.py
	$(BIN)/python -m pytest -q -rs --numprocesses $$($(BIN)/python -c '$(PROCESSES)') --dist loadfile --no-loadscope-reorder --durations 20 tests

lint: dev  ## names, types and loose ends of notebooks, package and tests
	$(BIN)/ruff check nbs tests ablation_nb setup.py
	$(BIN)/mypy

bench: dev .venv/.bench  ## our step beside its peers and the machine's own rate, in some minutes
	mkdir -p out
	$(BIN)/papermill --log-output nbs/benchmark.ipynb out/benchmark.ipynb
	$(BIN)/python -c 'import json, pandas; d = json.load(open("out/benchmark.json")); print(d["device"], pandas.DataFrame(d["race"]).round(2).to_string(index=False), "times the best peer:", d["lead"], sep="\n")'

.venv/.bench: requirements-bench.txt | dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-bench.txt
	touch $@

# A machine with a card and no network: what it lacks lies in .whl. Without that folder the usual environment is made.
LIMIT ?= 560
VISITOR := $(if $(wildcard .whl),$(PYTHON),$(BIN)/python)
gpu: $(if $(wildcard .whl),,dev)  ## a short visit to a card: checks, race, then STUDY for LIMIT seconds in all; results in $OUT or out/visit
	if [ -d .whl ]; then $(PYTHON) -m pip install --quiet --disable-pip-version-check --no-index --no-deps --find-links .whl --requirement requirements-gpu.txt; fi
	$(VISITOR) -m ablation_nb.visit run $(call quoted,$(STUDY)) --time-limit $(call quoted,$(LIMIT)) $(VISIT)

wheels: install  ## .whl, for carrying: what requirements-gpu.txt lists, for Python 3.12 on Linux
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none \
	  $(foreach n,28 27 24 17 12,--platform manylinux_2_$(n)_x86_64) --platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --dest .whl --requirement requirements-gpu.txt

# The address that it prints opens the first page; .jupyter/ answers its question about news from elsewhere: no.
FIRST_PAGE := nbs/index.ipynb
LAB := JUPYTER_CONFIG_PATH='$(CURDIR)/.jupyter'$(if $(JUPYTER_CONFIG_PATH),:$(JUPYTER_CONFIG_PATH)) $(BIN)/jupyter lab --ip=127.0.0.1
lab: dev  ## JupyterLab at the first page, on this machine only
	env $(LAB) --ServerApp.root_dir='$(CURDIR)' --LabApp.default_url=/lab/tree/$(FIRST_PAGE) $(if $(filter 0,$(shell id -u)),--allow-root) $(FIRST_PAGE)

docs: dev  ## the rendered site, _docs/index.html, from what is committed: nothing is trained or executed
	$(BIN)/python nbs/_sphinx/make_docs.py

readme: dev  ## README.md from nbs/index.ipynb
	$(BIN)/nbdev-test nbs/index.ipynb --save
	$(BIN)/nbdev-clean --fname nbs/index.ipynb
	$(BIN)/jupyter nbconvert nbs/index.ipynb --to markdown --no-input --log-level ERROR --output-dir . --output README
	sed -i 's#](\.\./#](#g' README.md && cat -s README.md > README.tmp && mv README.tmp README.md

clean:  ## what can be made again; results stay
	rm -rf .cache _proc _docs build *.egg-info .pytest_cache
