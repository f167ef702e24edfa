# `make` alone lists the targets. Everything runs in .venv, which is created on demand. Every path
# may contain spaces: recipes take the user's values from the environment, in quotes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# DVC's stages call `python`, which must be that of .venv.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# The value of `model`, with or without quotes.
SIZE := $(shell sed -n 's/^model: *["'"'"']*\([^"'"'"' \#]*\).*/\1/p' params.yaml)

# bench*, sizes: keys of `sizes` in params.yaml. bench, bench-train, bench-web: rounds of measurements.
SIZES ?= 2m 7m 30m
ROUNDS ?= 5
PEERS := build/bench/peers

# train-distributed: number of training processes on this machine.
NPROC ?= 2

# sweep: learning rates.
RATES ?= 1e-3 2e-3 4e-3 8e-3

# serve-web: the port.
PORT ?= 8000

# fuzz-tokenizer: minutes that each of its two fuzzers runs. fuzz: seconds that each of its fuzzers runs.
MINUTES ?= 60
SECONDS ?= 60

# interop, bench, bench-train, bench-web: the folder of a llama2.c checkout, optional. $(abspath) splits at spaces.
ifdef LLAMA2C
override LLAMA2C := $(if $(filter /%,$(firstword $(LLAMA2C))),,$(CURDIR)/)$(value LLAMA2C)
export LLAMA2C
endif

# bench-learning, bench-scaling, bench-tokenizer, bench-pretokenize: a corpus, optional.
# agreement: a CSV file of scores, and a file of training stories, optional.
export CORPUS SCORES
# report: an experiment or revision to compare with, optional.
export BASE
# bench-draft: the weight file of the draft model.
export DRAFT
# bench-server: llama.cpp's program llama-server, optional.
export LLAMA_SERVER

PRETRAINED := models/pretrained/tinystories-2m-q4.slm
# run-c: only the options that you give are passed; the program has defaults for the others.
ifneq ($(origin MODEL),undefined)
HAS_MODEL := yes
else
# Your own model if it is trained, else one that comes with the project.
MODEL := $(or $(wildcard models/$(SIZE)/export/f32.slm),$(PRETRAINED))
endif
PROMPT ?= Once upon a time
# $(value) keeps a dollar sign as it is typed.
override MODEL := $(value MODEL)
override PROMPT := $(value PROMPT)
export MODEL PROMPT
SETTINGS = $(if $(SEED),--seed "$$SEED") $(if $(TEMPERATURE),--temperature "$$TEMPERATURE") \
	$(if $(TOP_K),--top-k "$$TOP_K") $(if $(TOP_P),--top-p "$$TOP_P") \
	$(if $(MIN_P),--min-p "$$MIN_P") $(if $(MAX_TOKENS),--max-tokens "$$MAX_TOKENS")
export SEED TEMPERATURE TOP_K TOP_P MIN_P MAX_TOKENS

# cortex-m7: a model that fits the flash of a microcontroller.
FIRMWARE = MODEL="$$(realpath $(if $(HAS_MODEL),"$$MODEL",$(or $(wildcard models/$(SIZE)/export/q4.slm),$(PRETRAINED))))"

.DELETE_ON_ERROR:
# Two targets must not install into .venv at the same time.
.NOTPARALLEL:

.PHONY: help setup story train-distributed engine run-c web serve-web cortex-m7 run-cortex-m7 sizes sweep plots corpus vocab-table test interop bench bench-tokenizer bench-pretokenize fuzz fuzz-tokenizer bench-kernels bench-web bench-train bench-learning bench-quality lint format clean

help: ## list the targets
	@echo "StoryLlamas: train a small Llama on your machine and generate stories in C."
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  make run-c PROMPT=\"One day\" SEED=7 TEMPERATURE=0.8 TOP_P=0.9 MAX_TOKENS=256 MODEL=FILE"

setup: $(VENV)/installed ## install the package and the C engine into .venv

story: setup ## train the model that params.yaml names (minutes the first time) and print a story
	$(BIN)/dvc repro
	@echo
	@# MODEL was chosen before there was a trained model: unless you gave it, choose again.
	@$(if $(HAS_MODEL),,env -u MODEL) $(MAKE) --no-print-directory run-c

train-distributed: setup ## train the model that params.yaml names in several processes: NPROC=
	$(BIN)/python -m storyllamas.experiments.dvc exp run \
		-S model=$(SIZE) -S compute.processes=$(NPROC) train@$(SIZE)

engine: ## build the C program csrc/build/run
	@$(MAKE) --no-print-directory -C csrc

.PHONY: install uninstall
install: ## install the C library and program, not the Python package: PREFIX=, LIBDIR=, DESTDIR=
	@$(MAKE) --no-print-directory -C csrc install

uninstall: ## remove what `make install` installed: PREFIX=, LIBDIR=, DESTDIR=
	@$(MAKE) --no-print-directory -C csrc uninstall

run-c: engine ## print a story with the C program (options: see below)
	@csrc/build/run "$$MODEL" $(SETTINGS) --prompt "$$PROMPT"

web: ## build the page for browsers, with the models that are there: build/web
	@$(MAKE) --no-print-directory -C csrc wasm
	@$(PYTHON) web/build.py csrc/build/engine.wasm build/web $(wildcard models/pretrained/*.slm models/*/export/q[48].slm)

serve-web: web ## show that page at http://localhost:8000: PORT=
	@$(PYTHON) web/serve.py build/web $(PORT)

cortex-m7: ## build a program for a Cortex-M7 without an operating system: MODEL=
	@$(MAKE) --no-print-directory -C examples/cortex-m7 $(FIRMWARE)

run-cortex-m7: ## run it in qemu and print a story: MODEL=, the options of run-c
	@$(MAKE) --no-print-directory -C examples/cortex-m7 $(FIRMWARE) run

sizes: setup ## train each size as an experiment and compare them: SIZES=, RECIPE=, STEPS=
	@$(BIN)/python -m storyllamas.experiments.run sizes --sizes $(SIZES) \
		$(if $(RECIPE),--recipe $(RECIPE)) $(if $(STEPS),--steps $(STEPS))

sweep: setup ## train with each learning rate as an experiment and rank them: RATES=, SIZE=, RECIPE=, STEPS=
	@$(BIN)/python -m storyllamas.experiments.run sweep --sizes $(SIZE) --rates $(RATES) \
		$(if $(RECIPE),--recipe $(RECIPE)) $(if $(STEPS),--steps $(STEPS))

plots: setup ## plot the losses of all runs so far: metrics/losses.png
	$(BIN)/python -m storyllamas.experiments.losses

.PHONY: report
report: $(VENV)/installed-report ## write one HTML file of all runs, metrics and stories: build/report.html: BASE=
	@$(BIN)/python -m storyllamas.report $(if $(BASE),--base "$$BASE")

corpus: setup ## print and plot statistics of the corpus: metrics/corpus.png
	$(BIN)/storyllamas corpus --picture metrics/corpus.png

vocab-table: setup ## compare vocabulary sizes on the corpus: metrics/vocabulary.*
	$(BIN)/python -m storyllamas.corpus_stats.vocab_table

.PHONY: agreement
agreement: setup ## correlate the measures of stories with a person's scores: SCORES=, CORPUS= (training stories)
	$(if $(SCORES),,$(error name a file of scores: make agreement SCORES=FILE))
	$(BIN)/python -m storyllamas.measures.agreement $(if $(CORPUS),--train "$$CORPUS") "$$SCORES"

test: $(VENV)/installed-dev ## run all tests
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

interop: $(VENV)/installed-interop ## compare imports and exports with transformers, llama.cpp and, with LLAMA2C=FOLDER, llama2.c
	$(BIN)/python -m pytest tests/interop
	$(BIN)/python tests/interop/table.py

bench: $(PEERS)/installed ## compare the C engine with others and with the machine's limits: SIZES= or MODEL=, ROUNDS=, ENGINES=, LLAMA2C=
	$(PEERS)/bin/python -m bench $(if $(HAS_MODEL),--model "$$MODEL",--sizes $(SIZES)) --rounds $(ROUNDS) $(if $(ENGINES),--engines $(ENGINES))

.PHONY: bench-server
bench-server: $(VENV)/installed-dev ## put the server under load: SIZES=, ROUNDS=, LLAMA_SERVER= (llama.cpp's program)
	$(BIN)/python -m bench.server --sizes $(SIZES) --rounds $(ROUNDS) $(if $(LLAMA_SERVER),--llama-server "$$LLAMA_SERVER")

.PHONY: bench-draft
bench-draft: $(VENV)/installed ## measure what a smaller model that drafts tokens gains: MODEL=, DRAFT=
	$(BIN)/python -m bench.draft "$$MODEL" "$$DRAFT"

bench-kernels: $(VENV)/installed ## compare each kernel with the machine's limits: SIZES=
	$(BIN)/python -m bench.kernels --sizes $(SIZES)

bench-web: $(VENV)/installed-dev ## compare the engine in a browser with llama2.c there and with the native one: ROUNDS=, LLAMA2C=
	$(BIN)/python -m bench.web --rounds $(ROUNDS)

bench-train: setup ## compare training with plain loops and with the machine's peak: SIZES=, ROUNDS=, RECIPES=, LLAMA2C=
	$(BIN)/python -m bench.train --sizes $(SIZES) --rounds $(ROUNDS) $(if $(RECIPES),--recipes $(RECIPES))

.PHONY: bench-plan
bench-plan: setup ## compare the estimates of `storyllamas plan` with runs of 5 minutes: SIZES=, RECIPES=, RUN_MINUTES=
	$(BIN)/python -m bench.plan --sizes $(SIZES) $(if $(RECIPES),--recipes $(RECIPES)) \
		$(if $(RUN_MINUTES),--minutes $(RUN_MINUTES))

bench-learning: setup ## compare the losses of recipes and sizes (hours): TOKENS=, SEEDS=, SIZES=, ROWS=, CORPUS=
	$(BIN)/python -m bench.learning $(if $(TOKENS),--tokens $(TOKENS)) $(if $(SEEDS),--seeds $(SEEDS)) \
		$(if $(filter command% environment%,$(origin SIZES)),--sizes $(SIZES)) \
		$(if $(ROWS),--rows $(ROWS)) $(if $(CORPUS),--corpus "$$CORPUS")

.PHONY: bench-scaling
bench-scaling: setup ## fit a scaling law to 13 runs of three sizes (hours): CORPUS=
	$(BIN)/python -m bench.scaling $(if $(CORPUS),--corpus "$$CORPUS")

bench-quality: setup ## measure bits per byte of q8 and q4 by group size
	$(BIN)/python -m bench.quality

bench-tokenizer: $(VENV)/installed ## compare the tokenizer with SentencePiece and Hugging Face's: CORPUS=
	$(BIN)/python -m bench.tokenizer $(if $(CORPUS),"$$CORPUS")

bench-pretokenize: $(VENV)/installed ## measure the stage pretokenize on 2 GB: CORPUS=
	$(BIN)/python -m bench.pretokenize $(if $(CORPUS),"$$CORPUS")

fuzz-tokenizer: $(VENV)/installed-dev ## compare the tokenizers with SentencePiece and tokenizers on random texts: MINUTES=
	$(BIN)/python tests/fuzz/tokenizer.py --minutes $(MINUTES)
	$(BIN)/python tests/fuzz/ranked_tokenizer.py --minutes $(MINUTES)

fuzz: $(VENV)/installed-dev ## fuzz the weight-file reader (with clang), the tokenizers and the importers: SECONDS=
	$(BIN)/python tests/fuzz/run.py --seconds $(SECONDS)

lint: $(VENV)/installed-dev ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.c' '*.h')

format: $(VENV)/installed-dev ## format Python and C
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $$(git ls-files '*.c' '*.h')

.PHONY: completions
completions: $(VENV)/installed-dev ## write the scripts of shell completion, after a change of the command line
	$(BIN)/python -m storyllamas.completions.generate

clean: ## delete builds and caches; keep models, data and .venv
	$(MAKE) -C csrc clean
	$(MAKE) -C examples/cortex-m7 clean
	$(MAKE) -C examples/esp32 clean
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find storyllamas stages bench tests -name __pycache__ -prune -exec rm -rf {} +
	find . -name '.*.tmp' -not -path './.git/*' -not -path './$(VENV)/*' -prune -exec rm -rf {} +

ENGINE_SOURCES := setup.py storyllamas/engine/build.py $(filter-out csrc/build/%,$(wildcard csrc/*.[ch] csrc/*/*.[ch]))

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A module for one version of Python, from an older build, would be loaded in place of the new one.
$(VENV)/installed: $(BIN)/python pyproject.toml constraints.txt $(ENGINE_SOURCES)
	@rm -f storyllamas/_engine.cpython-*
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,chat,measures]'
	@touch $@

# Has what $(VENV)/installed has, so that a fresh clone builds the engine once.
$(VENV)/installed-dev: $(BIN)/python pyproject.toml constraints.txt $(ENGINE_SOURCES)
	@rm -f storyllamas/_engine.cpython-*
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(VENV)/installed $@

$(VENV)/installed-report: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[report]'
	@touch $@

# Builds llama-cpp-python from source, which takes minutes and needs a C++ compiler.
$(VENV)/installed-interop: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[interop]'
	@touch $@

# The other engines of `make bench`, in a virtual environment that also sees .venv's packages. Builds
# llama-cpp-python from source for this processor. The results name a package that fails to install.
$(PEERS)/installed: $(VENV)/installed bench/requirements.txt
	$(BIN)/python -m venv --clear --without-pip $(PEERS)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$($(PEERS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/venv.pth"
	@sed '/^#/d' bench/requirements.txt | while read -r package; do \
		echo "installing $$package"; \
		CMAKE_ARGS=-DGGML_NATIVE=ON $(BIN)/python -m pip --python $(PEERS)/bin/python install \
			--quiet --disable-pip-version-check -c constraints.txt "$$package" \
			|| echo "warning: $$package cannot be installed and is left out" >&2; \
	done
	@touch $@
