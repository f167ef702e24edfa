"""What all formats share: a model as its shape, its tokenizer and its tensors, one at a time.

Other formats keep query, key and value apart, and gate and up, where the weight file stacks them.
Here a matrix that stands alone is called a part. The names of the parts:

    embedding.weight
    layers.N.attention_norm.weight
    layers.N.attention.{query,key,value,output}.weight
    layers.N.feed_forward_norm.weight
    layers.N.feed_forward.{gate,up,down}.weight
    norm.weight
    classifier.weight           unless it is the embedding
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from storyllamas import tokenizer
from storyllamas.config import ModelConfig, tensor_shapes
from storyllamas.errors import UserError
from storyllamas.interop.safetensors_file import TensorFiles
from storyllamas.slm import weight_file
from storyllamas.slm.quantize import Float32
from storyllamas.vocabulary import Vocabulary

LARGEST_DIMENSION = 1 << 20
"""The most that the C engine takes."""

LARGEST_LAYERS = 1 << 12
"""Enough for any model; a damaged header's millions would take minutes to walk through."""

OPTIONAL = ("rope_theta", "norm_eps", "tied")
"""Fields of `ModelConfig` that a header may leave at their defaults."""


@dataclass(frozen=True)
class Part:
    """Where a part lies: rows start … start + shape[0] of a tensor of the weight file."""

    tensor: str
    start: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """A model to convert.

    Attributes:
        config: its shape.
        vocabulary: its tokenizer.
        tensor: reads the float32 tensor of a name in `weights.tensor_shapes`.
        about: what is known of its training, as in a checkpoint's config.json; may be empty.
    """

    config: ModelConfig
    vocabulary: Vocabulary
    tensor: Callable[[str], Float32]
    about: Mapping[str, Any] = field(default_factory=dict)

    def part(self, name: str) -> Float32:
        """The float32 tensor of a part's name."""
        part = parts(self.config)[name]
        return self.tensor(part.tensor)[part.start : part.start + part.shape[0]]


@functools.lru_cache
def parts(config: ModelConfig) -> Mapping[str, Part]:
    """Every part by name, in the order of the weight file."""
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


def stack(config: ModelConfig, part: Callable[[str], Float32]) -> Callable[[str], Float32]:
    """A reader of the weight file's tensors from a reader of parts."""

    def tensor(name: str) -> Float32:
        found = [part(each) for each, place in parts(config).items() if place.tensor == name]
        return found[0] if len(found) == 1 else np.concatenate(found)

    return tensor


def foreign_name(part: str, names: Mapping[str, str], layer_prefix: str) -> str:
    """A part's name in another format.

    Args:
        part: name of a part.
        names: the other format's name for each part, those of layers without `layers.N.`.
        layer_prefix: what the other format writes for `layers`.
    """
    if not part.startswith("layers."):
        return names[part]
    _, layer, rest = part.split(".", 2)
    return f"{layer_prefix}.{layer}.{names[rest]}"


def check_tensors(
    where: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse a model whose tensors are not exactly those of the architecture, shapes included."""
    for name, shape in expected.items():
        if name not in found:
            raise UserError(f"{where} has no tensor {name}: is it whole, and a Llama?")
        if found[name] != shape:
            raise UserError(
                f"tensor {name} in {where} has shape {found[name]}: its header asks for {shape}"
            )
    for name in found:
        if name not in expected:
            raise UserError(
                f"{where} has a tensor {name}, which StoryLlamas cannot represent: "
                "only Llama models without biases and adapters can be imported"
            )


def make_config(where: str, names: Mapping[str, str], values: Mapping[str, Any]) -> ModelConfig:
    """The shape that another format's header says.

    Args:
        where: the file, for messages.
        names: the header's key for each field of `ModelConfig`.
        values: the header; a key that it lacks takes the field's default.

    Raises:
        UserError: a value is missing, impossible, or more than the C engine takes.
    """
    fields = {ours: values[theirs] for ours, theirs in names.items() if theirs in values}
    for ours, theirs in names.items():
        if ours in fields:
            _check_field(ours, f"{theirs} in {where}", fields[ours])
        elif ours not in OPTIONAL:
            raise UserError(f"{where} does not say {theirs}: is it a Llama?")
    config = ModelConfig(**fields)
    if config.heads % config.kv_heads:
        raise UserError(
            f"{names['kv_heads']} in {where} is {config.kv_heads} "
            f"and must divide {names['heads']} ({config.heads})"
        )
    if config.head_dim % 2:
        raise UserError(f"the heads in {where} are {config.head_dim} wide: they must be even")
    return config


def _check_field(field: str, what: str, value: object) -> None:
    if isinstance(value, bool) and field != "tied":
        raise UserError(f"{what} is {value!r} and must be a number")
    if field in ("rope_theta", "norm_eps"):
        if not (isinstance(value, int | float) and 0 < value < math.inf):
            raise UserError(f"{what} is {value!r} and must be a number above 0")
        return
    largest = LARGEST_LAYERS if field == "layers" else LARGEST_DIMENSION
    if not (isinstance(value, int) and 0 < value <= largest) and field != "tied":
        raise UserError(f"{what} is {value!r} and must be a whole number from 1 to {largest}")


def open_source(path: str | os.PathLike[str]) -> Source:
    """A weight file, or the folder of a training checkpoint.

    The checkpoint's tokenizer is tokenizer.model in the folder or in the one above it.

    Raises:
        UserError: it is missing or damaged, or the tokenizer is not the checkpoint's.
    """
    path = Path(path)
    if not path.is_dir():
        file = weight_file.read(path)
        return Source(file.config, file.vocabulary, file.tensor)
    return _open_checkpoint(path)


def _open_checkpoint(folder: Path) -> Source:
    again = "train it again with `dvc repro`"
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config, digest = ModelConfig(**about["model"]), about["tokenizer_sha256"]
    except OSError as error:
        raise UserError(f"{folder}/config.json cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"config.json in {folder} is damaged ({error!r}): {again}") from None
    path = folder / "model.safetensors"
    tensors = TensorFiles([path])
    check_tensors(str(path), tensor_shapes(config), tensors.shapes)
    candidates = [folder / "tokenizer.model", folder.parent / "tokenizer.model"]
    pieces = tokenizer.load(next((each for each in candidates if each.exists()), candidates[-1]))
    if digest != pieces.digest.hex():
        raise UserError(f"checkpoint {folder} was trained with another tokenizer: {again}")
    return Source(config, pieces.vocabulary(), tensors.read, about)
