"""The C engine from Python.

    engine = Engine("model.slm")
    for piece in engine.generate("Once upon a time", temperature=0.8, seed=1):
        print(piece, end="", flush=True)
    for story in engine.generate_many("Once upon a time", count=1000):
        print(story.text)

Any number of threads may share an `Engine`; each call and each `Story` has its own session of the C
engine. A `Story` is for one thread at a time. C runs without the global interpreter lock.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice, repeat, takewhile
from itertools import count as numbers
from typing import Any

import numpy as np
import numpy.typing as npt

from storyllamas.config import ROPE_SCALINGS
from storyllamas.engine.batch import BATCH_SIZE, GeneratedStory, generate_batch
from storyllamas.engine.ffi import check, ffi, ids_pointer, lib, string, utf8, whole_ids
from storyllamas.engine.logprobs import Logprobs
from storyllamas.engine.options import fields, make_options
from storyllamas.engine.tokenizer import FastTokenizer
from storyllamas.errors import UserError
from storyllamas.regular_file import check_path

MAX_THREADS = 64

DRAFT_TOKENS: int = lib.SL_DEFAULT_DRAFT_TOKENS
"""Tokens that a draft model drafts at a time; docs/engine.md has measurements of others."""

ALIGNMENT = 64
"""Bytes at a multiple of which a weight file in memory begins."""

PAGES = {
    "auto": lib.SL_PAGES_AUTO,
    "shared": lib.SL_PAGES_SHARED,
    "huge": lib.SL_PAGES_HUGE,
}

CACHES = {
    "auto": lib.SL_CACHE_AUTO,
    "f32": lib.SL_CACHE_F32,
    "f16": lib.SL_CACHE_F16,
    "q8": lib.SL_CACHE_Q8,
}


def kernel_sets() -> list[str]:
    """Return the names of the instruction sets that this processor runs, fastest first."""
    names = (lib.sl_kernels_name(index) for index in numbers())
    return [string(name) for name in takewhile(lambda name: bool(name), names)]


class Engine:
    """A weight file that is open for generation and evaluation.

    Attributes:
        info: every field of `sl_info` in csrc/storyllamas.h by name; weight_type and
            embedding_type are labels of `WeightType`.
        context: the largest number of positions that the model attends to.
        bos_id: the piece that begins a story, or -1.
        eos_id: the piece that ends a story, or -1.
        extra_eos_ids: the pieces besides eos_id that end a sequence.
        chat_template: the text of a conversation as a Jinja template; "": there is none.
        tokenizer: the tokenizer of the model.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int = 0,
        pages: str = "auto",
        kernels: str | None = None,
        cache: str = "auto",
        draft: Engine | None = None,
        draft_tokens: int = DRAFT_TOKENS,
    ) -> None:
        """Open a weight file and check all of it.

        Args:
            path: the file.
            threads: the number of threads, 1 … 64; 0: automatic.
            pages: "shared" maps the file, "huge" copies it to huge pages, and "auto" maps it and
                copies a file of 8 MB or more while it is used.
            kernels: one of `kernel_sets()`; None: the fastest.
            cache: the type of the keys and values in the key-value cache, "f32", "f16" or "q8";
                "auto": with quantized weights q8 if head_dim is 64 or more, else f16; with f32
                weights f32. It changes what is generated.
            draft: a smaller model with the same tokenizer, best with one thread, that drafts
                tokens (speculative decoding). Stories are the same. They take less time if this
                model is many times larger. `generate_many` does without it.
            draft_tokens: the number of tokens that it drafts at a time, 1 … 64.

        Raises:
            UserError: the file is missing, not a weight file, or damaged, an option is out of its
                range, or the draft has another tokenizer.
        """

        def open_file(handle: Any, options: Any) -> int:
            check_path(path)
            return int(lib.sl_model_open(handle, os.fsencode(path), options))

        self._open(open_file, threads, pages, kernels, cache)
        self._set_draft(draft, draft_tokens)

    @classmethod
    def from_bytes(
        cls,
        data: bytes | memoryview,
        *,
        threads: int = 0,
        kernels: str | None = None,
        cache: str = "auto",
        draft: Engine | None = None,
        draft_tokens: int = DRAFT_TOKENS,
    ) -> Engine:
        """Open a weight file that is in memory, and check all of it; the data are copied.

        Args:
            data: the whole file.
            threads: as of `Engine`.
            kernels: as of `Engine`.
            cache: as of `Engine`.
            draft: as of `Engine`.
            draft_tokens: as of `Engine`.

        Raises:
            UserError: as of `Engine`.
        """
        memory = np.empty(len(data) + ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        aligned = memory[start : start + len(data)]
        aligned[:] = np.frombuffer(data, np.uint8)
        pointer = ffi.from_buffer("uint8_t[]", aligned)

        def open_memory(handle: Any, options: Any) -> int:
            return int(lib.sl_model_open_memory(handle, pointer, len(aligned), options))

        engine = cls.__new__(cls)
        engine._open(open_memory, threads, "shared", kernels, cache, pointer)
        engine._set_draft(draft, draft_tokens)
        return engine

    def _open(
        self,
        open_model: Callable[[Any, Any], int],
        threads: int,
        pages: str,
        kernels: str | None,
        cache: str,
        data: object = None,
    ) -> None:
        """Check the options and open a model; `data` are kept until it is closed."""
        if pages not in PAGES:
            raise UserError(f"pages is {pages!r} and must be one of {', '.join(PAGES)}")
        if cache not in CACHES:
            raise UserError(f"cache is {cache!r} and must be one of {', '.join(CACHES)}")
        if not (isinstance(threads, int) and 0 <= threads <= MAX_THREADS):
            raise UserError(f"threads is {threads!r} and must be 0 (automatic) to {MAX_THREADS}")
        handle = ffi.new("sl_model **")
        if kernels is not None and "\0" in kernels:
            raise UserError(f"kernels is {kernels!r} and must be one of {', '.join(kernel_sets())}")
        name = ffi.NULL if kernels is None else ffi.new("char[]", utf8(kernels))
        opening = ffi.new("sl_model_options *", {"pages": PAGES[pages], "kernels": name})
        check(open_model(handle, opening))
        self._draft: tuple[Engine, int] | None = None
        self._session_options = {"threads": threads, "cache": CACHES[cache]}

        # The default argument keeps the data until the model is closed.
        def close(model: Any, _: object = data) -> None:
            lib.sl_model_close(model)

        self._model = ffi.gc(handle[0], close)
        self._idle: list[Any] = []  # sessions that nobody uses; append and pop are atomic
        self.info = _info(lib.sl_model_info(self._model))
        self.context: int = self.info["context"]
        self.bos_id: int = self.info["bos_id"]
        self.eos_id: int = self.info["eos_id"]
        count, length = ffi.new("size_t *"), ffi.new("size_t *")
        extra = lib.sl_extra_eos_ids(self._model, count)
        self.extra_eos_ids: tuple[int, ...] = tuple(ffi.unpack(extra, count[0]))
        template = lib.sl_chat_template(self._model, length)
        self.chat_template = str(ffi.buffer(template, length[0]), "utf-8") if template else ""
        self.tokenizer = FastTokenizer(lib.sl_model_tokenizer(self._model), self._model)

    def _set_draft(self, draft: Engine | None, tokens: int) -> None:
        """Let a smaller model draft tokens in every session of one slot."""
        if not (isinstance(tokens, int) and 1 <= tokens <= lib.SL_MAX_DRAFT_TOKENS):
            most = lib.SL_MAX_DRAFT_TOKENS
            raise UserError(f"draft_tokens is {tokens!r} and must be 1 to {most}")
        if draft is None:
            return
        if not isinstance(draft, Engine):
            raise UserError(f"draft is {draft!r} and must be an Engine, such as Engine({draft!r})")
        self._draft = draft, tokens
        self._idle.append(self._new_session(1))  # checks that the tokenizers are the same

    def generate(
        self,
        prompt: str | Sequence[int] = "",
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        repetition_window: int | None = None,
        seed: int | None = None,
        max_tokens: int | None = None,
        ignore_eos: bool = False,
        logprobs: int | None = None,
    ) -> Story:
        """Generate a story that continues the prompt.

        `sl_options` in csrc/storyllamas.h describes the options and the order in which they apply.
        An option that is None takes its value from `options.DEFAULTS`.

        Args:
            prompt: the beginning of the story, as text or as ids; it may be empty. BOS is added in
                front of a text only.
            temperature: 0 … 1000; 0 is greedy.
            top_k: 0 and up; 0 is off.
            top_p: above 0, up to 1; 1 is off.
            min_p: 0 up to below 1; 0 is off.
            repetition_penalty: above 0, up to 1000; 1 is off.
            repetition_window: the number of last tokens that the penalty applies to; 0 and up.
            seed: 0 … 2^64 - 1; the same seed generates the same story.
            max_tokens: the largest number of tokens to generate, without the prompt; 1 and up.
            ignore_eos: continue after EOS and BOS, to measure speed.
            logprobs: the number of most probable tokens in each of `Story.logprobs`, 0 (off) … 20.

        Returns:
            An iterator over the text after the prompt, piece by piece.

        Raises:
            UserError: an option is out of its range, or the prompt is longer than the context.
        """
        given = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "repetition_window": repetition_window,
            "seed": seed,
            "max_tokens": max_tokens,
            "ignore_eos": ignore_eos,
            "logprobs": logprobs,
        }
        options = make_options(given)
        session = self._take_session()
        if isinstance(prompt, str):
            text = utf8(prompt)
            status = lib.sl_start(session, text, len(text), ffi.addressof(options))
        else:
            ids = whole_ids(prompt)
            status = lib.sl_start_ids(session, ids_pointer(ids), len(ids), ffi.addressof(options))
        if status:
            self._idle.append(session)
        check(status)
        return Story(self, session)

    def generate_many(
        self,
        prompts: str | Iterable[str | Sequence[int]] = "",
        *,
        count: int = 1,
        batch_size: int = BATCH_SIZE,
        **options: float | None,
    ) -> Iterator[GeneratedStory]:
        """Generate many stories in batches, several times faster than one by one.

        Each story equals the one that `generate` returns for its prompt and seed. The first story
        has the given seed, and each further story the next seed (0 follows 2^64 - 1).

        Args:
            prompts: one text for all stories, or any number of prompts as `generate` takes them;
                the iterator may be endless, since prompts are taken only when needed.
            count: the number of stories for each prompt; 1 and up.
            batch_size: the number of stories that are generated at a time, 1 … 256; each needs a
                key-value cache.
            **options: as for `generate`.

        Returns:
            An iterator over the stories in order. Stories that finish before an earlier one wait
            in memory, at most 16 * batch_size of them.

        Raises:
            UserError: an option is out of its range. The iterator raises it if a prompt is longer
                than the context, and names the story.
        """
        chosen = self._checked(make_options(options))
        if not 1 <= count <= sys.maxsize:
            raise UserError(f"count is {count} and must be 1 to {sys.maxsize}")
        if not 1 <= batch_size <= lib.SL_MAX_SLOTS:
            raise UserError(f"batch_size is {batch_size} and must be 1 to {lib.SL_MAX_SLOTS}")
        given = [prompts] if isinstance(prompts, str) else prompts
        all_prompts = chain.from_iterable(repeat(prompt, count) for prompt in given)
        first = list(islice(all_prompts, batch_size))
        slots = max(len(first), 1)
        return generate_batch(self._new_session(slots), slots, chain(first, all_prompts), chosen)

    def greedy(self, prompt: Sequence[int]) -> list[int]:
        """Generate the greedy continuation of ids, up to EOS, BOS or the end of the context."""
        story = self.generate(prompt, temperature=0, max_tokens=self.context)
        for _ in story:
            pass
        return story.ids

    def encode(self, text: str) -> list[int]:
        """Encode a text, without BOS and EOS."""
        return self.tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids; control pieces such as BOS and EOS have no text.

        Raises:
            UserError: an id is not in the vocabulary.
        """
        return self.tokenizer.decode(ids)

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the logits [n, vocab_size] of the token after each of n ids, 1 … context.

        Raises:
            UserError: there are too few or too many ids, or one is not in the vocabulary.
        """
        array = whole_ids(ids)
        logits = np.empty((len(array), self.info["vocab_size"]), np.float32)
        pointer = ffi.from_buffer("float[]", logits)
        with self._session() as session:
            check(lib.sl_logits(session, ids_pointer(array), len(array), pointer))
        return logits

    def score(self, ids: Sequence[int]) -> npt.NDArray[np.float64]:
        """Return the natural log-probability [n - 1] of each id after the first.

        Args:
            ids: n ids, from 2 to the context + 1.

        Raises:
            UserError: there are too few or too many ids, or one is not in the vocabulary.
        """
        array = whole_ids(ids)
        scores = np.empty(max(len(array) - 1, 0), np.float64)
        pointer = ffi.from_buffer("double[]", scores)
        with self._session() as session:
            check(lib.sl_score(session, ids_pointer(array), len(array), pointer))
        return scores

    def _take_session(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            return self._new_session(1)

    def _new_session(self, slots: int) -> Any:
        if not self._draft or slots > 1:
            return self._plain_session(slots)
        draft, tokens = self._draft
        drafting = draft._plain_session(1)
        session = self._plain_session(1, drafting)
        check(lib.sl_set_draft(session, drafting, tokens))
        return session

    def _plain_session(self, slots: int, draft: object = None) -> Any:
        """Make a session without a draft; keep the session of a draft until it is freed."""
        handle = ffi.new("sl_session **")
        options = ffi.new("sl_session_options *", self._session_options | {"slots": slots})
        check(lib.sl_session_new(handle, self._model, options))

        # The default argument keeps the model open until the session is freed.
        def free(session: Any, _: Any = (self._model, draft)) -> None:
            lib.sl_session_free(session)

        return ffi.gc(handle[0], free)

    def _checked(self, options: Any) -> Any:
        """Check options for stories that start later."""
        with self._session() as session:
            check(lib.sl_start_slot_ids(session, 0, [0], 1, ffi.addressof(options)))
        return options

    @contextmanager
    def _session(self) -> Iterator[Any]:
        session = self._take_session()
        try:
            yield session
        finally:
            self._idle.append(session)


class Story(Iterator[str]):
    """A story that is being generated: an iterator over its text.

    Attributes:
        ids: the tokens generated so far, without the prompt and EOS.
        logprobs: if they were asked for, those of each token so far, of EOS too.
        prompt_tokens: the number of tokens in the prompt, BOS included.
        stop: why the story stopped: "eos", "bos", "max_tokens" or "context"; "" while it is
            running and after an early `close`.
        drafted: when the story has stopped, the number of tokens that a draft model drafted.
        accepted: how many of them the model accepted.
    """

    def __init__(self, engine: Engine, session: Any) -> None:
        """Take a started session; `Engine.generate` calls this."""
        self._engine = engine
        self._session = session
        self.ids: list[int] = []
        self.logprobs: list[Logprobs] = []
        self.prompt_tokens: int = lib.sl_prompt_tokens(session)
        self.stop = ""
        self.drafted = self.accepted = 0

    @property
    def tokens(self) -> int:
        """The number of tokens generated so far."""
        return len(self.ids)

    def __next__(self) -> str:
        """Return the next piece of text; it is never empty."""
        piece = ffi.new("sl_piece *")
        while self._session is not None:
            check(lib.sl_next(self._session, piece))
            text = bytes(ffi.buffer(piece.text, piece.length)).decode()
            if piece.top_count:
                self.logprobs.append(Logprobs.of(piece))
            if piece.stop:
                self.stop = string(lib.sl_stop_name(piece.stop))
                self.close()
            else:
                self.ids.append(piece.id)
            if text:
                return text
        raise StopIteration

    def close(self) -> None:
        """End the story early; a second call is a no-op."""
        if self._session is not None:
            drafted, accepted = ffi.new("size_t *"), ffi.new("size_t *")
            lib.sl_draft_counts(self._session, drafted, accepted)
            self.drafted, self.accepted = drafted[0], accepted[0]
            self._engine._idle.append(self._session)
            self._session = None


def _info(info: Any) -> dict[str, Any]:
    return fields(info) | {
        "weight_type": string(lib.sl_type_name(info.weight_type)),
        "embedding_type": string(lib.sl_type_name(info.embedding_type)),
        "kernels": string(info.kernels),
        "rope_scaling": ROPE_SCALINGS[info.rope_scaling],
        "tied": bool(info.tied),
    }
