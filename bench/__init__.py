"""Benchmarks of the engine, of training, of the tokenizer and of training recipes.

`make bench` measures the engine, other engines and the limits of the machine. `make bench-train`
measures the speed of training. Both write a page for the machine in bench/results, whose README.md
compares the machines. `make bench-kernels` measures each kernel. `make bench-learning` compares the
losses of recipes, and `make bench-quality` those of weight types and group sizes.
`make bench-tokenizer` and `make bench-pretokenize` measure the tokenizer. The library imports
nothing from here.
"""
