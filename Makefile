# `make` alone prints what there is. Everything runs in .venv, which is made on demand.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# DVC's stages find `python` there.
export PATH := $(CURDIR)/$(BIN):$(PATH)
SIZE := $(shell sed -n 's/^model: *\([^ \#]*\).*/\1/p' params.yaml)

# bench and sizes: sizes in params.yaml; bench: how often each engine is asked.
SIZES ?= 2m 7m 30m
ROUNDS ?= 5
PEERS := build/bench/peers

# train-distributed: processes on this machine.
NPROC ?= 2

# sweep: learning rates.
RATES ?= 1e-3 2e-3 4e-3 8e-3

# fuzz-tokenizer: how long.
MINUTES ?= 60

# interop and bench: a checkout of llama2.c, if there is one.
ifdef LLAMA2C
export LLAMA2C := $(abspath $(LLAMA2C))
endif

# run-c: what is given is passed on, the rest is the program's own default.
ifeq ($(origin MODEL),undefined)
MODEL := models/$(SIZE)/export/f32.slm
endif
PROMPT ?= Once upon a time
# As they were typed: a dollar sign is a dollar sign.
override MODEL := $(value MODEL)
override PROMPT := $(value PROMPT)
export MODEL PROMPT
SETTINGS = $(if $(SEED),--seed "$$SEED") $(if $(TEMPERATURE),--temperature "$$TEMPERATURE") \
	$(if $(TOP_K),--top-k "$$TOP_K") $(if $(TOP_P),--top-p "$$TOP_P") \
	$(if $(MIN_P),--min-p "$$MIN_P") $(if $(MAX_TOKENS),--max-tokens "$$MAX_TOKENS")
export SEED TEMPERATURE TOP_K TOP_P MIN_P MAX_TOKENS

.DELETE_ON_ERROR:

.PHONY: help setup story train-distributed engine run-c sizes sweep plots corpus vocab-table test interop bench bench-tokenizer bench-pretokenize fuzz-tokenizer bench-kernels bench-train bench-learning bench-quality lint format clean

help: ## print this
	@echo "StoryLlamas: train a small Llama on your machine and have it tell stories in C."
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make run-c PROMPT=\"One day\" SEED=7 TEMPERATURE=0.8 TOP_P=0.9 MAX_TOKENS=256 MODEL=FILE"

setup: $(VENV)/installed ## install everything, with the engine, into .venv

story: setup ## train the model of params.yaml (minutes the first time) and tell a story
	$(BIN)/dvc repro
	@echo
	@$(MAKE) --no-print-directory run-c

train-distributed: setup ## train the model of params.yaml in several processes: NPROC=2
	$(BIN)/python -m storyllamas.experiments.dvc exp run \
		-S model=$(SIZE) -S compute.processes=$(NPROC) train@$(SIZE)

engine: ## build the C program, csrc/build/run
	@$(MAKE) --no-print-directory -C csrc

run-c: engine ## tell a story with the C program
	@csrc/build/run "$$MODEL" $(SETTINGS) --prompt "$$PROMPT"

sizes: setup ## train every size as an experiment and compare them: RECIPE=, STEPS=, SIZES=
	@$(BIN)/python -m storyllamas.experiments.run sizes --sizes $(SIZES) \
		$(if $(RECIPE),--recipe $(RECIPE)) $(if $(STEPS),--steps $(STEPS))

sweep: setup ## try learning rates as experiments, the best first: RATES=, SIZE=, RECIPE=, STEPS=
	@$(BIN)/python -m storyllamas.experiments.run sweep --sizes $(SIZE) --rates $(RATES) \
		$(if $(RECIPE),--recipe $(RECIPE)) $(if $(STEPS),--steps $(STEPS))

plots: setup ## draw the loss of every size trained so far: metrics/losses.png
	$(BIN)/python -m storyllamas.experiments.losses

corpus: setup ## print and draw what is in the corpus in use: metrics/corpus.png
	$(BIN)/storyllamas corpus --picture metrics/corpus.png

vocab-table: setup ## compare sizes of the vocabulary on the corpus in use: metrics/vocabulary.*
	$(BIN)/python -m storyllamas.corpus_stats.vocab_table

test: $(VENV)/installed-dev ## install what tests need and run them all
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

interop: $(VENV)/installed-interop ## compare with transformers, llama.cpp and, in LLAMA2C=FOLDER, llama2.c
	$(BIN)/python -m pytest tests/interop
	$(BIN)/python tests/interop/table.py

bench: $(PEERS)/installed ## measure speed, beside other engines and the machine's limits
	$(PEERS)/bin/python -m bench --sizes $(SIZES) --rounds $(ROUNDS)

bench-kernels: $(VENV)/installed ## measure each kernel beside the machine's limits
	$(BIN)/python -m bench.kernels --sizes $(SIZES)

bench-train: setup ## measure the speed of training, beside a plain loop and the machine's peak
	$(BIN)/python -m bench.train --sizes $(SIZES) --rounds $(ROUNDS) $(if $(RECIPES),--recipes $(RECIPES))

bench-learning: setup ## what recipes learn from the same tokens (hours): TOKENS=, SEEDS=, CORPUS=
	$(BIN)/python -m bench.learning $(if $(TOKENS),--tokens $(TOKENS)) $(if $(SEEDS),--seeds $(SEEDS)) \
		$(if $(CORPUS),--corpus "$(CORPUS)")

bench-quality: setup ## measure what 8 and 4 bits cost the trained model, by group size
	$(BIN)/python -m bench.quality

bench-tokenizer: $(VENV)/installed-bench ## measure the tokenizer, beside SentencePiece and tokenizers: CORPUS=
	$(BIN)/python -m bench.tokenizer $(if $(CORPUS),"$(CORPUS)")

bench-pretokenize: $(VENV)/installed-bench ## measure pretokenize on two gigabytes: CORPUS=
	$(BIN)/python -m bench.pretokenize $(if $(CORPUS),"$(CORPUS)")

fuzz-tokenizer: $(VENV)/installed-dev ## compare the tokenizer with SentencePiece on random texts: MINUTES=60
	$(BIN)/python -m bench.fuzz_tokenizer --minutes $(MINUTES)

lint: $(VENV)/installed-dev ## check format, lint and types, as CI does
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.c' '*.h')

format: $(VENV)/installed-dev ## format Python and C
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $$(git ls-files '*.c' '*.h')

clean: ## remove builds and caches; keeps models, data and .venv
	$(MAKE) -C csrc clean
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find storyllamas stages tests -name __pycache__ -prune -exec rm -rf {} +
	find . -name '.*.tmp' -not -path './.git/*' -not -path './$(VENV)/*' -prune -exec rm -rf {} +

ENGINE_SOURCES := setup.py storyllamas/engine/build.py $(wildcard csrc/*.[ch] csrc/*/*.[ch])

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml constraints.txt $(ENGINE_SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	@touch $@

$(VENV)/installed-bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

# llama-cpp-python is built from its source package, which takes some minutes and needs a compiler.
$(VENV)/installed-interop: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[interop]'
	@touch $@

# What the engine is compared with, on top of .venv's packages; what cannot be had is left out.
# llama-cpp-python is built from its source package, for this processor.
$(PEERS)/installed: $(VENV)/installed bench/requirements.txt
	$(BIN)/python -m venv --clear --without-pip $(PEERS)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> $$($(PEERS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/venv.pth
	@sed '/^#/d' bench/requirements.txt | while read -r package; do \
		echo "installing $$package"; \
		CMAKE_ARGS=-DGGML_NATIVE=ON $(BIN)/python -m pip --python $(PEERS)/bin/python install \
			--quiet --disable-pip-version-check -c constraints.txt "$$package" \
			|| echo "$$package cannot be installed here: the results will say so"; \
	done
	@touch $@
