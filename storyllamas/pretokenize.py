"""Encode a corpus file to a token file, with several threads and in bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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

from storyllamas import instruct, token_file, tokenizer
from storyllamas.corpus import files
from storyllamas.engine.tokenizer import FastTokenizer
from storyllamas.errors import UserError
from storyllamas.tokenizer.base import Tokenizer

_SHARD_BYTES = 1 << 20
_SHARDS_AHEAD = 2


class Shard(NamedTuple):
    """The encoded stories of a span of the corpus, each between BOS and EOS.

    Attributes:
        corpus_bytes: the length of the span.
        tokens: the ids of the stories.
        counts: statistics of reading the span.
    """

    corpus_bytes: int
    tokens: token_file.Tokens
    counts: files.ReadCounts


class Encoder:
    """An encoder of stories between BOS and EOS, which any number of threads may share."""

    def __init__(self, trained: Tokenizer, records: bool = False) -> None:
        """Take a tokenizer that has BOS and EOS.

        Args:
            trained: the tokenizer.
            records: whether the stories are records of a prompt and a response.
        """
        self._records = records
        self._fast = FastTokenizer.of(trained.vocabulary())
        self._bos_id, self._eos_id = trained.bos_id, trained.eos_id

    def encode(self, corpus: Path, span: files.Span) -> Shard:
        """Encode a span of the corpus."""
        counts = files.ReadCounts()
        stories = list(files.read_bytes(corpus, counts, span))
        if self._records:
            return Shard(span[1] - span[0], self._encode_records(corpus, stories, counts), counts)
        ids = self._fast.encode_stories(stories, self._bos_id, self._eos_id)
        return Shard(span[1] - span[0], ids.astype(np.uint16), counts)

    def _encode_records(
        self, corpus: Path, texts: list[bytes], counts: files.ReadCounts
    ) -> token_file.Tokens:
        """Return the tokens of records; `counts` then has the bytes of the responses only."""
        framed: list[list[int]] = []
        counts.text_bytes = 0
        for text in texts:
            record = instruct.parse(text.decode())
            if record is None:
                raise UserError(
                    f"{corpus} has a record without a line {instruct.RESPONSE}: run `dvc repro "
                    "download`"
                )
            ids, _ = record.ids(self._fast.encode, self._bos_id, self._eos_id)
            framed.append(ids)
            counts.text_bytes += len(record.response.encode())
        return np.concatenate([np.array(ids, np.uint16) for ids in framed or [[]]])

    def encode_in_order(
        self, corpus: Path, spans: Iterable[files.Span], threads: int = 0
    ) -> Iterator[Shard]:
        """Encode spans of a corpus in parallel and yield them in order, few of them in memory.

        Args:
            corpus: a file of stories.
            spans: spans of the corpus from `files.spans`.
            threads: the number of threads; 0: one for each core.
        """
        threads = threads or os.cpu_count() or 1
        pending: deque[Future[Shard]] = deque()
        with ThreadPoolExecutor(threads) as pool:
            for span in spans:
                pending.append(pool.submit(self.encode, corpus, span))
                if len(pending) > _SHARDS_AHEAD * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()


def pretokenize(
    corpus: str | os.PathLike[str],
    model: str | os.PathLike[str],
    target: str | os.PathLike[str],
    threads: int = 0,
    records: bool = False,
) -> files.ReadCounts:
    """Write the token file of a corpus; it does not depend on the number of threads.

    Args:
        corpus: a file of stories.
        model: a tokenizer's file, of any kind.
        target: the token file.
        threads: the number of threads; 0: one for each core.
        records: whether the stories are records of a prompt and a response.

    Returns:
        Statistics of reading the corpus; of records, `text_bytes` has the responses only.

    Raises:
        UserError: the corpus or the tokenizer is missing or damaged.
    """
    source = Path(corpus)
    trained = tokenizer.load(model)
    total = files.ReadCounts()
    with (
        token_file.write(target, trained.vocab_size, trained.digest, records) as writer,
        files.open_binary(source) as file,
        _progress() as progress,
    ):
        task = progress.add_task(
            f"pretokenize {source.name}", total=os.fstat(file.fileno()).st_size
        )
        spans = files.spans(source, _SHARD_BYTES)
        for shard in Encoder(trained, records).encode_in_order(source, spans, threads):
            writer.append(shard.tokens, shard.counts.stories, shard.counts.text_bytes)
            total += shard.counts
            progress.advance(task, shard.corpus_bytes)
        if total.stories == 0:
            raise files.no_stories(source)
    return total


def _progress() -> Progress:
    """Make a progress bar with MB/s and time left; it is off if stderr is not a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)
