"""Tokenizers of text with reserved characters, and with more characters than pieces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from stages import tokenizer as stage
from storyllamas import params, tokenizer
from storyllamas.corpus import files
from storyllamas.tokenizer.base import ImpossibleVocabularyError
from storyllamas.tokenizer.sentencepiece import SentencePieceTokenizer

FRUITS = ["pear grape apple plum cherry"] * 50
RESERVED = "▅"


def pieces_of(trained: SentencePieceTokenizer) -> set[str]:
    return {trained.processor.id_to_piece(index) for index in range(trained.vocab_size)}


def test_a_line_with_the_reserved_character_is_learned() -> None:
    stories = [*FRUITS, *[f"zebra zebra {RESERVED} zebra{RESERVED}zebra"] * 50]
    trained = tokenizer.from_bytes(tokenizer.train(stories, 310))
    assert "▁zebra" in pieces_of(trained)
    assert trained.decode(trained.encode(stories[-1])) == stories[-1]


def test_a_corpus_whose_every_story_has_the_reserved_character_can_be_trained_on() -> None:
    stories = [f"{story} {RESERVED}" for story in FRUITS]
    assert "▁cherry" in pieces_of(tokenizer.from_bytes(tokenizer.train(stories, 295)))


def test_reserved_characters_are_counted(tmp_path: Path) -> None:
    corpus = tmp_path / "data/corpus"
    corpus.mkdir(parents=True)
    text = (ROOT / "params.yaml").read_text().replace("vocab_size: 4096", "vocab_size: 290")
    (tmp_path / "params.yaml").write_text(text)
    for name in ("train", "valid"):
        with (corpus / f"{name}.txt").open("wb") as file:
            files.write(file, [*FRUITS, RESERVED * 3])
    output = subprocess.run(
        [sys.executable, "-m", "stages.tokenizer"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    metrics = json.loads((tmp_path / "metrics/tokenizer.json").read_text())
    assert metrics["reserved_characters"] == 3
    assert "3 characters U+2585 were not learned" in output


def test_an_existing_tokenizer_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text of the corpus is not that of the tokenizer, as in fine-tuning."""
    path, model = tmp_path / "start.model", tokenizer.train(FRUITS, 285)
    path.write_bytes(model)
    corpus = tmp_path / "data/corpus"
    corpus.mkdir(parents=True)
    with (corpus / "valid.txt").open("wb") as file:
        files.write(file, ["Tom sees a red dog."])
    monkeypatch.chdir(tmp_path)
    raw = params.read(ROOT / "params.yaml")

    def run(**changes: object) -> object:
        """Return the status, or the message of the error."""
        (tmp_path / "params.yaml").write_text(
            json.dumps({**raw, "tokenizer": {**raw["tokenizer"], **changes}})
        )
        with pytest.raises(SystemExit) as ended:
            stage.main()
        return ended.value.code

    assert run(path=str(path), vocab_size=285) == 0
    assert (tmp_path / "models/tokenizer.model").read_bytes() == model
    metrics = json.loads((tmp_path / "metrics/tokenizer.json").read_text())
    assert metrics["vocab_size"] == 285
    message = str(run(path=str(path)))
    assert "with 285 pieces: set tokenizer.kind=sentencepiece and tokenizer.vocab" in message
    assert "which is not a SentencePiece model" in str(run(path="params.yaml"))
    assert "tokenizer.path is none.model, which does not exist" in str(run(path="none.model"))
    assert "which the stage replaces" in str(run(path="models/tokenizer.model"))
    trained = tmp_path / "models" / "2m"
    trained.mkdir()
    (trained / "model.safetensors").write_bytes(b"")
    (tmp_path / "models" / "tokenizer.model").unlink()  # as DVC does before the stage runs
    assert "models/2m, whose tokenizer, models/tokenizer.model, this stage" in str(
        run(path="models/2m")
    )


def test_coverage_allows_fewer_pieces_than_characters() -> None:
    common = "".join(chr(0x4E00 + i) for i in range(20))
    stories = [common * 20 + chr(0x5000 + i) for i in range(100)]
    with pytest.raises(ImpossibleVocabularyError, match="character_coverage"):
        tokenizer.train(stories, 300)
    trained = tokenizer.from_bytes(tokenizer.train(stories, 300, character_coverage=0.99))
    assert set(common) <= pieces_of(trained)
    assert trained.decode(trained.encode(stories[0])) == stories[0]


@pytest.mark.parametrize("name", ["half_2585.txt", "chinese.txt"])
def test_files_of_other_people(shared: Path, name: str) -> None:
    path = shared / "cases" / name
    text = path.read_text(encoding="utf-8")
    stories = text.split("<|endoftext|>") if "<|endoftext|>" in text else text.split("\n")
    size, coverage = (370, 1.0) if name == "half_2585.txt" else (400, 0.5)
    trained = tokenizer.from_bytes(tokenizer.train(stories, size, coverage))
    if name == "half_2585.txt":
        assert "▁zebra" in pieces_of(trained)
    assert trained.decode(trained.encode(stories[0].strip())) == stories[0].strip()
