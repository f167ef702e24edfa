"""From text to token files, with tokenizers of both kinds.

Compared with the library that trained the tokenizer, on several threads, and as stages.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from storyllamas import pretokenize, token_file, tokenizer
from storyllamas.corpus import files
from storyllamas.errors import UserError
from storyllamas.tokenizer.byte_level import ByteLevelTokenizer

ROOT = Path(__file__).resolve().parent.parent
STORIES = [
    f"Tom had {i} red balls.\n\nHe gave {'them ' * (i % 9)}to Sue. Café 🦙!" for i in range(400)
]


NAMES = ["<s>", "</s>", "<unk>", "<|begin_of_text|>", "<|end_of_text|>"]
"""The names of special pieces."""

KINDS = ("sentencepiece", "byte_level")


@pytest.fixture(scope="module", params=KINDS)
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A tokenizer, and a corpus whose last story has no separator."""
    folder = tmp_path_factory.mktemp("pretokenize")
    (folder / "tokenizer.model").write_bytes(tokenizer.train(STORIES, 330, kind=request.param))
    (folder / "train.txt").write_text("\n<|endoftext|>\n".join(STORIES))
    return folder


def run(folder: Path, target: Path, threads: int) -> files.ReadCounts:
    return pretokenize.pretokenize(
        folder / "train.txt", folder / "tokenizer.model", target, threads
    )


def test_tokens_are_bos_story_eos(folder: Path, tmp_path: Path) -> None:
    counts = run(folder, tmp_path / "train.bin", 1)
    trained = tokenizer.load(folder / "tokenizer.model")
    expected = [[trained.bos_id, *trained.encode(story), trained.eos_id] for story in STORIES]
    file = token_file.read(tmp_path / "train.bin", trained.digest)
    assert file.tokens.tolist() == list(itertools.chain(*expected))
    assert (file.vocab_size, file.stories) == (330, 400)
    assert file.text_bytes == len("".join(STORIES).encode())
    assert counts == files.ReadCounts(stories=400, text_bytes=file.text_bytes)


def test_names_of_special_pieces_are_text(folder: Path, tmp_path: Path) -> None:
    stories = [*NAMES, "".join(NAMES), "<|endoftext |>"]
    (tmp_path / "train.txt").write_text("\n<|endoftext|>\n".join(stories))
    model = folder / "tokenizer.model"
    pretokenize.pretokenize(tmp_path / "train.txt", model, tmp_path / "train.bin", 1)
    trained = tokenizer.load(model)
    tokens = token_file.read(tmp_path / "train.bin").tokens
    special = np.isin(tokens, [trained.bos_id, trained.eos_id])
    assert tokens[special].tolist() == [trained.bos_id, trained.eos_id] * len(stories)
    expected = [[trained.bos_id, *trained.encode(story), trained.eos_id] for story in stories]
    assert tokens.tolist() == list(itertools.chain(*expected))


def test_threads_do_not_change_a_bit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder, tmp_path / "whole.bin", 1)
    monkeypatch.setattr(pretokenize, "_SHARD_BYTES", 999)
    for threads in (1, 2, 3):
        run(folder, tmp_path / "cut.bin", threads)
        assert (tmp_path / "cut.bin").read_bytes() == (tmp_path / "whole.bin").read_bytes()


def test_only_a_few_shards_are_ahead(folder: Path) -> None:
    begun = 0

    def spans() -> Iterator[files.Span]:
        nonlocal begun
        for span in files.spans(folder / "train.txt", 200):
            begun += 1
            yield span

    encoder = pretokenize.Encoder(tokenizer.load(folder / "tokenizer.model"))
    shards = encoder.encode_in_order(folder / "train.txt", spans(), 2)
    done = sum(1 for done, _ in enumerate(shards) if begun <= done + 6)
    assert done == begun > 100


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"\n<|endoftext|>\n", "is empty"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not text"),
    ],
)
def test_a_corpus_of_no_use_leaves_nothing(
    folder: Path, tmp_path: Path, data: bytes | None, words: str
) -> None:
    corpus = tmp_path / "train.txt"
    if data is not None:
        corpus.write_bytes(data)
    with pytest.raises(UserError, match=words):
        pretokenize.pretokenize(corpus, folder / "tokenizer.model", tmp_path / "out/a.bin", 2)
    assert not list(tmp_path.glob("out/*"))


def stage(name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"stages.{name}"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def configure(folder: Path, **sections: dict[str, object]) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in sections.items():
        params[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.mark.parametrize("kind", KINDS)
def test_stages_from_a_users_file_to_tokens(tmp_path: Path, kind: str) -> None:
    (tmp_path / "mine.txt").write_text("<|endoftext|>".join(STORIES))
    corpus = {"source": "mine.txt", "valid_share": 0.1}
    configure(tmp_path, corpus=corpus, tokenizer={"vocab_size": 320, "kind": kind})
    for name in ("download", "tokenizer", "pretokenize"):
        result = stage(name, tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
    trained = tokenizer.load(tmp_path / "models/tokenizer.model")
    assert isinstance(trained, ByteLevelTokenizer) == (kind == "byte_level")
    opened = [
        token_file.read(tmp_path / f"data/tokens/{part}.bin", trained.digest)
        for part in ("train", "valid")
    ]
    assert sum(file.stories for file in opened) == 400
    assert all(np.count_nonzero(file.tokens == trained.bos_id) == file.stories for file in opened)
    metrics = json.loads((tmp_path / "metrics/tokenizer.json").read_text())
    assert metrics["vocab_size"] == 320
    assert metrics["reserved_characters"] == 0
    text_tokens = len(opened[1].tokens) - 2 * opened[1].stories
    assert metrics["bytes_per_token"] == pytest.approx(opened[1].text_bytes / text_tokens, abs=1e-4)


def test_a_stage_that_fails_says_one_sentence_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("<|endoftext|>".join(STORIES))
    configure(
        tmp_path, corpus={"source": "mine.txt", "valid_share": 0.1}, tokenizer={"vocab_size": 9999}
    )
    for name, words in (
        ("tokenizer", "train.txt does not exist"),
        ("pretokenize", "tokenizer.model does not exist"),
        ("download", ""),
        ("tokenizer", "tokenizer.vocab_size is 9999"),
    ):
        result = stage(name, tmp_path)
        assert result.returncode == (1 if words else 0)
        assert words in result.stderr
        assert result.stderr.count("\n") == bool(words)
    assert not (tmp_path / "models").exists()
    assert not (tmp_path / "metrics/tokenizer.json").exists()
