"""Write the first inputs of the weight-file fuzzer: small random models of every kind.

python tests/fuzz/make_corpus.py FOLDER
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import engine_files
from engine_files import make_vocabulary, small_config
from ranked import KINDS, pair

from storyllamas.slm.encoding import GROUP_SIZES
from storyllamas.vocabulary import PieceType


def write_corpus(folder: Path) -> None:
    """Write files of each weight type, tied and untied, of all pieces, and of a chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    for tied in (True, False):
        config = small_config(dim=8, layers=1, heads=2, kv_heads=1, head_dim=4, hidden=8, tied=tied)
        tensors = engine_files.random_tensors(config)
        for kind in GROUP_SIZES:
            path = folder / f"{kind}-{'tied' if tied else 'untied'}.slm"
            engine_files.write(path, config, tensors, None, kind)
    words = [b"a", b"b", b"ab", b"\xe2\x96\x81", b"aab", b"\xc3\xa9", b"<x>", b"ba"]
    plain = make_vocabulary(words)
    types = np.array(plain.types)
    types[-4:] = [
        PieceType.UNUSED,
        PieceType.UNUSED,
        PieceType.USER_DEFINED,
        PieceType.USER_DEFINED,
    ]
    config = small_config(
        dim=2, layers=1, heads=1, kv_heads=1, head_dim=2, hidden=2, vocab_size=len(types)
    )
    tensors = engine_files.random_tensors(config)
    for index, prefix in enumerate((True, False)):
        vocabulary = replace(plain, types=types, dummy_prefix=prefix)
        engine_files.write(folder / f"pieces-{index}.slm", config, tensors, vocabulary)
    _write_ranked(folder)
    template = "{% for m in messages %}<s>é{{ m.content }}</s>{% endfor %}"
    chat = replace(plain, types=types, chat_template=template, extra_eos_ids=(1, 5))
    engine_files.write(folder / "chat.slm", config, tensors, chat)


def _write_ranked(folder: Path) -> None:
    """Write a file with each kind of ranked tokenizer, and one with scaled rotary frequencies."""
    for kind in KINDS:
        vocabulary = pair(kind).vocabulary
        config = small_config(
            dim=2, layers=1, heads=1, kv_heads=1, head_dim=2, hidden=2,
            vocab_size=len(vocabulary.pieces),
        )  # fmt: skip
        tensors = engine_files.random_tensors(config)
        engine_files.write(folder / f"{kind.replace(' ', '-')}.slm", config, tensors, vocabulary)
    config = small_config(dim=4, layers=1, heads=1, kv_heads=1, head_dim=4, hidden=2)
    scaled = replace(
        config,
        rope_scaling="llama3",
        rope_factor=8.0,
        rope_low_freq_factor=1.0,
        rope_high_freq_factor=4.0,
        rope_original_context=16,
    )
    engine_files.write(folder / "scaled.slm", scaled, engine_files.random_tensors(scaled))


if __name__ == "__main__":
    write_corpus(Path(sys.argv[1]))
