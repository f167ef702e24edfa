"""The evaluation prompts of a corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from storyllamas.corpus import prompts
from storyllamas.corpus.tinystories import PROMPTS
from storyllamas.errors import UserError
from storyllamas.params import Clean, Corpus


def corpus(source: Path | str) -> Corpus:
    return Corpus(str(source), "v1", "", 50, 5, 0.1, "auto", Clean(False, 0, False, False))


def test_the_storybook_has_none() -> None:
    assert prompts.find(corpus("storybook")) == []


def test_a_folder_may_have_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prompts.find(corpus(tmp_path)) == []
    assert f"{tmp_path / PROMPTS} does not exist" in capsys.readouterr().out
    (tmp_path / PROMPTS).write_text("---\n- |-\n  A dog\n\n  saw \n- - |-  \n    “A cat\n")
    assert prompts.find(corpus(tmp_path)) == ["A dog\n\nsaw", "“A cat"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("text", ["a: b", "- 1", "- [[a]]", "", "- a: b"])
def test_another_structure_is_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / PROMPTS).write_text(text)
    with pytest.raises(UserError, match="is not a list of prompts"):
        prompts.find(corpus(tmp_path))


def test_bytes_that_are_not_text_are_rejected(tmp_path: Path) -> None:
    (tmp_path / PROMPTS).write_bytes(b"- \xff")
    with pytest.raises(UserError, match="is not a list of prompts"):
        prompts.find(corpus(tmp_path))


def test_the_dataset_has_44(tinystories: Path) -> None:
    if not (tinystories / PROMPTS).is_file():
        pytest.skip(f"the folder of TinyStories has no {PROMPTS}")
    found = prompts.parse(tinystories / PROMPTS)
    assert len(set(found)) == 44
    assert all(text == text.rstrip() for text in found)
