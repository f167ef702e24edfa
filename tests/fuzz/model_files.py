"""Small models in every format that `storyllamas import` reads, as bytes in memory."""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "interop"))

from random_models import make_config, make_source
from ranked import KINDS, pair
from test_llama2c import checkpoint

from storyllamas.config import ModelConfig
from storyllamas.interop import llama2c_training
from storyllamas.interop.formats import export_model
from storyllamas.interop.model import InteropModel, external_name, parts
from storyllamas.vocabulary import Vocabulary

Files = dict[str, bytes]
MODEL, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


@dataclass(frozen=True)
class Source:
    """A model to import: its files, and the one to name; "." names the folder."""

    files: Files
    path: str


def small(**changes: Any) -> ModelConfig:
    """Return a shape whose rows are whole blocks of 32 weights."""
    shape = {"dim": 32, "layers": 1, "heads": 4, "kv_heads": 2, "head_dim": 8, "hidden": 32}
    return make_config(**(shape | {"context": 16, "vocab_size": 290} | changes))


def _exported(source: InteropModel, format_name: str) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        paths = export_model(source, format_name, Path(folder))
        return {path.name: path.read_bytes() for path in paths}


def _with_vocabulary(vocabulary: Vocabulary, **changes: Any) -> InteropModel:
    source = make_source(small(vocab_size=max(290, len(vocabulary.pieces)), **changes))
    return replace(source, vocabulary=vocabulary)


def _gguf(source: InteropModel, type_name: str = "f32") -> Source:
    name = "gguf" if type_name == "f32" else f"gguf-{type_name}"
    return Source({"model.gguf": _exported(source, name)["model.gguf"]}, "model.gguf")


def _gguf_ranked(kind: str) -> Source:
    chat = {"chat_template": "{{ messages[0].content }}", "extra_eos_ids": (5,)}
    vocabulary = replace(pair(kind).vocabulary, bos_id=1, eos_id=0, **chat)
    return _gguf(_with_vocabulary(vocabulary), "q8_0")


def _folder(**changes: Any) -> Source:
    files = _exported(make_source(small(**changes)), "hf")
    del files["README.md"]
    return Source(files, ".")


def _json_only(kind: str) -> Source:
    """Return a folder with a tokenizer.json as the `tokenizers` package writes it."""
    both = pair(kind)
    files = _exported(_with_vocabulary(both.vocabulary), "hf")
    del files["README.md"]
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "<|end|>", "add_bos_token": True}
    files["chat_template.jinja"] = "{{ bos_token }}é{{ messages[0].content }}".encode()
    files["generation_config.json"] = b'{"eos_token_id": [1, 5]}'
    files[TOKENIZER] = both.theirs.to_str().encode()
    files["tokenizer_config.json"] = json.dumps(settings).encode()
    files["special_tokens_map.json"] = json.dumps({"pad_token": "<|end|>"}).encode()
    return Source(files, ".")


def _sharded() -> Source:
    """Return a folder in shards of different types, with a scaling of rotary frequencies."""
    scaling = {"rope_factor": 8.0, "rope_low_freq_factor": 1.0, "rope_high_freq_factor": 4.0}
    source = _folder(
        tied=False, rope_scaling="llama3", rope_original_context=8, rope_theta=5e5, **scaling
    )
    files = dict(source.files)
    tensors = load_tensors(files.pop(MODEL))
    places = {name: f"model-{1 + i % 2:05}-of-00002.safetensors" for i, name in enumerate(tensors)}
    types = (torch.bfloat16, torch.float16)
    for type_, shard in zip(types, sorted({*places.values()}), strict=True):
        held = {name: t.to(type_) for name, t in tensors.items() if places[name] == shard}
        files[shard] = save_tensors(held)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    return Source(files, ".")


def _llama2c(version: int, **changes: Any) -> Source:
    source = make_source(small(**changes))
    files = _exported(source, "llama2c")
    files["model.bin"] = checkpoint(source, version)
    return Source(files, "model.bin")


def _llama2c_training(tied: bool) -> Source:
    source = make_source(small(tied=tied))
    files = _exported(source, "llama2c")
    del files["model.bin"]
    c = source.config
    arguments = {
        "dim": c.dim, "n_layers": c.layers, "n_heads": c.heads, "n_kv_heads": c.kv_heads,
        "vocab_size": c.vocab_size, "multiple_of": 32, "max_seq_len": c.context, "dropout": 0.0,
    }  # fmt: skip
    tensors = {
        external_name(name, llama2c_training.PARTS, "layers"): torch.tensor(
            np.ascontiguousarray(source.part(name))
        )
        for name in parts(c)
    }
    if tied:
        tensors["output.weight"] = tensors["tok_embeddings.weight"]
    file = io.BytesIO()
    torch.save({"model": tensors, "model_args": arguments, "iter_num": 1}, file)
    return Source(files | {"ckpt.pt": file.getvalue()}, "ckpt.pt")


SOURCES: dict[str, Callable[[], Source]] = {
    **{f"gguf {t}": lambda t=t: _gguf(make_source(small()), t) for t in ("f32", "bf16", "q4_0")},
    "gguf linear": lambda: _gguf(
        make_source(small(tied=False, rope_scaling="linear", rope_factor=2.0)), "f16"
    ),
    "gguf llama3 rope": lambda: _gguf(
        make_source(
            small(
                rope_scaling="llama3",
                rope_factor=8.0,
                rope_low_freq_factor=1.0,
                rope_high_freq_factor=4.0,
                rope_original_context=8192,
                rope_theta=5e5,
            )
        )
    ),
    **{
        f"gguf {kind}": lambda kind=kind: _gguf_ranked(kind)
        for kind in ("gpt2", "llama3", "smollm")
    },
    "hf": _folder,
    "hf linear": lambda: _folder(tied=False, rope_scaling="linear", rope_factor=2.0),
    "hf sharded": _sharded,
    **{f"hf {kind}": lambda kind=kind: _json_only(kind) for kind in KINDS},
    **{f"llama2c {v}": lambda v=v: _llama2c(v) for v in (0, 1, 2)},
    "llama2c untied": lambda: _llama2c(2, tied=False),
    "ckpt.pt": lambda: _llama2c_training(True),
    "ckpt.pt untied": lambda: _llama2c_training(False),
}
"""The models by name; each is made when it is called."""
