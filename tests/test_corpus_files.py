"""Reading of TinyStories' format, compared with a reader that loads the whole file."""

from __future__ import annotations

import io
import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storyllamas.corpus import files
from storyllamas.errors import UserError

SEPARATOR = "<|endoftext|>"
# The start of every random file, so that its first chunk is text.
PREFIX = "The first story of the file is longer than any chunk." + SEPARATOR

fragments = st.sampled_from(
    [
        *(b"<|endoftext|>", b"<|endoftext|", b"<|endof", b"|>", b"\r\n", b"\n", b"\r", b" ", b"\0"),
        *(b"\xef\xbb\xbf", b"\xe2\x82", b"\xff", "é".encode(), "\ufffd".encode(), b"Tom ran."),
    ]
)
contents = st.lists(fragments | st.binary(max_size=8), max_size=40).map(
    lambda parts: PREFIX.encode() + b"".join(parts)
)
any_file = settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])


def whole_file(data: bytes) -> list[str]:
    """Find the stories in the simplest way."""
    text = data.decode(errors="replace").replace("\0", "\ufffd")
    text = re.sub("\r\n|\r", "\n", text)
    stories = [re.sub(r"\A[ \t-\r\ufeff]+|[ \t-\r\ufeff]+\Z", "", s) for s in text.split(SEPARATOR)]
    return [story for story in stories if story]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stories.txt"


@any_file
@given(data=contents, chunk=st.integers(1, 40))
def test_stories_are_those_of_the_whole_file(path: Path, data: bytes, chunk: int) -> None:
    path.write_bytes(data)
    counts = files.ReadCounts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_CHUNK_BYTES", chunk)
        stories = list(files.read(path, counts))
    assert stories == whole_file(data)
    assert counts.stories == len(stories)
    assert counts.text_bytes == len("".join(stories).encode())
    replaced = data.decode(errors="replace").count("\ufffd") + data.count(b"\0")
    assert counts.invalid_bytes == replaced - data.decode(errors="ignore").count("\ufffd")


@any_file
@given(data=contents, size=st.integers(1, 100), chunk=st.integers(1, 40))
def test_spans_read_one_by_one_are_the_file(path: Path, data: bytes, size: int, chunk: int) -> None:
    path.write_bytes(data)
    whole, parts = files.ReadCounts(), files.ReadCounts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_CHUNK_BYTES", chunk)
        expected = list(files.read(path, whole))
        spans = list(files.spans(path, size))
        stories = [story for span in spans for story in files.read(path, parts, span)]
    assert stories == expected
    assert parts == whole
    assert [end for _, end in spans[:-1]] == [start for start, _ in spans[1:]]
    assert (spans[0][0], spans[-1][1]) == (0, len(data))
    for start, end in spans:
        separator = data.find(SEPARATOR.encode(), start + size)
        assert end == (len(data) if separator < 0 else separator + len(SEPARATOR))


@any_file
@given(data=contents)
def test_written_stories_are_read_unchanged(path: Path, data: bytes) -> None:
    stories = whole_file(data)
    buffer = io.BytesIO()
    assert files.write(buffer, stories) == len(stories)
    path.write_bytes(buffer.getvalue())
    assert list(files.read(path)) == stories


def test_line_breaks_do_not_end_a_story_and_the_last_needs_no_separator(path: Path) -> None:
    path.write_bytes(
        b"\xef\xbb\xbfOnce.\r\n\r\nTwice.\r\n<|endoftext|>\r\n \n<|endoftext|>One<|endoftext|>two"
    )
    counts = files.ReadCounts()
    assert list(files.read(path, counts)) == ["Once.\n\nTwice.", "One", "two"]
    assert counts == files.ReadCounts(stories=3, text_bytes=19, empty=1, invalid_bytes=0)


def test_real_stories_are_written_as_published(tinystories: Path) -> None:
    path = tinystories / "TinyStories-valid.txt"
    buffer = io.BytesIO()
    assert files.write(buffer, files.read(path)) == 2000
    assert buffer.getvalue() == path.read_bytes()


@pytest.mark.parametrize("size", [0, 500, 5000, 10**9])
def test_sample_is_spread_evenly_and_as_long_as_asked(path: Path, size: int) -> None:
    stories = [f"Story {i} of many, {'very ' * (i % 7)}short." for i in range(1000)]
    with path.open("wb") as file:
        files.write(file, stories)
    sample = list(files.sample(path, size))
    if size in (0, 10**9):
        assert sample == stories
        return
    assert 0.6 * size < len("".join(sample)) < size + 100
    numbers = [int(story.split()[1]) for story in sample]
    quarters = [sum(i // 250 == quarter for i in numbers) for quarter in range(4)]
    assert max(quarters) - min(quarters) <= 1 + len(sample) // 20
    assert list(files.sample(path, size)) == sample


def test_memory_does_not_grow_with_the_file(path: Path) -> None:
    path.write_bytes(b"Tom and Sue went to the park to play.\n<|endoftext|>\n" * 300_000)
    tracemalloc.start()
    count = sum(1 for _ in files.read(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 300_000
    assert peak < 6 << 20


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b" \n<|endoftext|>\r\n<|endoftext|>\n", "is empty"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\1\0", "is not text"),
        ("Tom ran.\n<|endoftext|>\n".encode("utf-16"), "is not text"),
        (bytes(range(128, 256)) * 9, "is not text"),
    ],
)
def test_an_unusable_file_is_rejected_by_name(path: Path, data: bytes | None, words: str) -> None:
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError, match=words) as caught:
        list(files.read(path))
    assert str(path) in str(caught.value)


def test_a_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        list(files.read(tmp_path))


def test_text_without_separators_is_rejected_before_it_fills_the_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_STORY_BYTES", 4 << 20)
    path.write_bytes(b"Tom ran. " * 700_000)
    with pytest.raises(UserError, match="above 4 MiB"):
        list(files.read(path))


def test_a_few_latin_1_characters_are_replaced(path: Path) -> None:
    path.write_bytes("Zoé drank her café au lait at the window.<|endoftext|>".encode("latin-1"))
    counts = files.ReadCounts()
    assert list(files.read(path, counts)) == ["Zo\ufffd drank her caf\ufffd au lait at the window."]
    assert counts.invalid_bytes == 2
