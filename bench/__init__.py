"""Benchmarks of the engine, of training, of the tokenizer and of training recipes.

`make bench` measures the engine, other engines and the limits of the machine; it writes RESULTS.md
and speed.png. `make bench-kernels` measures each kernel. `make bench-train` measures the speed of
training and writes TRAINING.md. `make bench-learning` compares the losses of recipes. The library
imports nothing from here.
"""
