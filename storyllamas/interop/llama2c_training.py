"""The checkpoint that llama2.c's train.py saves, ckpt.pt: PyTorch tensors and model_args.

It is read with torch.load and weights_only, which runs no code from the file.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storyllamas.errors import UserError
from storyllamas.interop.llama2c import NORM_EPS, ROPE_THETA, read_tokenizer
from storyllamas.interop.model import (
    InteropModel,
    check_tensors,
    external_name,
    make_config,
    parts,
    stack,
)
from storyllamas.slm.quantize import Float32

PARTS = {
    "embedding.weight": "tok_embeddings.weight",
    "attention_norm.weight": "attention_norm.weight",
    "attention.query.weight": "attention.wq.weight",
    "attention.key.weight": "attention.wk.weight",
    "attention.value.weight": "attention.wv.weight",
    "attention.output.weight": "attention.wo.weight",
    "feed_forward_norm.weight": "ffn_norm.weight",
    "feed_forward.gate.weight": "feed_forward.w1.weight",
    "feed_forward.up.weight": "feed_forward.w3.weight",
    "feed_forward.down.weight": "feed_forward.w2.weight",
    "norm.weight": "norm.weight",
    "classifier.weight": "output.weight",
}

KEYS = {
    "dim": "dim",
    "hidden": "hidden_dim",
    "layers": "n_layers",
    "heads": "n_heads",
    "kv_heads": "n_kv_heads",
    "vocab_size": "vocab_size",
    "context": "max_seq_len",
    "head_dim": "dim / n_heads",
    "rope_theta": "rope_theta",
    "norm_eps": "norm_eps",
    "tied": "tied",
}

COMPILED = "_orig_mod."
"""The prefix that torch.compile adds to names."""

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""The types of weights that are read."""


def read(path: Path, tokenizer: Path | None = None) -> InteropModel:
    """Open a ckpt.pt.

    Args:
        path: the file.
        tokenizer: its tokenizer.bin or tokenizer.model; None: tokenizer.bin in the same folder.

    Raises:
        UserError: a file is missing or damaged, or is not such a checkpoint.
    """
    tensors, arguments = _load(path)
    config = make_config(str(path), KEYS, _values(path, tensors, arguments))
    expected = {external_name(name, PARTS, "layers"): p.shape for name, p in parts(config).items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if config.tied:
        found.pop(PARTS["classifier.weight"], None)
    check_tensors(str(path), expected, found)

    def part(name: str) -> Float32:
        value: Float32 = tensors[external_name(name, PARTS, "layers")].float().numpy()
        return value

    vocabulary = read_tokenizer(tokenizer or path.with_name("tokenizer.bin"), config.vocab_size)
    return InteropModel(config, vocabulary, stack(config, part))


def _load(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Return the weights by llama2.c's names, and model_args."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of old kinds of tensors
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds other things than weights, or is damaged: only a ckpt.pt of llama2.c's "
            "train.py can be imported"
        ) from None
    except Exception as error:  # the documentation of pickle names no complete list
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path} cannot be read: {reason}") from None
    tensors = values.get("model") if isinstance(values, dict) else None
    arguments = values.get("model_args") if isinstance(values, dict) else None
    if not isinstance(tensors, dict) or not isinstance(arguments, dict):
        raise UserError(
            f"{path} has no model and model_args: only a ckpt.pt of llama2.c's train.py can be "
            "imported"
        )
    weights = {
        str(name).removeprefix(COMPILED): tensor.detach()
        for name, tensor in tensors.items()
        if isinstance(tensor, Tensor) and not str(name).endswith(("freqs_cos", "freqs_sin"))
    }
    for name, tensor in weights.items():
        is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not (is_plain and tensor.dtype in FLOATS and tensor.ndim):
            raise UserError(
                f"tensor {name} in {path} is of type {tensor.dtype} and {tensor.ndim} dimensions: "
                "only dense matrices and vectors of 16, 32 or 64 bits a weight can be imported"
            )
    return weights, arguments


def _values(
    path: Path, tensors: Mapping[str, Tensor], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return model_args with the values that train.py derives."""
    values = {"rope_theta": ROPE_THETA, "norm_eps": NORM_EPS}
    values |= {str(name): value for name, value in arguments.items() if value is not None}
    heads, dim = values.get("n_heads"), values.get("dim")
    if not isinstance(heads, int) or not isinstance(dim, int) or heads < 1 or dim % heads:
        raise UserError(f"n_heads in {path} is {heads!r} and must divide dim ({dim!r})")
    values.setdefault("n_kv_heads", heads)
    values["dim / n_heads"] = dim // heads
    gate, embedding, output = (
        tensors.get(name)
        for name in ("layers.0.feed_forward.w1.weight", "tok_embeddings.weight", "output.weight")
    )
    if gate is not None:
        values["hidden_dim"] = len(gate)
    values["tied"] = output is None or (embedding is not None and torch.equal(output, embedding))
    return values
