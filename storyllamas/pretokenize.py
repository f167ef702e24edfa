"""From a corpus file to a token file, with several processes and in bounded memory."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from storyllamas import tokenizer, tokens
from storyllamas.corpus import files

_SHARD_BYTES = 1 << 20
_SHARDS_AHEAD = 2


class Shard(NamedTuple):
    """The framed stories of a span of the corpus, its length there, and what reading it met."""

    corpus_bytes: int
    tokens: tokens.Tokens
    counts: files.Counts


def pretokenize(
    corpus: str | os.PathLike[str],
    model: str | os.PathLike[str],
    target: str | os.PathLike[str],
    processes: int = 0,
) -> files.Counts:
    """Write the token file of a corpus; the same for any number of processes.

    Args:
        corpus: a file of stories.
        model: a SentencePiece model file.
        target: the token file.
        processes: how many work at once; 0: one for each core.

    Returns:
        What reading the corpus met.

    Raises:
        UserError: the corpus or the tokenizer is missing or is not what it should be.
    """
    source = Path(corpus)
    encoder = tokenizer.load(model)
    total = files.Counts()
    with (
        tokens.write(target, encoder.vocab_size, encoder.digest) as writer,
        _progress() as progress,
    ):
        spans = list(files.spans(source, _SHARD_BYTES))
        task = progress.add_task(f"pretokenize {source.name}", total=sum(b - a for a, b in spans))
        for shard in encode_in_order(source, encoder.model, spans, processes):
            writer.append(shard.tokens, shard.counts.stories, shard.counts.text_bytes)
            total += shard.counts
            progress.advance(task, shard.corpus_bytes)
        if total.stories == 0:
            raise files.empty(source)
    return total


def encode_in_order(
    corpus: Path, model: bytes, spans: Iterable[files.Span], processes: int = 0
) -> Iterator[Shard]:
    """Encode spans of a corpus in parallel and yield them in order, few of them in memory at once.

    Args:
        corpus: a file of stories.
        model: the bytes of a SentencePiece model file.
        spans: parts of the corpus, as `files.spans` cuts it.
        processes: how many work at once; 0: one for each core.
    """
    processes = processes or os.cpu_count() or 1
    if processes == 1:
        yield from (_encode(corpus, model, span) for span in spans)
        return
    pending: deque[Future[Shard]] = deque()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        for span in spans:
            pending.append(pool.submit(_encode, corpus, model, span))
            if len(pending) > _SHARDS_AHEAD * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _encode(corpus: Path, model: bytes, span: files.Span) -> Shard:
    """The framed stories of a span."""
    encoder = _encoder(model)
    counts = files.Counts()
    ids: list[int] = []
    for story in files.read(corpus, counts, span):
        ids += [encoder.bos_id, *encoder.encode(story), encoder.eos_id]
    return Shard(span[1] - span[0], np.array(ids, np.uint16), counts)


@functools.lru_cache(maxsize=1)
def _encoder(model: bytes) -> tokenizer.Tokenizer:
    """A process's own tokenizer."""
    return tokenizer.Tokenizer(model)


def _progress() -> Progress:
    """A line with share, size, MB/s and time left; nothing where stderr is not a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)
