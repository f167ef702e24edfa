"""The C tokenizer: the ids of SentencePiece or of a tokenizer.json, many times faster.

    tokenizer = FastTokenizer.of(vocabulary)
    ids = tokenizer.encode("Once upon a time")

Any number of threads may share a `FastTokenizer`, and C runs without the global interpreter lock.
Each call takes a word cache from a pool and returns it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from storyllamas.engine.ffi import Ids, check, ffi, ids_pointer, lib, utf8, whole_ids
from storyllamas.errors import UserError

if TYPE_CHECKING:
    from storyllamas.vocabulary import Vocabulary

_allocate = ffi.new_allocator(should_clear_after_alloc=False)


class FastTokenizer:
    """A byte-pair encoding."""

    def __init__(self, handle: Any, owner: Any) -> None:
        """Take an `sl_tokenizer *` that is valid while `owner` lives; use `of` to make one."""
        self.handle = handle
        self._owner = owner
        self._idle: list[Any] = []  # caches that nobody uses; append and pop are atomic

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> FastTokenizer:
        """Make the tokenizer of a vocabulary, which is copied.

        Raises:
            UserError: the vocabulary contradicts itself.
        """
        offsets = np.cumsum([0, *map(len, vocabulary.pieces)], dtype=np.uint32)
        text = b"".join(vocabulary.pieces)
        scores = np.ascontiguousarray(vocabulary.scores, np.float32)
        types = np.ascontiguousarray(vocabulary.types, np.uint8)
        merges = np.ascontiguousarray(vocabulary.merges, np.uint32)
        added = np.ascontiguousarray(vocabulary.added, np.uint32)
        arrays = {
            "scores": ffi.from_buffer("float[]", scores),
            "offsets": ffi.from_buffer("uint32_t[]", offsets),
            "types": ffi.from_buffer("uint8_t[]", types),
            "text": ffi.from_buffer("char[]", text),
            "merges": ffi.cast("sl_merge_pair *", ffi.from_buffer(merges)),
            "added": ffi.cast("sl_added_token *", ffi.from_buffer(added)),
        }
        given = ffi.new(
            "sl_vocabulary *",
            {
                "size": len(vocabulary.pieces),
                "text_bytes": len(text),
                "unk_id": vocabulary.unk_id,
                "dummy_prefix": vocabulary.dummy_prefix,
                "byte_fallback": vocabulary.byte_fallback,
                "kind": vocabulary.kind,
                "pre_tokenizer": vocabulary.pre_tokenizer,
                "strip": vocabulary.strip,
                "metaspace": vocabulary.metaspace,
                "prefix_first": vocabulary.prefix_first,
                "fuse_unk": vocabulary.fuse_unk,
                "ignore_merges": vocabulary.ignore_merges,
                "merge_count": len(merges),
                "added_count": len(added),
                **arrays,
            },
        )
        handle = ffi.new("sl_tokenizer **")
        check(lib.sl_tokenizer_open(handle, given))
        owner = ffi.gc(handle[0], lib.sl_tokenizer_close)
        return cls(owner, owner)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Encode a text as the reference of its kind does, without BOS and EOS.

        Args:
            text: any text.
            special: a control piece or special token that is spelt out in the text becomes its id;
                use it only for text that you trust.
        """
        data = utf8(text)
        capacity = 3 * (len(data) + 1)
        ids, count = _allocate("int32_t[]", capacity), ffi.new("size_t *")
        function = lib.sl_encode_special if special else lib.sl_encode
        with self._cache() as cache:
            check(function(self.handle, cache, data, len(data), ids, capacity, count))
        encoded: list[int] = ffi.unpack(ids, count[0])
        return encoded

    def encode_stories(self, stories: Sequence[bytes], bos_id: int = -1, eos_id: int = -1) -> Ids:
        """Encode stories and return their ids one after the other.

        Args:
            stories: UTF-8 texts, at most 1 GiB each.
            bos_id: the id to put in front of each story; negative: none.
            eos_id: the id to put after each story; negative: none.

        Raises:
            UserError: a story is not valid UTF-8.
        """
        text = b"".join(stories)
        offsets = np.cumsum([0, *map(len, stories)], dtype=np.uint64)
        ids = np.empty(3 * len(text) + 5 * len(stories), np.int32)
        count = ffi.new("size_t *")
        with self._cache() as cache:
            check(
                lib.sl_encode_stories(
                    *(self.handle, cache, text, ffi.from_buffer("uint64_t[]", offsets)),
                    *(len(stories), bos_id, eos_id, ids_pointer(ids), len(ids), count),
                )
            )
        return ids[: count[0]]

    def piece(self, id: int) -> bytes:
        """Return a piece as the vocabulary spells it, such as b"<s>".

        Raises:
            UserError: the id is not in the vocabulary.
        """
        length = ffi.new("size_t *")
        text = lib.sl_token_text(self.handle, id, length)
        if not text:
            raise UserError(f"token {id} is not in the vocabulary")
        return bytes(ffi.buffer(text, length[0]))

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """Decode ids; control pieces such as BOS and EOS have no text.

        Raises:
            UserError: an id is not in the vocabulary.
        """
        array = whole_ids(ids)
        length = ffi.new("size_t *")
        capacity = 16 * len(array)
        while True:
            text = _allocate("char[]", capacity)
            status = lib.sl_decode(
                self.handle, ids_pointer(array), len(array), text, capacity, length
            )
            if length[0] <= capacity:
                check(status)
                return str(ffi.buffer(text, length[0]), "utf-8")
            capacity = length[0]

    def token_text(self, index: int) -> str:
        """Return a piece as the vocabulary spells it, such as "<s>"; "" if there is no such id."""
        length = ffi.new("size_t *")
        text = lib.sl_token_text(self.handle, index, length)
        return str(ffi.buffer(text, length[0]), "utf-8", "replace") if text else ""

    @contextmanager
    def _cache(self) -> Iterator[Any]:
        try:
            cache = self._idle.pop()
        except IndexError:
            handle = ffi.new("sl_word_cache **")
            check(lib.sl_word_cache_new(handle, self.handle))
            cache = ffi.gc(handle[0], lib.sl_word_cache_free)
        try:
            yield cache
        finally:
            self._idle.append(cache)
