"""Answers to a request for completions: a stream of events, or all texts at once."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from storyllamas.engine.engine import Engine
from storyllamas.errors import UserError
from storyllamas.server.choice import Chunk
from storyllamas.server.completion import Completion
from storyllamas.server.logprobs import Shown, TokenTexts, add_prompt
from storyllamas.server.request import CompletionRequest


@dataclass
class Answer:
    """What the parts of an answer have in common.

    Attributes:
        asked: the request.
        prompts: the ids of its prompts, BOS included.
        echoes: the text of each prompt, or "" without `asked.echo`.
        completion: its sequences.
    """

    engine: Engine
    texts: TokenTexts
    model: str
    asked: CompletionRequest
    prompts: list[list[int]]
    echoes: list[str]
    completion: Completion
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def json(self, **rest: Any) -> dict[str, Any]:
        """Return the fields of each event, and of the whole."""
        about = {"id": self.id, "object": "text_completion", "created": self.created}
        return {**about, "model": self.model, **rest}

    def usage(self) -> dict[str, int]:
        """Return the usage of a request that has ended."""
        prompt_tokens, tokens = sum(map(len, self.prompts)), self.completion.tokens
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": prompt_tokens + tokens,
        }

    def only_prompts(self) -> list[Chunk]:
        """Return the chunks of a request for no tokens."""
        count = len(self.prompts) * self.asked.count
        return [Chunk(index, finish_reason="length") for index in range(count)]

    def choice(self, chunk: Chunk, is_first: bool) -> dict[str, Any]:
        """Return a choice with what a chunk adds; the first one has the echo."""
        echo = self.echoes[chunk.index // self.asked.count]
        return {
            "index": chunk.index,
            "text": (echo if is_first else "") + chunk.text,
            "logprobs": self._logprobs(chunk, is_first, len(echo)),
            "finish_reason": chunk.finish_reason or None,
        }

    def _logprobs(self, chunk: Chunk, is_first: bool, start: int) -> dict[str, Any] | None:
        if self.asked.logprobs is None:
            return None
        shown = Shown(self.texts, self.asked.logprobs)
        if is_first and self.asked.echo:
            add_prompt(shown, self.engine, self.prompts[chunk.index // self.asked.count])
        shown.add_generated(chunk.logprobs, start)
        return shown.json()


async def whole(answer: Answer, chunks: AsyncGenerator[Chunk, None]) -> dict[str, Any]:
    """Return the answer once all texts are complete.

    Raises:
        UserError: a sequence failed.
    """
    choices = {}
    async with aclosing(chunks):
        async for chunk in chunks:
            if chunk.error:
                raise UserError(chunk.error)
            choices[chunk.index] = answer.choice(chunk, is_first=True)
    return answer.json(choices=[choices[index] for index in sorted(choices)], usage=answer.usage())


async def events(answer: Answer, chunks: AsyncGenerator[Chunk, None]) -> AsyncGenerator[str, None]:
    """Yield server-sent events.

    Args:
        answer: what they have in common.
        chunks: what the choices gain.
    """
    seen: set[int] = set()
    async with aclosing(chunks):
        async for chunk in chunks:
            if chunk.error:
                yield _event({"error": {"message": chunk.error, "type": "server_error"}})
                return
            choice = answer.choice(chunk, is_first=chunk.index not in seen)
            seen.add(chunk.index)
            yield _event(answer.json(choices=[choice]))
    options = answer.asked.stream_options
    if options and options.include_usage:
        yield _event(answer.json(choices=[], usage=answer.usage()))
    yield "data: [DONE]\n\n"


def _event(value: Any) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def chained(first: Chunk, rest: AsyncGenerator[Chunk, None]) -> AsyncGenerator[Chunk, None]:
    """Yield a chunk that was taken from an iterator, and then the others."""
    try:
        yield first
        async for chunk in rest:
            yield chunk
    finally:
        await rest.aclose()


async def each(chunks: list[Chunk]) -> AsyncGenerator[Chunk, None]:
    """Yield chunks that are there already."""
    for chunk in chunks:
        yield chunk


async def until_left(coroutine: Any, receive: Callable[[], Any]) -> Any:
    """Return what a coroutine returns; None: the client went away first, and it was cancelled.

    Args:
        coroutine: runs until then.
        receive: of ASGI, after the body.
    """
    working = asyncio.ensure_future(coroutine)
    leaving = asyncio.ensure_future(_disconnection(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
            await asyncio.wait({working})
            return None
        return working.result()
    finally:
        leaving.cancel()


async def _disconnection(receive: Callable[[], Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
