"""Use an installed package in an environment that has nothing but cffi and NumPy.

    python tests/wheel_smoke.py

The script writes a small model of llama2.c, imports it, and generates stories. It prints the
stories. It imports nothing of the repository.
"""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

DIM, HIDDEN, LAYERS, HEADS, CONTEXT = 32, 64, 2, 2, 64
WORDS = " once upon a time there was girl who found red ball and went home".split(" ")
PIECES = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256))]
LETTERS = [" ", *"abcdefghijklmnopqrstuvwxyz"]
HEAVY = ("torch", "yaml", "rich", "pydantic", "dvc")
"""Packages that the import of storyllamas must not load, even where they are installed."""


def write_model(folder: Path) -> Path:
    """Write model.bin of version 0 and tokenizer.bin; return the path of the former."""
    words = sorted({f" {word}"[:length] for word in WORDS for length in range(2, len(word) + 2)})
    pieces = [*PIECES, *LETTERS, *(word for word in words if word not in LETTERS)]
    random = np.random.default_rng(1)
    shapes = [(LAYERS, DIM), *[(LAYERS, DIM, DIM)] * 4, (LAYERS, DIM)]
    shapes += [(LAYERS, HIDDEN, DIM), (LAYERS, DIM, HIDDEN), (LAYERS, HIDDEN, DIM), (DIM,)]
    embedding = random.integers(-8, 9, (len(pieces), DIM)) / 16
    embedding[: len(PIECES) + len(LETTERS)] = 0
    tensors = [embedding]
    for shape in shapes:
        is_norm = shape in ((LAYERS, DIM), (DIM,))
        tensors.append(np.ones(shape) if is_norm else random.integers(-8, 9, shape) / 32)
    pairs = DIM // HEADS // 2
    header = struct.pack("<7i", DIM, HIDDEN, LAYERS, HEADS, HEADS, len(pieces), CONTEXT)
    rotary = bytes(2 * 4 * CONTEXT * pairs)
    data = b"".join(tensor.astype("<f4").tobytes() for tensor in tensors)
    path = folder / "model.bin"
    path.write_bytes(header + data + rotary)
    spelled = [piece.encode() for piece in pieces]
    scores = [0.0] * len(PIECES) + [-float(i) for i in range(len(pieces) - len(PIECES))]
    entries = zip(scores, spelled, strict=True)
    (folder / "tokenizer.bin").write_bytes(
        struct.pack("<I", max(map(len, spelled)))
        + b"".join(struct.pack("<fI", score, len(piece)) + piece for score, piece in entries)
    )
    return path


def storyllamas(*arguments: object) -> str:
    """Return the output of a command."""
    command = [sys.executable, "-m", "storyllamas", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def check_imports() -> None:
    """Check that importing the package loads no package that it does not need."""
    code = "import sys, storyllamas; storyllamas.Engine; print(*sys.modules)"
    listed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "storyllamas._engine" in listed
    assert not set(HEAVY) & set(listed), set(HEAVY) & set(listed)


def main() -> None:
    """Run all checks and print the stories."""
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        folder = Path(name)
        check_imports()
        model = write_model(folder)
        for kind in ("f32", "q8"):
            weights = folder / f"{kind}.slm"
            storyllamas("import", model, "--out", weights, "--type", kind)
            facts = json.loads(storyllamas("info", "--json", weights))
            assert facts["weight_type"] == kind
            assert facts["dim"] == DIM
            options = ["--model", weights, "--prompt", "once", "--temperature", 0.5]
            many = storyllamas("generate", *options, "--count", 3, "--max-tokens", 20)
            stories = [json.loads(line) for line in many.splitlines()]
            alone = storyllamas("generate", *options, "--seed", 42, "--max-tokens", 20)
            assert [story["seed"] for story in stories] == [42, 43, 44]
            assert alone.rstrip("\r\n") == stories[0]["text"]
            for story in stories:
                print(kind, story["seed"], story["text"])
        (folder / "stories.txt").write_text("once upon a time\n\na girl found a red ball\n")
        scored = storyllamas("evaluate", "--json", "--model", "f32.slm", "--stories", "stories.txt")
        assert math.isfinite(json.loads(scored)["bits_per_byte"])
        os.chdir(Path(__file__).parent)  # Windows removes no current folder


if __name__ == "__main__":
    main()
