"""Every format gives the stories that were written, or one error message."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storyllamas.corpus import files, formats, records
from storyllamas.errors import UserError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SEPARATOR = "<|endoftext|>"
TEXTS = [
    "Tom ran.\n\nHe said “hi”.",
    f"One.{SEPARATOR}Two. {SEPARATOR}",
    "",
    "\r\nLily\r\nsat. ",
    "café 🐉",
]
STORIES = ["Tom ran.\n\nHe said “hi”.", "One.", "Two.", "Lily\nsat.", "café 🐉"]
COUNTS = files.ReadCounts(
    stories=5, text_bytes=sum(len(story.encode()) for story in STORIES), empty=2
)


def text_file(texts: list[str]) -> bytes:
    return SEPARATOR.join(texts).encode()


def json_lines(texts: list[str], ascii_only: bool = False) -> bytes:
    rows = [json.dumps({"id": 1, "text": text}, ensure_ascii=ascii_only) for text in texts]
    return "\n".join(rows).encode()


def json_array(texts: list[str]) -> bytes:
    elements = [{"text": text} if i % 2 else text for i, text in enumerate(texts)]
    return b"\xef\xbb\xbf " + json.dumps(elements, indent=1).encode()


def table(texts: list[str], delimiter: str) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter).writerows(
        [["id", " Text "], *([i, text] for i, text in enumerate(texts))]
    )
    return b"\xef\xbb\xbf" + buffer.getvalue().encode()


WRITERS: dict[str, Callable[[list[str]], bytes]] = {
    "txt": text_file,
    "jsonl": json_lines,
    "json": json_array,
    "csv": lambda texts: table(texts, ","),
    "tsv": lambda texts: table(texts, "\t"),
}


def put_parquet(path: Path, texts: list[str | None], kind: pa.DataType | None = None) -> Path:
    table = pa.table({"text": pa.array(texts, kind or pa.string()), "n": range(len(texts))})
    pq.write_table(table, path, row_group_size=2)
    return path


PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstd.compress,
}


@pytest.mark.parametrize("suffix", formats.SUFFIXES + formats.TABLE_SUFFIXES)
def test_every_format_gives_the_same_stories(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"stories{suffix}"
    if suffix == ".parquet":
        put_parquet(path, TEXTS)
    else:
        _, kind, *packed = suffix.split(".")
        data = WRITERS[kind](TEXTS)
        path.write_bytes(PACK[f".{packed[0]}" if packed else ""](data))
    counts = files.ReadCounts()
    assert list(formats.read(path, counts)) == STORIES
    assert counts == COUNTS


@pytest.mark.parametrize("name", ["stories", "stories.md", "stories.gz", "STORIES.TXT.GZ"])
def test_any_other_name_is_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(PACK[".gz" if name.lower().endswith(".gz") else ""](text_file(TEXTS)))
    assert list(formats.read(path)) == STORIES


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_several_members_are_one_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"stories.txt{suffix}"
    data = text_file(TEXTS)
    path.write_bytes(PACK[suffix](data[:40]) + PACK[suffix](data[40:]))
    assert list(formats.read(path)) == STORIES


def test_a_compressed_file_is_read_in_any_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_CHUNK_BYTES", 60)
    path = tmp_path / "stories.txt.gz"
    path.write_bytes(gzip.compress(text_file(TEXTS * 9)))
    assert list(formats.read(path)) == STORIES * 9


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_a_table_is_read_in_any_chunks(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"stories{suffix}"
    path.write_bytes(WRITERS[suffix[1:]](TEXTS * 9))
    for size in (1, 2, 3, 7):
        monkeypatch.setattr(records, "_CHUNK_BYTES", size)
        assert list(formats.read(path)) == STORIES * 9


def test_a_json_file_may_hold_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "stories.json"
    path.write_bytes(b"\n" + json_lines(TEXTS))
    assert list(formats.read(path)) == STORIES


def test_csv_may_use_semicolons(tmp_path: Path) -> None:
    path = tmp_path / "stories.csv"
    path.write_bytes(table(TEXTS, ";"))
    assert list(formats.read(path)) == STORIES


def test_json_may_use_escapes_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "stories.jsonl"
    path.write_bytes(b"\xef\xbb\xbf\n" + json_lines(TEXTS, ascii_only=True) + b"\n\r\n")
    assert list(formats.read(path)) == STORIES


def test_invalid_unicode_in_json_is_replaced_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "stories.jsonl"
    path.write_bytes(b'{"text": "Zo\xff"}\n{"text": "half \\ud83d."}\n')
    counts = files.ReadCounts()
    assert list(formats.read(path, counts)) == ["Zo\ufffd", "half \ufffd\ufffd\ufffd."]
    assert counts.invalid_bytes == 4


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_parquet_with_any_strings_and_nulls(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "stories.parquet"
    try:
        put_parquet(path, [*TEXTS, None], kind)
    except pa.ArrowException:
        pytest.skip(f"this pyarrow writes no {kind}")
    counts = files.ReadCounts()
    assert list(formats.read(path, counts)) == STORIES
    assert counts.empty == COUNTS.empty + 1


def rejected(path: Path) -> str:
    """Return the error message of reading a file, after checking its form."""
    with pytest.raises(UserError) as caught:
        list(formats.read(path))
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert str(path) in sentence
    return sentence


def read_or_rejected(path: Path) -> list[str] | str:
    try:
        return list(formats.read(path))
    except UserError:
        return rejected(path)


@pytest.mark.parametrize("suffix", [".txt.gz", ".txt.zst", ".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
def test_a_truncated_file_is_rejected_with_its_position(
    tmp_path: Path, suffix: str, kept: float
) -> None:
    path = tmp_path / f"stories{suffix}"
    texts = [f"{random.Random(i).random()} was here." for i in range(5000)]
    data = (json_lines if "jsonl" in suffix else text_file)(texts)
    whole = PACK[path.suffix](data)
    path.write_bytes(whole[: int(kept * len(whole))])
    assert f"is damaged at or before byte {int(kept * len(whole)):,} (" in rejected(path)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_random_damage_is_noticed_or_changes_nothing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"stories.txt{suffix}"
    data = text_file([f"Story {i} of many." for i in range(300)])
    options = {zstd.CompressionParameter.checksum_flag: 1}
    whole = gzip.compress(data) if suffix == ".gz" else zstd.compress(data, options=options)
    path.write_bytes(whole)
    expected = list(formats.read(path))
    source = random.Random(1)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[source.randrange(len(whole))] ^= 1 << source.randrange(8)
        path.write_bytes(damaged)
        stories = read_or_rejected(path)
        assert stories == expected or "is damaged at or before byte" in stories


def test_damaged_parquet_is_rejected_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "stories.parquet"
    table = pa.table({"text": [f"{random.Random(i).random()}" for i in range(2000)]})
    pq.write_table(table, path, row_group_size=500, use_dictionary=False)
    start = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    row = re.search(r"is damaged after row ([\d,]+) \(", rejected(path))
    assert 1000 - 256 <= int(row[1].replace(",", "")) <= 1000
    path.write_bytes(data[:-9])
    assert "is damaged after row 0 (" in rejected(path)


def test_any_damage_of_a_parquet_file_is_at_worst_one_error_message(tmp_path: Path) -> None:
    path = put_parquet(tmp_path / "stories.parquet", [f"Story {i}." for i in range(40)])
    whole = path.read_bytes()
    source = random.Random(2)
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[source.randrange(len(whole))] = source.randrange(256)
        path.write_bytes(damaged)
        read_or_rejected(path)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": "b', "is not JSON in line 2 (Unterminated"),
        ("a.jsonl", b"[" * 100_000, "is not JSON in line 1 ("),
        ("a.jsonl", b'{"text": "a"}\n\n{"story": "b"}\n', 'no string "text" in line 3'),
        ("a.jsonl", b'{"text": null}\n', 'no string "text" in line 1'),
        ("a.jsonl", b'["text"]\n', 'no string "text" in line 1'),
        ("a.jsonl", b"\n\n", "is empty"),
        ("a.jsonl", b'{"text": " "}', "is empty"),
        ("a.json", b"", "is empty"),
        ("a.json", b"[]", "is empty"),
        ("a.json", b'["a"', "after element 1 it has its end in place of , or ]"),
        ("a.json", b'["a" "b"]', "after element 1 it has '\"' in place of , or ]"),
        ("a.json", b'["a", "b', "is not JSON in element 2 (Unterminated"),
        ("a.json", b'["a", 7]', "in element 2: add it"),
        ("a.json", b"[" * 100_000, "is not JSON in element 1"),
        ("a.json", b"7", "is not a JSON array of stories"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"text\n", "is empty"),
        ("a.csv", b"story,n\nOnce,1\n", "has no column text in its first row, 'story,n'"),
        ("a.tsv", b"story\tn\nOnce\t1\n", "has no column text"),
        ("a.txt.gz", b"", "is empty"),
        ("a.txt.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("a.txt.gz", b"Tom ran.", "is damaged"),
        ("a.txt.zst", b"", "is damaged"),
        ("a.txt.zst", b"Tom ran.", "is damaged"),
        ("a.txt.gz", gzip.compress(b"\x89PNG\0\0", mtime=0), "is not text"),
        ("a.parquet", b"", "is damaged after row 0"),
        ("a.parquet", b"PAR1" * 9, "is damaged after row 0"),
    ],
)
def test_an_unusable_file_is_rejected_by_name(
    tmp_path: Path, name: str, data: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert words in rejected(path)


def test_parquet_without_text_is_rejected_with_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "stories.parquet"
    pq.write_table(pa.table({"story": ["a"], "words": [1]}), path)
    assert "no column text, only story, words" in rejected(path)
    pq.write_table(pa.table({"text": [1]}), path)
    assert "has type int64" in rejected(path)


@pytest.mark.parametrize(
    ("name", "package"), [("a.parquet", "pyarrow"), ("a.txt.zst", formats._ZSTD)]
)
def test_a_missing_package_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, package, None)
    sentence = rejected(tmp_path / name)
    assert package in sentence
    assert "pip install 'storyllamas[formats]'" in sentence


# getrusage is no use here: its maximum begins with the parent's memory.
MEASURE = """
import re, sys
from pathlib import Path
from storyllamas.corpus import formats
for path in sys.argv[1:]:
    count = sum(1 for _ in formats.read(path))
    print(count, re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("suffix", [".txt.gz", ".jsonl.zst", ".json", ".csv", ".parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, suffix: str) -> None:
    paths = []
    for megabytes in (2, 60):
        path = tmp_path / f"{megabytes}{suffix}"
        texts = [f"{i} " + "Tom and Sue went to the park. " * 30 for i in range(megabytes * 1100)]
        if suffix == ".parquet":
            # A single group of rows, which is as large as the file.
            table = pa.table({"text": texts})
            pq.write_table(table, path, use_dictionary=False, compression="none")
        else:
            _, kind, *packed = suffix.split(".")
            data = WRITERS[kind](texts)
            path.write_bytes(PACK[f".{packed[0]}" if packed else ""](data))
        paths.append(path)
    output = subprocess.run(
        [sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=True
    ).stdout.split()
    small, large = (int(kilobytes) for kilobytes in output[1::2])
    assert output[::2] == ["2200", "66000"]
    assert large - small < 12 << 10
