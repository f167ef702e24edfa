"""Models of other programs, in and out: llama2.c, GGUF (llama.cpp, Ollama), Hugging Face.

Each format has a file of its own with `write(source, folder, …)` and `read(path)`; what they share
is `source.py`. `convert.py` chooses between them by name. A conversion holds one tensor at a time.
"""
