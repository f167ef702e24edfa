"""Windows of whole records for training, and which of their tokens a model learns to predict.

A record is BOS, prompt, BOS, response, EOS. A window begins with a record and has as many of the
following ones as fit. Targets that are no tokens of a response in the window, nor the EOS after it,
are `IGNORED`, so that neither the loss nor its gradient depends on them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IGNORED = -100
"""The target that PyTorch's cross-entropy leaves out."""

Ids = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.uint16]


class Rows(NamedTuple):
    """The windows of a token file.

    Attributes:
        starts: the first token of each window [n].
        lengths: the number of tokens of its records [n], at most the context + 1.
        records: number of records in the file.
        cut: records that are longer than a window, whose ends are left out.
        dropped: records whose prompt alone fills a window.
    """

    starts: Ids
    lengths: Ids
    records: int
    cut: int
    dropped: int

    def outside(self, first: int, end: int) -> Rows:
        """Return the windows that have none of the tokens from `first` to before `end`.

        The first and the last window of a held-out fold may have records of other folds too.
        """
        kept = (self.starts + self.lengths <= first) | (self.starts >= end)
        return self._replace(starts=self.starts[kept], lengths=self.lengths[kept])

    def describe(self, name: object, context: int) -> str:
        """Return a sentence about records that do not fit; empty if all do."""
        if not self.cut + self.dropped:
            return ""
        return (
            f"{name}: of {self.records:,} records, {self.cut:,} are cut, since they are longer "
            f"than the context of {context}, and {self.dropped:,} are dropped, since their prompts "
            "are"
        )


def pack(tokens: Tokens, context: int) -> Rows:
    """Find the windows in the tokens of records."""
    starts, responses, ends = bounds(tokens)
    lengths = np.minimum(ends - starts, context + 1)
    is_kept = responses - starts < context
    is_cut = is_kept & (ends - starts > context + 1)
    first: list[int] = []
    used: list[int] = []
    following = -1  # where a record would continue the last window
    for start, length in zip(starts[is_kept].tolist(), lengths[is_kept].tolist(), strict=True):
        if start == following and used[-1] + length <= context + 1:
            used[-1] += length
        else:
            first.append(start)
            used.append(length)
        following = start + length
    return Rows(
        np.array(first, np.int64),
        np.array(used, np.int64),
        len(starts),
        int(is_cut.sum()),
        int((~is_kept).sum()),
    )


def mask(windows: Ids, lengths: Ids, bos_id: int) -> Ids:
    """Return a copy of windows [n, context + 1] in which what is not predicted is `IGNORED`.

    Args:
        windows: tokens; each window begins with a record.
        lengths: the number of tokens of its records [n].
        bos_id: the token that begins a prompt and a response.
    """
    is_bos = windows == bos_id
    in_response = (is_bos.cumsum(axis=1) % 2 == 0) & ~is_bos
    in_records = np.arange(windows.shape[1]) < lengths[:, None]
    return np.where(in_response & in_records, windows, IGNORED)


def response_tokens(tokens: Tokens) -> int:
    """Return the number of tokens that belong to responses, EOS included."""
    _, responses, ends = bounds(tokens)
    return int((ends - responses - 1).sum())


def bounds(tokens: Tokens) -> tuple[Ids, Ids, Ids]:
    """Return where each record begins, where BOS of its response is, and where it ends [n]."""
    places = np.flatnonzero(tokens == tokens[0])
    starts, responses = places[::2], places[1::2]
    return starts, responses, np.append(starts[1:], len(tokens))
