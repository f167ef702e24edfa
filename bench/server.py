"""`make bench-server`: the server under load, `generate --count`, and llama.cpp's server.

Each client sends one request after the other and reads a stream of tokens. The clients are one
process on the same machine, so that they take a part of its time, the same for each server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles

from bench import models, processor
from bench.build import BENCH, ROOT
from storyllamas import params
from storyllamas.errors import UserError, exit_on_user_error

OURS, LLAMA_CPP = "StoryLlamas", "llama.cpp"
CLIENTS = (1, 8, 64)
SLOTS = 32
PROMPT = "Once upon a time"
TOKENS = 200
SEQUENCES = 256
"""Sequences of a measurement with many clients, and of `generate --count`."""

START_SECONDS = 60
PERCENTILE = 95


@dataclass(frozen=True)
class Load:
    """What clients saw.

    Attributes:
        tokens_per_second: of all clients together.
        first: seconds to the first token of each request.
        gaps: seconds between two events of a stream.
    """

    tokens_per_second: float
    first: list[float]
    gaps: list[float]


async def _request(port: int, seed: int) -> tuple[int, list[float]]:
    """Send a request; return its tokens, and when it began and each event came."""
    body = json.dumps(
        {
            "prompt": PROMPT,
            "seed": seed,
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    times = [time.perf_counter()]
    writer.write((head + body).encode())
    tokens, status = 0, await reader.readline()
    if b" 200 " not in status:
        raise UserError(f"the server answers {status.decode().strip()}")
    async for line in reader:
        if not line.startswith(b"data: {"):
            continue
        if b'"usage"' in line and (found := re.search(rb'"completion_tokens": ?(\d+)', line)):
            tokens = int(found[1])
        if b'"text"' in line:
            times.append(time.perf_counter())
    writer.close()
    return tokens, times


async def _client(port: int, seeds: Sequence[int]) -> list[tuple[int, list[float]]]:
    return [await _request(port, seed) for seed in seeds]


async def _load(port: int, clients: int, sequences: int) -> Load:
    start = time.perf_counter()
    done = await asyncio.gather(
        *(_client(port, range(client, sequences, clients)) for client in range(clients))
    )
    seconds = time.perf_counter() - start
    requests = [request for client in done for request in client]
    return Load(
        sum(tokens for tokens, _ in requests) / seconds,
        [times[1] - times[0] for _, times in requests],
        [b - a for _, times in requests for a, b in pairwise(times[1:])],
    )


@contextmanager
def _serving(command: Sequence[str | Path], port: int) -> Iterator[None]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _is_healthy(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    lines = log.read().decode(errors="replace").strip().splitlines() or [""]
                    raise UserError(f"{command[0]} does not start: {lines[-1]}")
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait()


def _is_healthy(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(100)
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port: int = chosen.getsockname()[1]
        return port


def _ours(model: models.Model, port: int) -> list[str | Path]:
    command = [sys.executable, "-m", "storyllamas", "serve", "--port", str(port)]
    return [*command, "--model", model.folder / "q8.slm", "--slots", str(SLOTS)]


def _llama_cpp(program: Path, model: models.Model, port: int) -> list[str | Path]:
    command: list[str | Path] = [
        program,
        "--port",
        str(port),
        "--parallel",
        str(SLOTS),
        "--no-webui",
    ]
    context, threads = str(SLOTS * model.config.context), str(os.cpu_count())
    command += ["--ctx-size", context, "--threads", threads, "--threads-batch", threads]
    found = sorted((model.folder / "gguf-q8_0").glob("*.gguf"))
    return [*command, "--model", found[0]]


def _generate_many(model: models.Model) -> float:
    """Return the tokens a second of `generate --count`, without its start."""

    def seconds(count: int, tokens: int) -> float:
        command = [sys.executable, "-m", "storyllamas", "generate", "--ignore-eos"]
        command += ["--count", str(count), "--max-tokens", str(tokens), "--prompt", PROMPT]
        command += ["--model", str(model.folder / "q8.slm")]
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            command += ["--out", str(Path(folder, "stories.jsonl"))]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            return time.perf_counter() - start

    return SEQUENCES * TOKENS / (seconds(SEQUENCES, TOKENS) - seconds(1, 1))


def measure(model: models.Model, rounds: int, llama_server: Path | None) -> list[str]:
    """Measure in turns; return the lines of a table.

    Args:
        model: exported as q8 and, for llama.cpp, as gguf-q8_0.
        rounds: of all measurements.
        llama_server: the program; None: leave it out.
    """
    commands: dict[str, Callable[[int], list[str | Path]]] = {OURS: lambda p: _ours(model, p)}
    if llama_server:
        commands[LLAMA_CPP] = lambda port: _llama_cpp(llama_server, model, port)
    loads: dict[tuple[str, int], list[Load]] = {}
    many: list[float] = []
    for _ in range(rounds):
        many.append(_generate_many(model))
        for name, command in commands.items():
            port = _free_port()
            with _serving(command(port), port):
                asyncio.run(_load(port, 1, 1))
                for clients in CLIENTS:
                    sequences = SEQUENCES if clients > 1 else 8
                    found = asyncio.run(_load(port, clients, sequences))
                    loads.setdefault((name, clients), []).append(found)
    rate = median(many)
    lines = [f"| {model.size} | `generate --count` | | {rate:,.0f} | | | | {rounds} |"]
    for (name, clients), rows in loads.items():
        lines.append(f"{_row(model.size, name, clients, rows, rate)} {rounds} |")
    return lines


def rows_of_others(page: str, sizes: Sequence[str]) -> list[str]:
    """Return the lines of a page's table that are of other sizes than these."""
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    return [row for row in rows if _size(row) not in ("model", *sizes)]


def _size(row: str) -> str:
    return row.split(" ")[1]


def _row(size: str, name: str, clients: int, loads: list[Load], rate: float) -> str:
    speed = median(load.tokens_per_second for load in loads)
    first = _milliseconds([value for load in loads for value in load.first])
    gaps = _milliseconds([value for load in loads for value in load.gaps])
    return f"| {size} | {name} | {clients} | {speed:,.0f} | {speed / rate:.0%} | {first} | {gaps} |"


def _milliseconds(seconds: list[float]) -> str:
    high = quantiles(seconds, n=100)[PERCENTILE - 1] if len(seconds) > 1 else seconds[0]
    return f"{1000 * median(seconds):,.1f} / {1000 * high:,.1f}"


@exit_on_user_error
def main() -> None:
    """Parse the command line, measure, and write the page of this machine."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.server", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--sizes", nargs="+", default=["2m", "7m", "30m"], help="keys of `sizes`")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each server")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server, to compare with")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        raise UserError(f"--rounds is {arguments.rounds}: give 1 or more")
    peer = arguments.llama_server
    if peer and not peer.is_file():
        raise UserError(f"--llama-server is {peer}, which is not a file")
    lines = [
        f"# The server on {processor.title()}",
        "",
        f"q8, {SLOTS} slots, requests of {TOKENS} tokens, {os.cpu_count()} processors, which the "
        "clients share. Medians of rounds in turns. Times are median / "
        f"{PERCENTILE}th percentile in milliseconds. With many streams an event of StoryLlamas has "
        "several tokens.",
        "",
        "| model | program | clients | tokens/s | of `--count` | first token | between events "
        "| rounds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    path = BENCH / "results" / "server" / f"{processor.slug(processor.title())}.md"
    rows = rows_of_others(path.read_text("utf-8"), arguments.sizes) if path.exists() else []
    for size in arguments.sizes:
        print(f"{size}: measuring", flush=True)
        model = models.prepare(size, {"q8", "gguf-q8_0"} if peer else {"q8"})
        rows += measure(model, arguments.rounds, peer.resolve() if peer else None)
    order = list(params.read(ROOT / "params.yaml")["sizes"])
    lines += sorted(rows, key=lambda row: order.index(_size(row)))
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
