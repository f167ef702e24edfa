"""The tokenizer in a weight file. See weight_file.py for the layout."""

from __future__ import annotations

from itertools import accumulate, pairwise

import numpy as np

from storyllamas.slm.header import (
    BYTE_FALLBACK,
    DUMMY_PREFIX,
    FUSE_UNK,
    IGNORE_MERGES,
    METASPACE,
    NO_BOS,
    PREFIX_FIRST,
    Header,
)
from storyllamas.slm.tiles import UInt8
from storyllamas.vocabulary import PieceType, PreTokenizer, Strip, TokenizerKind, Vocabulary


class DamagedTokenizerError(ValueError):
    """A tokenizer section is damaged; the message says why."""


def flags(vocabulary: Vocabulary) -> int:
    """Return the header flags of a tokenizer."""
    return (
        DUMMY_PREFIX * vocabulary.dummy_prefix
        | BYTE_FALLBACK * vocabulary.byte_fallback
        | METASPACE * vocabulary.metaspace
        | PREFIX_FIRST * vocabulary.prefix_first
        | FUSE_UNK * vocabulary.fuse_unk
        | IGNORE_MERGES * vocabulary.ignore_merges
        | NO_BOS * (not vocabulary.adds_bos)
    )


def fields(vocabulary: Vocabulary) -> tuple[int, int, int, int, int]:
    """Return the header's tokenizer_kind, pre_tokenizer, strip, merge_count and added_count."""
    return (
        *(vocabulary.kind, vocabulary.pre_tokenizer, vocabulary.strip),
        *(len(vocabulary.merges), len(vocabulary.added)),
    )


def pack(vocabulary: Vocabulary) -> bytes:
    """Return the bytes of the section."""
    scored = vocabulary.kind == TokenizerKind.SENTENCEPIECE
    offsets = np.cumsum([0] + [len(piece) for piece in vocabulary.pieces], dtype=np.uint32)
    return b"".join(
        [
            vocabulary.scores.astype("<f4").tobytes() if scored else b"",
            offsets.astype("<u4").tobytes(),
            vocabulary.merges.astype("<u4").tobytes(),
            vocabulary.added.astype("<u4").tobytes(),
            vocabulary.types.astype(np.uint8).tobytes(),
            *vocabulary.pieces,
        ]
    )


def _misfit(found: Vocabulary) -> str:
    """Return the rule that does not fit the kind of tokenizer; empty if all fit."""
    switches = (found.metaspace, found.prefix_first, found.fuse_unk, found.ignore_merges)
    characters, pre = found.kind == TokenizerKind.BPE, found.pre_tokenizer
    if found.kind == TokenizerKind.SENTENCEPIECE:
        rules = (*switches, pre, found.strip, len(found.merges), len(found.added))
        return "its tokenizer has rules that SentencePiece does not have" if any(rules) else ""
    if characters != (pre <= PreTokenizer.SPACES):
        return "its pre-tokenizer does not fit its tokenizer"
    if characters and found.ignore_merges:
        return "its tokenizer ignores merges and is not byte-level"
    if (pre == PreTokenizer.SPACES or found.prefix_first) and not found.metaspace:
        return "its tokenizer splits spaces and has no metaspace"
    if not characters and (found.strip or found.metaspace or found.byte_fallback):
        return "its byte-level tokenizer has rules for characters"
    if found.dummy_prefix and not characters and pre != PreTokenizer.GPT2:
        return "its pre-tokenizer puts a space in front"
    return ""


def unpack(header: Header, section: UInt8) -> Vocabulary:
    """Read the tokenizer in a section.

    Args:
        header: the header of the file.
        section: the bytes of the section.

    Raises:
        DamagedTokenizerError: the section contradicts itself or the header.
    """
    count = header.vocab_size
    scored = header.tokenizer_kind == TokenizerKind.SENTENCEPIECE
    sizes = (4 * count * scored, 4 * (count + 1), 8 * header.merge_count, 8 * header.added_count)
    ends = list(accumulate((*sizes, count), initial=0))
    if len(section) < ends[-1]:
        raise DamagedTokenizerError("its tokenizer is cut short")
    parts = [section[start:end] for start, end in pairwise(ends)]
    offsets = parts[1].view("<u4").astype(np.int64)
    text = section[ends[-1] :].tobytes()
    if offsets[0] or offsets[-1] != len(text) or (np.diff(offsets) < 0).any():
        raise DamagedTokenizerError("its tokenizer's pieces overlap")
    scores = parts[0].view("<f4").astype(np.float32) if scored else np.zeros(count, np.float32)
    merges = parts[2].view("<u4").astype(np.uint32).reshape(-1, 2)
    added = parts[3].view("<u4").astype(np.uint32).reshape(-1, 2)
    types = parts[4].copy()
    if not (np.isin(types, list(PieceType)).all() and np.isfinite(scores).all()):
        raise DamagedTokenizerError("its tokenizer has a piece of no known type or score")
    special_ids = (header.unk_id, header.bos_id, header.eos_id, header.pad_id)
    if not all(-1 <= special < count for special in special_ids):
        raise DamagedTokenizerError("a special piece is not in its tokenizer")
    if (merges >= count).any() or (added[:, 0] >= count).any():
        raise DamagedTokenizerError("its tokenizer names a piece that is not there")
    try:
        kind = TokenizerKind(header.tokenizer_kind)
        pre_tokenizer, strip = PreTokenizer(header.pre_tokenizer), Strip(header.strip)
    except ValueError as error:
        raise DamagedTokenizerError(f"its tokenizer is of an unknown kind: {error}") from None
    found = Vocabulary(
        pieces=[text[a:b] for a, b in pairwise(offsets)],
        scores=scores,
        types=types,
        unk_id=header.unk_id,
        bos_id=header.bos_id,
        eos_id=header.eos_id,
        pad_id=header.pad_id,
        dummy_prefix=bool(header.flags & DUMMY_PREFIX),
        byte_fallback=bool(header.flags & BYTE_FALLBACK),
        kind=kind,
        merges=merges,
        added=added,
        pre_tokenizer=pre_tokenizer,
        strip=strip,
        metaspace=bool(header.flags & METASPACE),
        prefix_first=bool(header.flags & PREFIX_FIRST),
        fuse_unk=bool(header.flags & FUSE_UNK),
        ignore_merges=bool(header.flags & IGNORE_MERGES),
        adds_bos=not header.flags & NO_BOS,
    )
    if problem := _misfit(found):
        raise DamagedTokenizerError(problem)
    return found
