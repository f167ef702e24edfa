"""A model as all formats share it: its shape, its tokenizer, and its tensors one at a time.

The weight file stacks the query, key and value matrices into one tensor, and the gate and up
matrices into another. Other formats store each of them on its own: these tensors are the parts of
a model. The names of the parts:

    embedding.weight
    layers.N.attention_norm.weight
    layers.N.attention.{query,key,value,output}.weight
    layers.N.feed_forward_norm.weight
    layers.N.feed_forward.{gate,up,down}.weight
    norm.weight
    classifier.weight           only if it is not tied to the embedding
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from storyllamas import instruct
from storyllamas.config import ModelConfig, tensor_shapes
from storyllamas.errors import UserError
from storyllamas.slm import weight_file
from storyllamas.slm.limits import MAX_DIMENSION, MAXIMA
from storyllamas.slm.quantize import Float32
from storyllamas.slm.weight_file import Rows
from storyllamas.vocabulary import Vocabulary

OPTIONAL = ("rope_theta", "norm_eps", "tied")
"""Fields of `ModelConfig` that have a default, so that a header may omit them."""


@dataclass(frozen=True)
class Part:
    """The place of a part in the weight file: rows start to start + shape[0] of a tensor.

    Attributes:
        tensor: name of the tensor, a key of `config.tensor_shapes`.
        start: its first row that belongs to the part.
        shape: shape of the part.
    """

    tensor: str
    start: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class InteropModel:
    """A model to convert.

    Attributes:
        config: its shape.
        vocabulary: its tokenizer.
        tensor: returns a tensor by its name in `config.tensor_shapes`, or reads its rows on demand.
        about: facts about the training, with the keys of a trained model's config.json; empty if
            unknown.
    """

    config: ModelConfig
    vocabulary: Vocabulary
    tensor: Callable[[str], Rows]
    about: Mapping[str, Any] = field(default_factory=dict)

    def part(self, name: str) -> Float32:
        """Read a part by its name, in float32."""
        part = parts(self.config)[name]
        return self.tensor(part.tensor)[part.start : part.start + part.shape[0]]


@dataclass(frozen=True)
class RowReader:
    """A tensor whose rows are read on demand.

    Attributes:
        shape: shape of the tensor.
        read: reads some rows, in float32.
    """

    shape: tuple[int, ...]
    read: Callable[[slice], Float32]

    def __getitem__(self, rows: slice, /) -> Float32:
        """Read some rows."""
        return self.read(rows)


@functools.lru_cache
def parts(config: ModelConfig) -> Mapping[str, Part]:
    """Return every part by its name, in the order of the weight file."""
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    stacks = {
        "qkv": {"query": queries, "key": keys, "value": keys},
        "gate_up": {"gate": config.hidden, "up": config.hidden},
    }
    found = {}
    for name, shape in tensor_shapes(config).items():
        block, _, kind = name.removesuffix(".weight").rpartition(".")
        start = 0
        for part, rows in stacks.get(kind, {kind: shape[0]}).items():
            found[f"{block}.{part}.weight".lstrip(".")] = Part(name, start, (rows, *shape[1:]))
            start += rows
    return found


def stack(config: ModelConfig, part: Callable[[str], Rows]) -> Callable[[str], Rows]:
    """Turn a function that reads parts into one that reads the weight file's stacked tensors."""

    def tensor(name: str) -> Rows:
        found = [part(each) for each, place in parts(config).items() if place.tensor == name]
        return found[0] if len(found) == 1 else np.concatenate([each[:] for each in found])

    return tensor


def external_name(part: str, names: Mapping[str, str], layer_prefix: str) -> str:
    """Return the name of a part in another format.

    Args:
        part: name of a part.
        names: the other format's name for each part; parts of a layer without `layers.N.`.
        layer_prefix: the other format's word for `layers`.
    """
    if not part.startswith("layers."):
        return names[part]
    _, layer, rest = part.split(".", 2)
    return f"{layer_prefix}.{layer}.{names[rest]}"


def check_tensors(
    where: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Check that a model has exactly the tensors of the architecture, in the right shapes.

    Args:
        where: the file, for messages.
        expected: shape of each tensor of the architecture by name.
        found: shape of each tensor of the file by name.

    Raises:
        UserError: a tensor is missing, superfluous or of another shape.
    """
    for name, shape in expected.items():
        if name not in found:
            raise UserError(f"{where} has no tensor {name}: it is incomplete or not a Llama")
        if found[name] != shape:
            raise UserError(
                f"tensor {name} in {where} has shape {found[name]}: its header requires {shape}"
            )
    for name in found:
        if name not in expected:
            raise UserError(
                f"{where} has a tensor {name}, which StoryLlamas cannot represent: "
                "only Llama models without biases and adapters can be imported"
            )


def make_config(where: str, names: Mapping[str, str], values: Mapping[str, Any]) -> ModelConfig:
    """Read the shape of a model from the header of another format.

    Args:
        where: the file, for messages.
        names: the header's key for each field of `ModelConfig`.
        values: the header; a field whose key is missing takes its default.

    Raises:
        UserError: a value is missing, impossible, or above the C engine's limit.
    """
    fields = {ours: values[theirs] for ours, theirs in names.items() if theirs in values}
    for ours, theirs in names.items():
        if ours in fields:
            _check_field(ours, f"{theirs} in {where}", fields[ours])
        elif ours not in OPTIONAL:
            raise UserError(f"{where} has no {theirs}: it is damaged or not a Llama")
    config = ModelConfig(**fields)
    if config.heads % config.kv_heads:
        raise UserError(
            f"{names['kv_heads']} in {where} is {config.kv_heads} "
            f"and must divide {names['heads']} ({config.heads})"
        )
    if config.head_dim % 2:
        raise UserError(f"the head width in {where} is {config.head_dim} and must be even")
    if config.heads * config.head_dim > MAX_DIMENSION:
        raise UserError(
            f"{names['heads']} in {where} is {config.heads}, with heads {config.head_dim} wide: "
            f"together they must be at most {MAX_DIMENSION}"
        )
    return config


def _check_field(field: str, what: str, value: object) -> None:
    if field == "tied":
        if not isinstance(value, bool):
            raise UserError(f"{what} is {value!r} and must be true or false")
    elif field in ("rope_theta", "norm_eps"):
        if not _is_positive(value):
            raise UserError(f"{what} is {value!r} and must be a number above 0 in float32")
    elif isinstance(value, bool):
        raise UserError(f"{what} is {value!r} and must be a number")
    elif not (isinstance(value, int) and 0 < value <= MAXIMA[field]):
        raise UserError(f"{what} is {value!r} and must be a whole number from 1 to {MAXIMA[field]}")


def _is_positive(value: object) -> bool:
    """Return whether a value is a number that is positive and finite in float32."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        with np.errstate(over="ignore", under="ignore"):
            return bool(0 < np.float32(value) < math.inf)
    except OverflowError:
        return False


def open_model(path: str | os.PathLike[str], tokenizers: Iterable[Path] = ()) -> InteropModel:
    """Open a weight file, or the folder of a trained model.

    The tokenizer of a trained model is tokenizer.model in its folder or in the parent folder.

    Args:
        path: the weight file or the folder.
        tokenizers: other files that may be the tokenizer of a trained model.

    Raises:
        UserError: the model is missing or damaged, or was trained with another tokenizer.
    """
    path = Path(path)
    if not path.is_dir():
        file = weight_file.read(path)
        return InteropModel(file.config, file.vocabulary, file.tensor)
    return _open_checkpoint(path, tokenizers)


def _open_checkpoint(folder: Path, tokenizers: Iterable[Path]) -> InteropModel:
    # Only here, so that other models need neither of these packages.
    from storyllamas import tokenizer
    from storyllamas.interop.safetensors_file import TensorFiles

    remedy = "train the model again with `dvc repro`"
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config, digest = ModelConfig(**about["model"]), about["tokenizer_sha256"]
    except OSError as error:
        raise UserError(f"{folder}/config.json cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"config.json in {folder} is damaged or of another program: {remedy}, or convert the "
            "folder with `storyllamas import`"
        ) from None
    path = folder / "model.safetensors"
    tensors = TensorFiles([path])
    check_tensors(str(path), tensor_shapes(config), tensors.shapes)
    candidates = [folder / "tokenizer.model", folder.parent / "tokenizer.model", *tokenizers]
    found = [each for each in candidates if each.exists()] or candidates[1:2]
    for each in map(tokenizer.load, found):
        if digest == each.digest.hex():
            vocabulary = each.vocabulary()
            if about.get("corpus_kind") == "instruct":
                vocabulary = replace(vocabulary, chat_template=instruct.CHAT_TEMPLATE)
            return InteropModel(config, vocabulary, tensors.read, about)
    raise UserError(f"checkpoint {folder} was trained with another tokenizer: {remedy}")
