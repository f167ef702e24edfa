"""The same weights for every engine."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from string import ascii_letters, digits

import numpy as np
import yaml

from bench.build import BUILD, ROOT
from storyllamas import params
from storyllamas.config import ModelConfig, tensor_shapes
from storyllamas.interop.formats import export_model
from storyllamas.interop.model import Source, open_source
from storyllamas.slm import weight_file
from storyllamas.slm.encoding import GROUP_SIZES, storage
from storyllamas.vocabulary import PieceType, Vocabulary

SEED = 1
SPREAD = 6.0
"""Standard deviation of random logits. Among 4,096 normal ones the next token is then as uncertain
as to a model that was trained on TinyStories: 1.6 nats, on average."""

EMBEDDING = 0.02
"""Standard deviation of random embeddings."""


@dataclass(frozen=True)
class Model:
    """A model whose files are ready.

    Attributes:
        size: its name in params.yaml.
        config: its shape.
        about: what its weights are.
        folder: where its files are, FORMAT.slm or FORMAT/… for each format.
    """

    size: str
    config: ModelConfig
    about: str
    folder: Path

    @property
    def is_trained(self) -> bool:
        """Whether the weights are a training's; random ones have ties that rounding decides."""
        return self.about.startswith("trained")

    def weight_bytes(self, weight_type: str) -> int:
        """Bytes of all tensors in the weight file of a type.

        A token reads them all, where the classifier is the embedding.
        """
        return weight_file.read(self.folder / f"{weight_type}.slm").tensors_bytes


def prepare(size: str, formats: set[str]) -> Model:
    """Export a size in every format wanted, trained where it has been.

    Args:
        size: a key of `sizes` in params.yaml.
        formats: types of weight files, names of `interop.convert.FORMATS`, and "ct2" with a type.
    """
    checkpoint = ROOT / "models" / size
    if (checkpoint / "config.json").exists():
        source, about = open_source(checkpoint), "trained"
        about = f"trained, recipe {source.about.get('recipe', 'unknown')}"
    else:
        source, about = _random_source(shape(size)), f"random weights of seed {SEED}"
    model = Model(size, source.config, about, BUILD / "models" / size)
    for name in sorted(formats, key=lambda name: (name.startswith("ct2-"), name)):
        _export(source, name, model.folder)  # CTranslate2's come last: they are made from hf
    return model


def shape(size: str) -> ModelConfig:
    """The shape of a size in params.yaml."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    return params.parse(raw | {"model": size}).model_config()


def _export(source: Source, name: str, folder: Path) -> None:
    if name in GROUP_SIZES:
        path = folder / f"{name}.slm"
        weight_file.write(path, source.config, source.vocabulary, source.tensor, storage(name))
    elif name.startswith("ct2-"):
        _convert_to_ctranslate2(folder / "hf", folder / name, name.removeprefix("ct2-"))
    else:
        export_model(source, name, folder / name)


def _convert_to_ctranslate2(source: Path, target: Path, weight_type: str) -> None:
    from ctranslate2.converters import TransformersConverter
    from transformers.utils import logging

    logging.disable_progress_bar()
    shutil.rmtree(target, ignore_errors=True)
    TransformersConverter(str(source)).convert(str(target), quantization=weight_type)


def _random_source(config: ModelConfig) -> Source:
    """Normal weights that neither fade nor explode, and logits as spread as `SPREAD`.

    Embeddings are small beside what the layers add, or the likeliest token would be the last one.
    """
    random = np.random.default_rng(SEED)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        if len(shape) == 1:
            tensors[name] = np.ones(shape, np.float32)
        else:
            deviation = 1 / math.sqrt(shape[1]) if name.startswith("layers.") else EMBEDDING
            tensors[name] = random.standard_normal(shape, np.float32) * np.float32(deviation)
    tensors["norm.weight"] *= np.float32(SPREAD / (EMBEDDING * math.sqrt(config.dim)))
    return Source(config, _vocabulary(config.vocab_size), tensors.__getitem__)


def _vocabulary(size: int) -> Vocabulary:
    """Special and byte pieces as in Llama, then letters and merges of two and three of them."""
    letters = ["\u2581", *ascii_letters, *digits]
    merged = ("".join(piece) for length in (2, 3) for piece in product(letters, repeat=length))
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces = [*specials, *letters, *merged][:size]
    types = [PieceType.UNKNOWN, *[PieceType.CONTROL] * 2, *[PieceType.BYTE] * 256]
    types += [PieceType.NORMAL] * (size - len(specials))
    scores = np.minimum(len(specials) - np.arange(size), 0)
    return Vocabulary(
        [piece.encode() for piece in pieces], scores.astype(np.float32), np.array(types, np.uint8)
    )
