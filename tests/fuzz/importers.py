"""`python tests/fuzz/importers.py --minutes 60`: import damaged models of every format.

Each round takes a small model in one of the formats of model_files.py, changes its files, and
imports it in a child process with limits on memory and time. The import either writes a file that
Python and the C engine read and that generates text, or raises a `UserError` with one sentence that
names the file, and leaves no file. Everything else is a finding: the fuzzer prints the seed and
keeps the input in build/fuzz. A round depends on its seed only.
"""

from __future__ import annotations

import functools
import os
import random
import resource
import select
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import gguf  # noqa: F401, so that children need not import it
import rounds
import torch
from model_files import SOURCES, Source
from mutations import change

from storyllamas.engine.engine import Engine
from storyllamas.errors import UserError, one_line
from storyllamas.interop.formats import import_model
from storyllamas.slm import weight_file

MEMORY = 2 << 30  # bytes that a child may map beyond what it inherits
CPU_SECONDS = 30  # of one round
PATIENCE = 60  # seconds
ROUNDS_PER_CHILD = 200
MAX_MESSAGE = 1000  # characters
REPLACEMENTS = ["missing", "empty", "folder", "pipe", "loop", "other"]
"""What may take the place of a file."""


@functools.cache
def source(name: str) -> Source:
    return SOURCES[name]()


# ---- One round, in the child ---------------------------------------------------------------------


def write_case(draw: random.Random, folder: Path) -> tuple[Path, Path | None]:
    """Write a changed model into a folder; return the path to import, and the tokenizer's."""
    chosen = source(draw.choice(list(SOURCES)))
    files = dict(chosen.files)
    for _ in range(draw.choice([1, 1, 1, 1, 2, 3])):
        name = draw.choice(list(files))
        files[name] = change(draw, name, files[name])
    for name, data in files.items():
        (folder / name).write_bytes(data)
    if draw.random() < 0.05:
        _replace(draw, folder, draw.choice(list(files)))
    tokenizer = None
    if "tokenizer.bin" in files and draw.random() < 0.1:
        tokenizer = folder / "tokenizer.model"
        tokenizer.write_bytes(change(draw, tokenizer.name, source("hf").files[tokenizer.name]))
    return folder / chosen.path, tokenizer


def _replace(draw: random.Random, folder: Path, name: str) -> None:
    path, kind = folder / name, draw.choice(REPLACEMENTS)
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "other":
        other = source(draw.choice(list(SOURCES))).files
        path.write_bytes(other.get(name, draw.choice(list(other.values()))))


def check_import(seed: int, folder: Path) -> str:
    """Run the round of a seed in a folder; return what is wrong, or ""."""
    draw = random.Random(seed)
    given = folder / "in"
    given.mkdir(parents=True)
    path, tokenizer = write_case(draw, given)
    out = folder / "out" / "model.slm"
    out.parent.mkdir()
    type_name = draw.choice(["f32", "f32", "f32", "q8", "q8", "q4"])
    try:
        import_model(path, out, type_name, tokenizer=tokenizer)
    except UserError as error:
        return _wrong_message(str(error), given) or _wrong_leftover(out.parent)
    return _wrong_file(out)


def _wrong_message(message: str, given: Path) -> str:
    if str(given) not in message:
        return f"the message names no file: {message!r}"
    if one_line(message) != message:
        return f"the message is not one line: {message[:MAX_MESSAGE]!r}"
    if len(message) > MAX_MESSAGE:
        return f"the message has {len(message)} characters: {message[:MAX_MESSAGE]!r}"
    return ""


def _wrong_leftover(folder: Path) -> str:
    left = [path.name for path in folder.iterdir()] if folder.exists() else []
    return f"it failed and left {left}" if left else ""


def _wrong_file(out: Path) -> str:
    """Return what is wrong with a written file, or ""."""
    if [path.name for path in out.parent.iterdir()] != [out.name]:
        return "it left other files"
    try:
        file = weight_file.read(out)
        for name, value in file.tensors():
            if value.size == 0:
                return f"tensor {name} is empty"
        engine = Engine(out, threads=1)
    except UserError as error:
        return f"the written file cannot be opened: {error}"
    try:
        for prompt in ("", "a b")[engine.bos_id < 0 :]:
            if len(engine.encode(prompt)) + 1 < engine.context:
                list(engine.generate(prompt, temperature=0, max_tokens=4, ignore_eos=True))
    except UserError as error:
        # Weights may be so large that products overflow.
        return "" if "not finite" in str(error) else f"the written file does not run: {error}"
    return ""


# ---- The child that runs rounds ------------------------------------------------------------------


def serve(requests: int, replies: int, root: Path) -> NoReturn:
    """Run the rounds that the parent asks for, each with its limits, until the pipe closes."""
    torch.set_num_threads(1)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while request := os.read(requests, 8):
        seed = int.from_bytes(request, "little")
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", RuntimeWarning)
                warnings.simplefilter("error", UserWarning)
                found = check_import(seed, root / str(seed))
        except BaseException:
            found = traceback.format_exc()
        data = found.encode(errors="backslashreplace")[-60_000:]
        os.write(replies, len(data).to_bytes(4, "little") + data)
    os._exit(0)


class Child:
    """A forked process that runs rounds."""

    def __init__(self, root: Path) -> None:
        requests, self._requests = os.pipe()
        self._replies, replies = os.pipe()
        self.rounds = 0
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._requests)
            os.close(self._replies)
            serve(requests, replies, root)
        os.close(requests)
        os.close(replies)

    def run(self, seed: int) -> str | None:
        """Run a round; return what it found, or ""; None if the process hangs or has ended."""
        self.rounds += 1
        os.write(self._requests, seed.to_bytes(8, "little"))
        if not select.select([self._replies], [], [], PATIENCE)[0]:
            return None
        data = os.read(self._replies, 4)
        size = int.from_bytes(data, "little")
        found = b""
        while data and len(found) < size:
            data = os.read(self._replies, size - len(found))
            found += data
        return found.decode() if data else None

    def end(self) -> int:
        """End the process, which is waiting, hanging or dead; return its status of `waitpid`."""
        os.close(self._requests)
        os.close(self._replies)
        time.sleep(0.1)
        ended, status = os.waitpid(self._pid, os.WNOHANG)
        if not ended:
            os.kill(self._pid, signal.SIGKILL)
            _, status = os.waitpid(self._pid, 0)
        return status

    def obituary(self) -> str:
        """End the process and return why it gave no answer."""
        status = self.end()
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return f"it was killed, after {PATIENCE} seconds or for want of memory"
        if os.WIFSIGNALED(status):
            return f"the process was ended by {signal.Signals(os.WTERMSIG(status)).name}"
        return f"the process exited with status {os.WEXITSTATUS(status)}"


class Importers:
    """Runs rounds in children; a new one starts after a number of rounds, or if one died."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._child: Child | None = None

    def run_round(self, seed: int, folder: Path) -> tuple[int, str]:
        """Run the round of a seed; keep its input in a folder if it finds something."""
        if self._child is None:
            self._child = Child(self._root)
        found = self._child.run(seed)
        if found is None:
            found = self._child.obituary()
            self._child = None
        elif self._child.rounds >= ROUNDS_PER_CHILD:
            self._child.end()
            self._child = None
        used = self._root / str(seed)
        if found:
            kept = folder / f"import-{seed}"
            shutil.rmtree(kept, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(shutil.Error):  # a pipe is not copied
                shutil.copytree(used, kept, symlinks=True)
            found += f"\nits input is in {kept}"
        shutil.rmtree(used, ignore_errors=True)
        return 1, found


def main() -> None:
    """Make the models, then run rounds."""
    for name in SOURCES:
        source(name)
    with tempfile.TemporaryDirectory() as root:
        rounds.main("importers.py", __doc__ or "", Importers(Path(root)).run_round)


if __name__ == "__main__":
    main()
