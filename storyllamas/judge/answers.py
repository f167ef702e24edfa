"""Answers that are kept, so that no question is asked twice.

Each answer is a line of JSON in a journal as soon as it arrives, so that a process that is killed
loses none. The journal is in the folder for work in progress, since DVC deletes the outputs of a
stage before it runs. When all questions are answered, the answers go to a file in the order of the
questions, which can be an output of a DVC stage. Both files are read.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from storyllamas import workdir
from storyllamas.atomic import atomic_file
from storyllamas.errors import DAMAGED
from storyllamas.judge.endpoint import Answer


def default_journal() -> Path:
    """Return the path of the journal."""
    return workdir.root() / "judge" / "answers.jsonl"


def digest(endpoint: str, body: Mapping[str, Any]) -> str:
    """Return the key of an answer: a digest of all that is sent, and of where it is sent."""
    asked = json.dumps([endpoint, body], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(asked.encode()).hexdigest()


class Answers:
    """The kept answers by key; any number of threads and processes may add some."""

    def __init__(self, journal: Path, file: Path | None = None) -> None:
        """Read the answers.

        Args:
            journal: gets each new answer; it is created with the first one.
            file: other answers; None, or a file that does not exist: there are none.
        """
        self._journal = journal
        self._lock = threading.Lock()
        self._lines: dict[str, dict[str, Any]] = {}
        for path in (file, journal):
            if path is not None and path.exists():
                self._lines |= {line["key"]: line for line in _read(path)}

    def get(self, key: str) -> Answer | None:
        """Return the answer with a key, or None."""
        line = self._lines.get(key)
        return Answer(line["text"], line["tokens_in"], line["tokens_out"]) if line else None

    def add(self, endpoint: str, body: Mapping[str, Any], answer: Answer) -> None:
        """Keep an answer; it is on the disk when this returns."""
        key = digest(endpoint, body)
        line = {"key": key, **asdict(answer), "endpoint": endpoint, "request": body}
        with self._lock:
            self._append(_json(line))
            self._lines[key] = line

    def _append(self, text: bytes) -> None:
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        with self._journal.open("a+b") as file:
            # A killed process may have left a part of a line.
            if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0:
                text = text if file.read(1) == b"\n" else b"\n" + text
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def write(self, path: Path, keys: Iterable[str]) -> None:
        """Write the answers with these keys to a file, in this order; leave out missing ones."""
        lines = [_json(self._lines[key]) for key in dict.fromkeys(keys) if key in self._lines]
        content = b"".join(lines)
        if path.exists() and path.read_bytes() == content:
            return
        if path.is_symlink():
            path.unlink()  # The target may be in DVC's cache, where no file may change.
        with atomic_file(path) as file:
            file.write(content)


def _json(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines that are whole."""
    for text in path.read_bytes().splitlines():
        try:
            line = json.loads(text)
            Answer(str(line["text"]), int(line["tokens_in"]), int(line["tokens_out"]))
            if isinstance(line["key"], str):
                yield line
        except DAMAGED:
            continue
