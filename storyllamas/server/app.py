"""The HTTP interface: OpenAI's completions, health and metrics."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from storyllamas.engine.engine import Engine
from storyllamas.errors import UserError
from storyllamas.server.completion import Choice, Completion
from storyllamas.server.request import CompletionRequest, parse
from storyllamas.server.worker import QueueFullError, Worker

MAX_BODY = 1 << 20
"""Bytes of a request's body."""

RETRY_SECONDS = 1
"""When a client may try again after it found the queue full."""

CLIENT_LEFT = 499
"""The status in nginx's logs of a request whose client has gone away."""


@dataclass
class Counters:
    """What /metrics shows."""

    requests: int = 0
    rejected: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class Server:
    """The state that the routes share."""

    engine: Engine
    worker: Worker
    name: str
    counters: Counters = field(default_factory=Counters)
    started: int = field(default_factory=lambda: int(time.time()))

    async def completions(self, request: Request) -> Response:
        """Answer POST /v1/completions."""
        self.counters.requests += 1
        try:
            asked = parse(await _body(request))
            prompt_tokens = self._check(asked)
            completion = Completion(self.worker, asked)
            choices = completion.choices()
            first = await anext(choices)
            if first.error:
                await choices.aclose()
                raise UserError(first.error)
        except QueueFullError as error:
            return self._rejected(str(error), 429, {"Retry-After": str(RETRY_SECONDS)})
        except UserError as error:
            return self._rejected(str(error), 400)
        self.counters.prompt_tokens += prompt_tokens
        about = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.name,
        }
        usage = Usage(prompt_tokens, completion, self.counters)
        arrivals = _chained(first, choices)
        if asked.stream:
            events = _events(arrivals, about, asked, usage)
            return StreamingResponse(events, media_type="text/event-stream")
        return await _whole(request, arrivals, about, asked, usage)

    def _check(self, asked: CompletionRequest) -> int:
        """Return the number of tokens of the prompt."""
        if asked.model not in ("", self.name):
            raise UserError(f"model is {asked.model!r}, and this server has {self.name!r}")
        tokens = len(self.engine.encode(asked.prompt))
        if tokens >= self.engine.context:
            raise UserError(
                f"prompt has {tokens} tokens, and the model's context is {self.engine.context}: "
                "send a shorter one"
            )
        return tokens

    def _rejected(self, message: str, status: int, headers: Any = None) -> Response:
        self.counters.rejected += 1
        return _error(message, status, headers)

    async def models(self, request: Request) -> Response:
        """Answer GET /v1/models."""
        model = {
            "id": self.name,
            "object": "model",
            "created": self.started,
            "owned_by": "storyllamas",
        }
        return JSONResponse({"object": "list", "data": [model]})

    async def health(self, request: Request) -> Response:
        """Answer GET /health."""
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """Answer GET /metrics in Prometheus' text format."""
        running, waiting = self.worker.load()
        counters = {
            "requests": ("requests for completions", self.counters.requests),
            "requests_rejected": ("requests that were rejected", self.counters.rejected),
            "prompt_tokens": ("tokens of prompts", self.counters.prompt_tokens),
            "completion_tokens": ("generated tokens", self.counters.completion_tokens),
        }
        gauges = {
            "sequences_running": ("sequences that have a slot", running),
            "sequences_waiting": ("sequences that wait for a slot", waiting),
        }
        lines = [
            line
            for kind, values in (("counter", counters), ("gauge", gauges))
            for name, (text, value) in values.items()
            for line in _metric(f"storyllamas_{name}", kind, text, value)
        ]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


@dataclass
class Usage:
    """Counts the tokens of a request, once for the client and once for /metrics."""

    prompt_tokens: int
    completion: Completion
    counters: Counters

    def close(self) -> dict[str, int]:
        """Return the usage of a request that has ended."""
        tokens = self.completion.tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
        }

    def count(self) -> None:
        """Add the tokens to the counters."""
        self.counters.completion_tokens += self.completion.tokens


def create_app(engine: Engine, worker: Worker, name: str) -> Starlette:
    """Return the application.

    Args:
        engine: the model.
        worker: generates its sequences.
        name: what clients call the model.
    """
    server = Server(engine, worker, name)
    return Starlette(
        routes=[
            Route("/v1/completions", server.completions, methods=["POST"]),
            Route("/v1/models", server.models),
            Route("/health", server.health),
            Route("/metrics", server.metrics),
        ],
        exception_handlers={HTTPException: _http_error},
    )


def _error(message: str, status: int, headers: Any = None) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    value = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": value}, status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(f"{request.method} {request.url.path}: {error.detail}", error.status_code)


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"the body has more than {MAX_BODY} bytes: send a shorter one")
    return body


async def _chained(
    first: Choice, rest: AsyncGenerator[Choice, None]
) -> AsyncGenerator[Choice, None]:
    try:
        yield first
        async for choice in rest:
            yield choice
    finally:
        await rest.aclose()


def _shown(choice: Choice, text: str) -> dict[str, Any]:
    reason = choice.finish_reason or None
    return {"index": choice.index, "text": text, "logprobs": None, "finish_reason": reason}


async def _events(
    arrivals: AsyncGenerator[Choice, None],
    about: dict[str, Any],
    asked: CompletionRequest,
    usage: Usage,
) -> AsyncGenerator[str, None]:
    """Yield server-sent events, the last one with the usage."""
    echoed = set(range(asked.n)) if asked.echo else set()
    try:
        async with aclosing(arrivals):
            async for choice in arrivals:
                if choice.error:
                    yield _event({"error": {"message": choice.error, "type": "server_error"}})
                    return
                text = choice.text
                if choice.index in echoed:
                    echoed.remove(choice.index)
                    text = asked.prompt + text
                yield _event({**about, "choices": [_shown(choice, text)]})
        yield _event({**about, "choices": [], "usage": usage.close()})
        yield "data: [DONE]\n\n"
    finally:
        usage.count()


def _event(value: Any) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def _whole(
    request: Request,
    arrivals: AsyncGenerator[Choice, None],
    about: dict[str, Any],
    asked: CompletionRequest,
    usage: Usage,
) -> Response:
    """Return all texts at once, or nothing to a client that goes away."""
    collecting = asyncio.ensure_future(_collect(arrivals, asked))
    leaving = asyncio.ensure_future(_disconnection(request))
    try:
        await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not collecting.done():
            collecting.cancel()
            await asyncio.wait({collecting})
            return Response(status_code=CLIENT_LEFT)  # nobody reads it
        choices = collecting.result()
    except UserError as error:
        return _error(str(error), 500)
    finally:
        leaving.cancel()
        usage.count()
    return JSONResponse({**about, "choices": choices, "usage": usage.close()})


async def _collect(
    arrivals: AsyncGenerator[Choice, None], asked: CompletionRequest
) -> list[dict[str, Any]]:
    texts = [asked.prompt if asked.echo else ""] * asked.n
    ends: dict[int, Choice] = {}
    async with aclosing(arrivals):
        async for choice in arrivals:
            if choice.error:
                raise UserError(choice.error)
            texts[choice.index] += choice.text
            ends[choice.index] = choice
    return [_shown(ends[index], text) for index, text in enumerate(texts)]


async def _disconnection(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.05)


def _metric(name: str, kind: str, text: str, value: int) -> list[str]:
    name += "_total" * (kind == "counter")
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", f"{name} {value}"]
