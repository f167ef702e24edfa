"""How fast the engine is: beside other engines and beside what the machine can do at most.

`make bench` measures all and writes RESULTS.md and speed.png; `make bench-kernels` measures each
kernel alone. Nothing here is part of the library.
"""
