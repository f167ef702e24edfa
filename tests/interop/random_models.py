"""Models with random weights, for tests of conversion."""

from __future__ import annotations

import math
from itertools import product
from string import ascii_lowercase

import numpy as np
from hypothesis import strategies as st

from storyllamas.config import ModelConfig, tensor_shapes
from storyllamas.interop.model import InteropModel
from storyllamas.vocabulary import SPACE, PieceType, Vocabulary


def make_config(**changes: object) -> ModelConfig:
    """Return a small shape with grouped heads, with some fields changed."""
    shape = {
        "dim": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "hidden": 96,
        "context": 32, "vocab_size": 400,
    }  # fmt: skip
    return ModelConfig(**(shape | changes))


def make_vocabulary(size: int) -> Vocabulary:
    """Return Llama's special and byte pieces, then letters and merges of two and three letters."""
    letters = [SPACE, *ascii_lowercase, ".", "é"]
    pairs = ["".join(pair) for pair in product(letters, repeat=2)]
    triples = ["".join(triple) for triple in product(letters[:20], repeat=3)]
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merged = sorted(pairs + triples, key=lambda piece: hash_of(piece))
    learned = [*letters, *(piece for piece in merged)][: size - len(specials)]
    types = [PieceType.UNKNOWN] + [PieceType.CONTROL] * 2 + [PieceType.BYTE] * 256
    types += [PieceType.NORMAL] * len(learned)
    scores = np.zeros(size, np.float32)
    scores[len(specials) :] = -np.arange(len(learned))
    pieces = [piece.encode() for piece in specials + learned]
    return Vocabulary(pieces, scores, np.array(types, np.uint8))


def hash_of(piece: str) -> int:
    """Return a number by which to shuffle pieces, always in the same way."""
    return int.from_bytes(piece.encode(), "little") * 2654435761 % (1 << 32)


def make_source(config: ModelConfig, seed: int = 0) -> InteropModel:
    """Return a model with random weights, scaled so that activations neither vanish nor explode."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values = random.standard_normal(shape, np.float32)
        tensors[name] = 1 + values / 8 if len(shape) == 1 else values / math.sqrt(shape[1])
    return InteropModel(config, make_vocabulary(config.vocab_size), tensors.__getitem__)


@st.composite
def configs(draw: st.DrawFn, plain: bool = False, divided: bool = False) -> ModelConfig:
    """Draw shapes of any kind.

    Args:
        draw: hypothesis's function.
        plain: only shapes that llama2.c can represent.
        divided: only shapes whose heads divide dim.
    """
    kv_heads, groups, half = (draw(st.integers(1, most)) for most in (3, 3, 12))
    heads, head_dim = kv_heads * groups, 2 * half
    dim = heads * draw(st.integers(1, 20)) if divided else draw(st.integers(1, 80))
    return ModelConfig(
        dim=heads * head_dim if plain else dim,
        layers=draw(st.integers(1, 3)),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=draw(st.integers(1, 100)),
        context=draw(st.integers(8, 40)),
        vocab_size=draw(st.integers(290, 700)),
        rope_theta=10000.0 if plain else draw(st.sampled_from([100.0, 10000.0, 500000.0])),
        norm_eps=1e-5 if plain else draw(st.sampled_from([1e-6, 1e-5, 1e-3])),
        tied=draw(st.booleans()),
    )


def draw_config(random: np.random.Generator, plain: bool, whole: bool) -> ModelConfig:
    """Draw a shape as `configs` does, but with a NumPy generator, so that it is reproducible.

    The shapes are wider: RMSNorm of a few channels turns almost any input into a sign, so that the
    smallest rounding error changes the output of every program.

    Args:
        random: the source of randomness.
        plain: only shapes that llama2.c can represent.
        whole: only rows of whole blocks of 32 weights, as GGUF's quantized types require.
    """
    kv_heads, groups = (4, 1) if whole else random.integers(1, 4, 2).tolist()
    head_dim = 8 * int(random.integers(1, 5)) if whole else 2 * int(random.integers(4, 13))
    heads, unit = kv_heads * groups, 32 if whole else kv_heads * groups
    dim = unit * int(random.integers(math.ceil(16 / unit), 100 // unit + 1))
    return ModelConfig(
        dim=heads * head_dim if plain else dim,
        layers=int(random.integers(1, 4)),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=32 * int(random.integers(1, 5)) if whole else int(random.integers(16, 101)),
        context=int(random.integers(8, 41)),
        vocab_size=int(random.integers(290, 701)),
        rope_theta=10000.0 if plain else float(random.choice([100.0, 10000.0, 500000.0])),
        norm_eps=1e-5 if plain else float(random.choice([1e-6, 1e-5, 1e-3])),
        tied=bool(random.integers(2)),
    )
