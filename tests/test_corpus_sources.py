"""The files of a corpus, and its validation part."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storyllamas.corpus import files, sources
from storyllamas.errors import UserError
from storyllamas.params import Clean, Corpus


def corpus(
    source: Path | str, valid_share: float = 0.1, edition: str = "v1", separator: str = "auto"
) -> Corpus:
    clean = Clean(False, 0, False, False)
    return Corpus(str(source), edition, "", 50, 5, valid_share, separator, clean)


def put(folder: Path, name: str, *stories: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n<|endoftext|>\n".join(stories))
    return folder / name


def split(*args: object, **kwargs: object) -> tuple[list[str], list[str]]:
    train, valid, _ = sources.split(corpus(*args, **kwargs), seed=1)
    return list(train), list(valid)


STORIES = [f"Story {i}." for i in range(2000)]


def test_storybook_writes_the_requested_number_and_no_overlap() -> None:
    train, valid = split("storybook")
    assert (len(train), len(valid)) == (50, 5)
    assert not set(train) & set(valid)


@pytest.mark.parametrize(
    ("edition", "expected"), [("v1", (["a"], ["b"])), ("v2-gpt4", (["c"], ["d"]))]
)
def test_folder_with_both_editions(tmp_path: Path, edition: str, expected: object) -> None:
    put(tmp_path, "TinyStories-train.txt", "a")
    put(tmp_path, "TinyStories-valid.txt", "b")
    put(tmp_path, "TinyStoriesV2-GPT4-train.txt", "c")
    put(tmp_path, "TinyStoriesV2-GPT4-valid.txt", "d")
    assert split(tmp_path, edition=edition) == expected


def test_folder_with_train_and_valid(tmp_path: Path) -> None:
    put(tmp_path, "train.txt", "a", "b")
    put(tmp_path, "valid.txt", "c")
    put(tmp_path, "notes.txt", "d")
    assert split(tmp_path) == (["a", "b"], ["c"])


@pytest.mark.parametrize("place", ["", "data"])
def test_folder_as_the_hub_lays_it_out(tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    for name, texts in {
        "train-00001-of-00002-5852b56a2bd28fd9": ["c"],
        "train-00000-of-00002-2d5a1467fff1081b": ["a", "b"],
        "validation-00000-of-00001-869c898b519ad725": ["d"],
        "training-00000-of-00001": ["e"],
    }.items():
        pq.write_table(pa.table({"text": texts}), folder / f"{name}.parquet")
    assert split(tmp_path) == (["a", "b", "c"], ["d"])


def test_a_pair_may_have_different_formats(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    (tmp_path / "valid.txt.gz").write_bytes(gzip.compress(b"c"))
    (tmp_path / "train.jsonl.bak").write_text("d")
    assert split(tmp_path) == (["a", "b"], ["c"])


def test_files_of_all_formats_are_split_together(tmp_path: Path) -> None:
    put(tmp_path, "1.txt", *STORIES[:1000])
    (tmp_path / "2.txt.gz").write_bytes(
        gzip.compress("<|endoftext|>".join(STORIES[1000:]).encode())
    )
    (tmp_path / "picture.png").touch()
    train, valid = split(tmp_path)
    assert valid
    assert sorted(train + valid, key=STORIES.index) == STORIES


@pytest.mark.parametrize("as_folder", [False, True])
def test_held_out_stories_are_a_share_in_order_and_never_trained_on(
    tmp_path: Path, as_folder: bool
) -> None:
    if as_folder:
        put(tmp_path, "1.txt", *STORIES[:1000])
        put(tmp_path, "2.txt", *STORIES[1000:])
        source = tmp_path
    else:
        source = put(tmp_path, "mine.txt", *STORIES)
    train, valid = split(source)
    assert 150 < len(valid) < 250
    assert sorted(train + valid, key=STORIES.index) == STORIES
    assert valid == sorted(valid, key=STORIES.index)
    assert split(source) == (train, valid)
    assert list(sources.split(corpus(source), seed=2).valid) != valid


def test_equal_stories_are_in_the_same_part(tmp_path: Path) -> None:
    train, valid = split(put(tmp_path, "mine.txt", *STORIES, *STORIES))
    assert len(train) + len(valid) == 2 * len(STORIES)
    assert not set(train) & set(valid)


def test_counts_are_of_the_whole_file(tmp_path: Path) -> None:
    split = sources.split(corpus(put(tmp_path, "mine.txt", "", *STORIES)), seed=1)
    kept = len(list(split.train)) + len(list(split.valid))
    assert (split.counts.stories, split.counts.empty) == (kept, 1)


def test_a_missing_source_is_named_with_the_alternatives() -> None:
    with pytest.raises(UserError, match="storybok, which does not exist: use storybook"):
        sources.split(corpus("storybok"), seed=1)


def test_a_folder_without_text_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "picture.png").touch()
    with pytest.raises(UserError, match="no file of stories"):
        sources.split(corpus(tmp_path), seed=1)


@pytest.mark.parametrize("share", [1e-9, 0.5])
@pytest.mark.parametrize("count", [2, 3])
def test_two_different_stories_are_enough_for_two_parts(
    tmp_path: Path, share: float, count: int
) -> None:
    for seed in range(20):
        source = put(tmp_path, "mine.txt", *(f"{seed} {i}" for i in range(count)))
        train, valid = split(source, valid_share=share)
        assert train
        assert valid
        assert len(train) + len(valid) == count


def test_one_story_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has only one story: .* corpus\.separator"):
        split(put(tmp_path, "mine.txt", "a", "a"))


SEPARATED = {
    "line": "A b.\r\n\r\n  C d.\nE f.\n",
    "blank_line": "A b.\nc.\r\n \r\nC d.\n\n\nE f.\n",
    "###": "A b.###C d.\n###\nE f.###",
}


@pytest.mark.parametrize("separator", SEPARATED)
@pytest.mark.parametrize("chunk", [1, 2, 5, 1000])
def test_separators_of_text_files(
    tmp_path: Path, separator: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_CHUNK_BYTES", chunk)
    (tmp_path / "mine.txt").write_bytes(SEPARATED[separator].encode())
    (found,) = sources.parts(tmp_path / "mine.txt", separator=separator).values()
    first = "A b.\nc." if separator == "blank_line" else "A b."
    assert list(found) == [first, "C d.", "E f."]


@pytest.mark.parametrize(
    ("separator", "message"),
    [("line", "its 3 lines is read as a story"), ("blank_line", "its 3 paragraphs")],
)
def test_the_separator_of_a_file_without_one_is_guessed_and_printed(
    tmp_path: Path, separator: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SEPARATED[separator].replace("\r\n\r\n", "\n")
    (tmp_path / "mine.txt").write_bytes(text.encode())
    train, valid = split(tmp_path / "mine.txt", valid_share=0.5)
    assert len(train) + len(valid) == 3
    notes = capsys.readouterr().err
    assert message in notes
    assert "set corpus.separator if that is wrong" in notes
    assert notes.count("\n") == 1
    split(tmp_path / "mine.txt", valid_share=0.5, separator=separator)
    assert capsys.readouterr().err == ""


def test_several_files_without_a_separator_are_a_story_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"Story {name}.\n\nThe end.")
    train, valid = split(tmp_path)
    assert sorted(train + valid) == ["Story a.\n\nThe end.", "Story b.\n\nThe end."]
    assert "2 files in" in capsys.readouterr().err


def test_the_home_folder_may_be_written_as_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path, "mine.txt", "a", "b")
    train, valid = split("~/mine.txt")
    assert sorted(train + valid) == ["a", "b"]


def test_a_description_among_the_stories_is_not_read(tmp_path: Path) -> None:
    put(tmp_path, "mine.txt", "a", "b")
    (tmp_path / "dataset_infos.json").write_text("{}")
    train, valid = split(tmp_path)
    assert sorted(train + valid) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "count"),
    [("kaggle.csv", 118), ("one_story_per_line.txt", 238), ("three_stories.txt", 3)],
)
def test_files_of_other_people(shared: Path, name: str, count: int) -> None:
    train, valid = split(shared / "cases" / name, valid_share=0.5)
    assert train
    assert valid
    assert len(train) + len(valid) == count
