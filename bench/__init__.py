"""How fast the engine and training are, and how much recipes learn from the same tokens.

`make bench` measures the engine beside others and beside what the machine can do at most; it writes
RESULTS.md and speed.png. `make bench-kernels` measures each kernel alone. `make bench-train`
measures how fast training is and writes TRAINING.md; `make bench-learning` compares what recipes
learn. Nothing here is part of the library.
"""
