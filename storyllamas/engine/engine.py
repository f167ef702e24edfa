"""The C engine from Python.

    engine = Engine("model.slm")
    for piece in engine.generate("Once upon a time", temperature=0.8, seed=1):
        print(piece, end="", flush=True)
    for story in engine.generate_many("Once upon a time", count=1000):
        print(story.text)

An `Engine` may be shared by any number of threads; each call and each `Story` has its own session
of the C engine. A `Story` is for one thread at a time. C runs without the global interpreter lock.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice, repeat, takewhile
from itertools import count as numbers
from typing import Any

import numpy as np
import numpy.typing as npt

from storyllamas.engine.batch import TOGETHER, ToldStory, tell
from storyllamas.engine.ffi import check, ffi, ids_pointer, lib, string, utf8, whole_ids
from storyllamas.engine.tokenizer import FastTokenizer
from storyllamas.errors import UserError

PAGES = {
    "auto": lib.SL_PAGES_AUTO,
    "shared": lib.SL_PAGES_SHARED,
    "huge": lib.SL_PAGES_HUGE,
}


def kernel_sets() -> list[str]:
    """Names of the instruction sets that this processor runs, the fastest first."""
    names = (lib.sl_kernels_name(index) for index in numbers())
    return [string(name) for name in takewhile(lambda name: bool(name), names)]


class Engine:
    """A weight file, open for telling stories and for measuring.

    Attributes:
        info: every field of `sl_info` in csrc/storyllamas.h, by name; weight_type and
            embedding_type are "f32", "q8" or "q4".
        context: most positions that the model attends to.
        bos_id: the piece that begins a story, or -1.
        eos_id: the piece that ends a story, or -1.
        tokenizer: the model's.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int = 0,
        pages: str = "auto",
        kernels: str | None = None,
    ) -> None:
        """Open a weight file and check all of it.

        Args:
            path: the file.
            threads: that compute a story together, 1 … 64; 0: as many as serve best.
            pages: shared (the file is mapped), huge (it is copied onto huge pages) or auto
                (mapped at first; one of 8 MB or more is copied while it is used).
            kernels: one of `kernel_sets()`; None: the best.

        Raises:
            UserError: it is missing, not a weight file, or damaged, or an option is unknown.
        """
        if pages not in PAGES:
            raise UserError(f"pages is {pages!r} and must be one of {', '.join(PAGES)}")
        handle = ffi.new("sl_model **")
        name = ffi.NULL if kernels is None else ffi.new("char[]", utf8(kernels))
        opening = ffi.new("sl_model_options *", {"pages": PAGES[pages], "kernels": name})
        check(lib.sl_model_open(handle, os.fsencode(path), opening))
        _set_option(ffi.new("sl_session_options *"), "threads", threads)
        self._threads = threads
        self._model = ffi.gc(handle[0], lib.sl_model_close)
        self._idle: list[Any] = []  # sessions that nobody uses; append and pop are atomic
        self.info = _info(lib.sl_model_info(self._model))
        self.context: int = self.info["context"]
        self.bos_id: int = self.info["bos_id"]
        self.eos_id: int = self.info["eos_id"]
        self.tokenizer = FastTokenizer(lib.sl_model_tokenizer(self._model), self._model)

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
    ) -> Story:
        """Tell a story that begins with the prompt, which may be empty.

        What the options mean, and in which order they apply, is written at `sl_options` in
        csrc/storyllamas.h. What is None is as in `DEFAULTS`.

        Args:
            prompt: how the story begins, as text or as ids; BOS is put before a text only.
            temperature: 0 … 1000; 0 is greedy.
            top_k: 0 and up; 0 is off.
            top_p: above 0, up to 1; 1 is off.
            min_p: 0 up to below 1; 0 is off.
            repetition_penalty: above 0, up to 1000; 1 is off.
            repetition_window: tokens that the penalty looks back on; 0 and up.
            seed: 0 … 2^64 - 1; the same seed tells the same story.
            max_tokens: to generate, not counting the prompt; 1 and up.
            ignore_eos: continue after EOS and BOS, to measure speed.

        Returns:
            An iterator over the story's text after the prompt, piece by piece.

        Raises:
            UserError: an option is out of its range, or the prompt longer than the context.
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
        }
        options = _options(given)
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
        prompts: str | Iterable[str] = "",
        *,
        count: int = 1,
        together: int = TOGETHER,
        **options: float | None,
    ) -> Iterator[ToldStory]:
        """Tell many stories, several times faster than one by one.

        Each is the one that `generate` tells with its seed, whoever is told beside it: the first
        has the given seed, and every other the next higher one (after 2^64 - 1 comes 0).

        Args:
            prompts: how they begin: one text for all, or any number of them, also without an end;
                prompts are taken only as they are needed.
            count: stories for each prompt, one after the other; 1 and up.
            together: stories told at a time, 1 … 256, each with a cache of its own.
            **options: as for `generate`.

        Returns:
            An iterator over the stories in their order. A few that ended before an earlier one
            wait in memory, at most 16 for each of those told at a time.

        Raises:
            UserError: an option is out of its range; and, as stories are taken, a prompt is longer
                than the context, which says whose.
        """
        chosen = self._checked(_options(options))
        if count < 1:
            raise UserError(f"count is {count} and must be 1 or more")
        if not 1 <= together <= lib.SL_MAX_SLOTS:
            raise UserError(f"together is {together} and must be 1 to {lib.SL_MAX_SLOTS}")
        texts = [prompts] if isinstance(prompts, str) else prompts
        all_prompts = chain.from_iterable(repeat(text, count) for text in texts)
        first = list(islice(all_prompts, together))
        places = max(len(first), 1)
        return tell(self._new_session(places), places, chain(first, all_prompts), chosen)

    def greedy(self, prompt: Sequence[int]) -> list[int]:
        """The likeliest continuation of ids, up to EOS, BOS or the end of the context."""
        story = self.generate(prompt, temperature=0, max_tokens=self.context)
        for _ in story:
            pass
        return story.ids

    def encode(self, text: str) -> list[int]:
        """The ids of a text, as SentencePiece numbers them, without BOS and EOS."""
        return self.tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; control pieces such as BOS and EOS have none.

        Raises:
            UserError: an id is not in the vocabulary.
        """
        return self.tokenizer.decode(ids)

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits [n, vocab_size] of the token after each of n ids, n from 1 to the context.

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
        """Log-probabilities [n - 1] in nats of each id after the first, given those before it.

        Args:
            ids: n of them, from 2 to the context + 1.

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
        handle = ffi.new("sl_session **")
        options = ffi.new("sl_session_options *", {"threads": self._threads, "slots": slots})
        check(lib.sl_session_new(handle, self._model, options))

        def free(session: Any, _: Any = self._model) -> None:  # which is closed after its sessions
            lib.sl_session_free(session)

        return ffi.gc(handle[0], free)

    def _checked(self, options: Any) -> Any:
        """The options of stories that begin later."""
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
    """A story that is being told: an iterator over its text.

    Attributes:
        ids: the tokens told so far, neither the prompt's nor EOS.
        prompt_tokens: number of the prompt's tokens, BOS among them.
        stop: why the story ended: "eos", "bos", "max_tokens" or "context"; "" while it goes on and
            after an early `close`.
    """

    def __init__(self, engine: Engine, session: Any) -> None:
        """Go on with a session that has been started; `Engine.generate` calls this."""
        self._engine = engine
        self._session = session
        self.ids: list[int] = []
        self.prompt_tokens: int = lib.sl_prompt_tokens(session)
        self.stop = ""

    @property
    def tokens(self) -> int:
        """Number of tokens told so far."""
        return len(self.ids)

    def __next__(self) -> str:
        """The next piece of text, never empty."""
        piece = ffi.new("sl_piece *")
        while self._session is not None:
            check(lib.sl_next(self._session, piece))
            text = bytes(ffi.buffer(piece.text, piece.length)).decode()
            if piece.stop:
                self.stop = string(lib.sl_stop_name(piece.stop))
                self.close()
            else:
                self.ids.append(piece.id)
            if text:
                return text
        raise StopIteration

    def close(self) -> None:
        """End the story here; calling it again is harmless."""
        if self._session is not None:
            self._engine._idle.append(self._session)
            self._session = None


def _set_option(options: Any, name: str, value: float) -> None:
    try:
        setattr(options, name, value)
    except (OverflowError, TypeError):
        raise UserError(f"{name} is {value!r} and must be a number in its range") from None


def _options(given: Mapping[str, float | None]) -> Any:
    """`sl_options` with what is given; None is as in `DEFAULTS`."""
    options = lib.sl_defaults()
    for name, value in given.items():
        if name not in DEFAULTS:
            raise TypeError(f"{name!r} is no option: they are {', '.join(DEFAULTS)}")
        if value is not None:
            _set_option(options, name, value)
    return options


def _fields(struct: Any) -> dict[str, Any]:
    """A C structure's fields; 32-bit floats as people write them, strings as `str`."""
    fields = {name: getattr(struct, name) for name in dir(struct)}
    return {
        name: float(f"{value:.7g}") if isinstance(value, float) else value
        for name, value in fields.items()
    }


def _info(info: Any) -> dict[str, Any]:
    return _fields(info) | {
        "weight_type": string(lib.sl_type_name(info.weight_type)),
        "embedding_type": string(lib.sl_type_name(info.embedding_type)),
        "kernels": string(info.kernels),
        "tied": bool(info.tied),
    }


DEFAULTS = _fields(lib.sl_defaults())
"""What `Engine.generate` takes for options that are not given: SL_OPTIONS_DEFAULTS in C."""
