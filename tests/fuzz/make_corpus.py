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
    template = "{% for m in messages %}<s>é{{ m.content }}</s>{% endfor %}"
    chat = replace(plain, types=types, chat_template=template, extra_eos_ids=(1, 5))
    engine_files.write(folder / "chat.slm", config, tensors, chat)


if __name__ == "__main__":
    write_corpus(Path(sys.argv[1]))
