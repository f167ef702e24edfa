"""Import and export of other programs' models: llama2.c, GGUF (llama.cpp, Ollama), Hugging Face.

Each format has a module of its own with `write(model, folder, …)` and `read(path)`; `model.py` has
what they share, and `formats.py` selects one of them. A conversion holds one tensor at a time.
"""
