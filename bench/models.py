"""Export the same weights for every engine."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from string import ascii_letters, digits

import numpy as np
import yaml

from bench.build import BUILD, ROOT
from bench.worker import run_limited
from storyllamas import params
from storyllamas.config import ModelConfig, tensor_shapes
from storyllamas.errors import UserError
from storyllamas.interop.formats import export_model, open_external
from storyllamas.interop.model import InteropModel, open_model
from storyllamas.interop.quantization import suited_storage
from storyllamas.slm import weight_file
from storyllamas.slm.encoding import GROUP_SIZES, Storage, storage
from storyllamas.vocabulary import PieceType, Vocabulary

SEED = 1
SPREAD = 6.0
"""Standard deviation of random logits. With 4,096 pieces the next token then has an entropy of 1.6
nats on average, as in a model trained on TinyStories."""

CONVERT_SECONDS = 300.0
"""A converter of another program that takes longer is killed."""

INTEGER_ARITHMETIC = ("--extra_options", "accuracy_level=4")
"""ONNX Runtime rounds activations to 8 bits, as the other engines do with quantized weights."""

EMBEDDING = 0.02
"""Standard deviation of random embeddings."""


@dataclass(frozen=True)
class Model:
    """A model and its exported files.

    Attributes:
        size: name in params.yaml, or of an imported model.
        config: shape.
        about: origin of the weights.
        folder: of the files FORMAT.slm or FORMAT/… of each format.
        failures: why the export of a format failed, by format.
    """

    size: str
    config: ModelConfig
    about: str
    folder: Path
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def is_trained(self) -> bool:
        """Return whether the weights are trained; random ones have ties that rounding decides."""
        return self.about.startswith("trained")

    def weight_bytes(self, weight_type: str) -> int:
        """Return the bytes of all tensors in the weight file of a type.

        Each token reads all of them, because the classifier is the embedding.
        """
        return weight_file.read(self.folder / f"{weight_type}.slm").tensors_bytes


def prepare(size: str, formats: set[str]) -> Model:
    """Export a size in each of `formats`; weights are random if models/SIZE does not exist.

    Args:
        size: a key of `sizes` in params.yaml.
        formats: types of weight files, names of `interop.formats.FORMATS`, and formats that the
            package of an engine converts: "ct2", "openvino" or "onnxruntime" with a type.
    """
    checkpoint = ROOT / "models" / size
    if (checkpoint / "config.json").exists():
        source, about = open_model(checkpoint), "trained"
        about = f"trained, recipe {source.about.get('recipe', 'unknown')}"
    else:
        source, about = _random_source(shape(size)), f"random weights of seed {SEED}"
    model = Model(size, source.config, about, BUILD / "models" / size)
    return _export_all(model, source, formats, storage)


def prepare_imported(path: Path, formats: set[str]) -> Model:
    """Export an imported model in each of `formats`.

    Args:
        path: a weight file, or a model that `storyllamas import` reads.
        formats: see `prepare`.
    """
    is_weight_file = path.suffix == ".slm"
    source = open_model(path) if is_weight_file else open_external(path)
    about = f"trained, imported from {path.name}"
    model = Model(path.stem, source.config, about, BUILD / "models" / path.stem)
    return _export_all(model, source, formats, partial(suited_storage, source.config))


def _export_all(
    model: Model,
    source: InteropModel,
    formats: set[str],
    storage_of: Callable[[str], Storage],
) -> Model:
    # Formats that another program converts come last: it reads other formats.
    for name in sorted(formats, key=lambda name: (_converter(name, model.folder) != [], name)):
        try:
            _export(source, name, model.folder, storage_of)
        except UserError as error:
            if name in GROUP_SIZES:
                raise
            model.failures[name] = str(error)
    return model


def shape(size: str) -> ModelConfig:
    """Return the shape of a size in params.yaml."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    return params.parse(raw | {"model": size}).model_config()


def _export(
    source: InteropModel, name: str, folder: Path, storage_of: Callable[[str], Storage]
) -> None:
    if name in GROUP_SIZES:
        path = folder / f"{name}.slm"
        how = storage_of(name)
        weight_file.write(path, source.config, source.vocabulary, source.tensor, how)
    elif command := _converter(name, folder):
        _, failure = run_limited([sys.executable, "-m", *command], CONVERT_SECONDS)
        if failure:
            raise UserError(failure)
    else:
        export_model(source, name, folder / name)


def _converter(name: str, folder: Path) -> list[str]:
    """Return the module and the arguments that convert to a format, or [] if we export it.

    A converter runs in another process, because the packages of an engine may crash.
    """
    program, _, weight_type = name.partition("-")
    target = str(folder / name)
    if program == "ct2":
        return ["bench.peers.convert_ctranslate2", str(folder / "hf"), target, weight_type]
    if program == "openvino":
        return ["bench.peers.convert_openvino", str(folder / f"gguf-{weight_type}"), target]
    if program == "onnxruntime":
        module = "onnxruntime_genai.models.builder"
        source, cache = str(folder / "hf"), str(folder / f"{name}-cache")
        paths = [*("-i", source), *("-o", target), *("-c", cache)]
        return [module, *paths, *("-p", weight_type), *("-e", "cpu"), *INTEGER_ARITHMETIC]
    return []


def _random_source(config: ModelConfig) -> InteropModel:
    """Return random weights whose logits have the standard deviation `SPREAD`.

    Embeddings are small compared with the output of the layers. Otherwise the classifier, which is
    the embedding, would make the last token the most probable.
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
    return InteropModel(config, _vocabulary(config.vocab_size), tensors.__getitem__)


def _vocabulary(size: int) -> Vocabulary:
    """Return Llama's special and byte pieces, then letters and strings of two or three letters."""
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
