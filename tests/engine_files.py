"""Small weight files for the tests of the C engine."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from storyllamas import tokenizer
from storyllamas.config import ModelConfig, tensor_shapes
from storyllamas.model import Llama
from storyllamas.slm import weight_file
from storyllamas.slm.checksum import Checksum
from storyllamas.slm.encoding import Encoding, Storage, WeightType, storage
from storyllamas.vocabulary import PieceType, Vocabulary

UNK, BOS, EOS = 0, 1, 2
FIRST_BYTE = 3
WORDS = [b"a", b"b", b"ab", b"\xe2\x96\x81", b"\xe2\x96\x81a", b"\xc3\xa9"]

_quantized = st.one_of(
    st.builds(Encoding, st.just(WeightType.Q8), st.sampled_from([4, 12, 32, 64])),
    st.builds(Encoding, st.just(WeightType.Q4), st.sampled_from([8, 24, 32, 64])),
)
STORAGES = st.one_of(st.just(storage("f32")), st.builds(Storage, _quantized, _quantized))
"""Ways to store the matrices of a file, some with group sizes that do not divide the columns."""


def make_vocabulary(words: list[bytes] = WORDS) -> Vocabulary:
    """Return special pieces, byte pieces at 3 … 258, words; earlier words merge first."""
    special = [b"<unk>", b"<s>", b"</s>"]
    bytes_ = [b"<0x%02X>" % value for value in range(256)]
    types = [PieceType.UNKNOWN, *[PieceType.CONTROL] * 2, *[PieceType.BYTE] * 256]
    types += [PieceType.NORMAL] * len(words)
    scores = [0.0] * 259 + [-float(index) for index in range(len(words))]
    return Vocabulary(
        [*special, *bytes_, *words], np.array(scores, np.float32), np.array(types, np.uint8)
    )


def word_id(index: int) -> int:
    return FIRST_BYTE + 256 + index


def random_tensors(config: ModelConfig, seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Return weights that give logits of about ±5 and attention neither flat nor one-hot."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        if len(shape) == 1:
            tensors[name] = random.uniform(0.5, 1.5, shape).astype(np.float32)
        else:
            tensors[name] = (random.standard_normal(shape) * 1.5 / np.sqrt(shape[1])).astype(
                np.float32
            )
    return tensors


def write(
    path: Path,
    config: ModelConfig,
    tensors: dict[str, npt.NDArray[np.float32]],
    vocabulary: Vocabulary | None = None,
    weight_type: str | Storage = "f32",
    group_sizes: Mapping[str, int] = {"q8": 8, "q4": 8},
) -> Path:
    words = config.vocab_size - 259
    if vocabulary is None:
        extra = [f"w{index}".encode() for index in range(max(0, words - len(WORDS)))]
        vocabulary = make_vocabulary((WORDS + extra)[:words])
    how = storage(weight_type, group_sizes) if isinstance(weight_type, str) else weight_type
    weight_file.write(path, config, vocabulary, tensors.__getitem__, how)
    return path


def write_types(folder: Path, config: ModelConfig) -> dict[str, Path]:
    """Write the same random weights as f32, q8 and q4, by name."""
    tensors, sizes = random_tensors(config, 5), {"q8": 32, "q4": 24}
    return {
        name: write(folder / f"{name}.slm", config, tensors, None, name, sizes)
        for name in ("f32", "q8", "q4")
    }


def sealed(data: bytes | bytearray) -> bytes:
    """Return the file with a valid checksum, if it has whole blocks and a header."""
    data = bytearray(data)
    if len(data) >= 256 and len(data) % 64 == 0:
        data[24:32] = bytes(8)
        checksum = Checksum()
        checksum.update(bytes(data))
        data[24:32] = struct.pack("<Q", checksum.digest())
    return bytes(data)


def small_config(**changes: int | float | bool) -> ModelConfig:
    shape: dict[str, int | float | bool] = {
        "dim": 24, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 6, "hidden": 20,
        "context": 40, "vocab_size": 259 + len(WORDS), "tied": True,
    }  # fmt: skip
    return ModelConfig(**(shape | changes))  # type: ignore[arg-type]


def write_chain(
    path: Path,
    logits: Callable[[int], npt.NDArray[np.float32]],
    vocabulary: Vocabulary | None = None,
    context: int = 40,
    weight_type: str = "f32",
) -> Path:
    """Write a model whose next-token logits depend on the last token only.

    Embeddings are one-hot and the layers add nothing, so that the classifier's column of a token
    holds the logits after it (the final norm multiplies a one-hot vector by a constant).
    """
    vocabulary = vocabulary or make_vocabulary()
    size = len(vocabulary.pieces)
    config = ModelConfig(
        dim=size, layers=1, heads=1, kv_heads=1, head_dim=2, hidden=1, context=context,
        vocab_size=size, norm_eps=0.0, tied=False,
    )  # fmt: skip
    tensors = {name: np.zeros(shape, np.float32) for name, shape in tensor_shapes(config).items()}
    tensors["embedding.weight"] = np.eye(size, dtype=np.float32)
    tensors["norm.weight"] = np.full(size, 1 / np.sqrt(size), np.float32)
    tensors["classifier.weight"] = np.stack([logits(token) for token in range(size)], axis=1)
    return write(path, config, tensors, vocabulary, weight_type)


def write_sequence(path: Path, story: list[int], context: int = 40) -> Path:
    """Write a model that generates the story; no token may come twice in it."""
    following = dict(pairwise(story))

    def logits(token: int) -> npt.NDArray[np.float32]:
        row = np.zeros(259 + len(WORDS), np.float32)
        row[following.get(token, EOS)] = 50
        return row

    return write_chain(path, logits, context=context)


def torch_model(config: ModelConfig, tensors: dict[str, npt.NDArray[np.float32]]) -> Llama:
    model = Llama(config).eval()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    return model


@torch.no_grad()
def torch_logits(model: Llama, ids: list[int]) -> npt.NDArray[np.float32]:
    logits: npt.NDArray[np.float32] = model(torch.tensor([ids]))[0].numpy()
    return logits


def random_model(path: Path, kind: str, texts: Sequence[str]) -> Llama:
    """Write a random model whose tokenizer is of a kind; return it in PyTorch.

    Args:
        path: the weight file.
        kind: sentencepiece, or byte_level, which learns the texts.
        texts: stories.
    """
    config = small_config()
    tensors = random_tensors(config)
    vocabulary = None
    if kind == "byte_level":
        model = tokenizer.train(texts, config.vocab_size, kind="byte_level")
        vocabulary = tokenizer.from_bytes(model).vocabulary()
    write(path, config, tensors, vocabulary)
    return torch_model(config, tensors)


@torch.no_grad()
def cross_entropies(model: Llama, ids: list[int]) -> npt.NDArray[np.float64]:
    """Return those of each token after the first in PyTorch, in windows that share one token."""
    context = model.config.context
    parts = []
    for start in range(0, len(ids) - 1, context):
        window = torch.tensor(ids[start : start + context + 1])
        parts.append(cross_entropy(model(window[None, :-1])[0], window[1:], reduction="none"))
    losses: npt.NDArray[np.float64] = torch.cat(parts).double().numpy()
    return losses
