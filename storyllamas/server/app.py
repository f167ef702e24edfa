"""The HTTP interface: OpenAI's completions, health and metrics."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from storyllamas.engine.engine import Engine
from storyllamas.errors import UserError
from storyllamas.server import answers
from storyllamas.server.answers import Answer
from storyllamas.server.choice import Chunk
from storyllamas.server.completion import Completion
from storyllamas.server.logprobs import TokenTexts, check_prompt
from storyllamas.server.metrics import Counters, exposition
from storyllamas.server.page import PageFiles
from storyllamas.server.request import CompletionRequest, parse
from storyllamas.server.worker import STOPPING, QueueFullError, Worker

MAX_BODY = 1 << 20
"""Bytes of a request's body."""

RETRY_SECONDS = 1
"""When a client may try again after it found the queue full."""

CLIENT_LEFT = 499
"""The status in nginx's logs of a request whose client has gone away."""

METHODS = {"/v1/completions": "POST", "/v1/models": "GET"}
"""What is served under /v1/."""

PATHS = ", ".join([*METHODS, "/health or /metrics"])

EVENT_SECONDS = 0.0003
"""The share of an event in the time between two events of each stream. If there are more tokens
than events, an event has several tokens."""


@dataclass
class Server:
    """The state that the routes share."""

    engine: Engine
    worker: Worker
    name: str
    slots: int
    counters: Counters = field(default_factory=Counters)
    streams: int = 0
    started: int = field(default_factory=lambda: int(time.time()))
    texts: TokenTexts = field(init=False)

    def __post_init__(self) -> None:
        """Make what the routes look up."""
        self.texts = TokenTexts(self.engine)

    async def completions(self, request: Request) -> Response:
        """Answer POST /v1/completions."""
        self.counters.requests += 1
        try:
            asked = parse(await _body(request))
            answer = self._begin(asked)
            chunks = await answers.until_left(self._chunks(answer), request.receive)
        except QueueFullError as error:
            return self._rejected(str(error), 429, {"Retry-After": str(RETRY_SECONDS)})
        except UserError as error:
            return self._rejected(str(error), 503 if str(error) == STOPPING else 400)
        except ClientDisconnect:
            return Response(status_code=CLIENT_LEFT)
        if chunks is None:
            return Response(status_code=CLIENT_LEFT)
        self.counters.prompt_tokens += sum(map(len, answer.prompts))
        if asked.stream:
            return StreamingResponse(self._stream(answer, chunks), media_type="text/event-stream")
        try:
            value = await answers.until_left(answers.whole(answer, chunks), request.receive)
        except UserError as error:
            return _error(str(error), 500)
        finally:
            self.counters.completion_tokens += answer.completion.tokens
        return JSONResponse(value) if value else Response(status_code=CLIENT_LEFT)

    def _begin(self, asked: CompletionRequest) -> Answer:
        """Check a request, and encode its prompts."""
        if asked.model not in ("", self.name):
            raise UserError(f"model is {asked.model!r}, and this server has {self.name!r}")
        prompts = [self._ids(prompt) for prompt in asked.prompts]
        if asked.echo and asked.logprobs is not None:
            for ids in prompts:
                check_prompt(self.engine, ids)
        echoes = [self._text(prompt) if asked.echo else "" for prompt in asked.prompts]
        completion = Completion(self.worker, asked, prompts)
        return Answer(self.engine, self.texts, self.name, asked, prompts, echoes, completion)

    def _text(self, prompt: str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else self.engine.decode(prompt)

    def _ids(self, prompt: str | list[int]) -> list[int]:
        """Return the ids of a prompt; a text gets BOS as in `Engine.generate`."""
        info = self.engine.info
        if isinstance(prompt, str):
            text = self.engine.encode(prompt)
            has_bos = info["adds_bos"] or (not text and info["bos_id"] >= 0)
            ids = [info["bos_id"], *text] if has_bos else text
        else:
            ids = prompt
            for id in ids:
                if id >= info["vocab_size"]:
                    raise UserError(
                        f"token {id} is not in the vocabulary, which has {info['vocab_size']}"
                    )
        if not ids and not isinstance(prompt, str):
            raise UserError("prompt is an empty list of ids: send at least one id, or a text")
        if not ids:
            raise UserError("prompt has no tokens, and the model has no BOS to start from")
        if len(ids) >= self.engine.context:
            raise UserError(
                f"prompt has {len(ids)} tokens, and the model's context is {self.engine.context}: "
                "send a shorter one"
            )
        return ids

    async def _chunks(self, answer: Answer) -> AsyncGenerator[Chunk, None]:
        """Submit the sequences, and return their chunks when the first is there.

        Raises:
            UserError: there is no room for them, or the engine rejects them.
        """
        if answer.asked.max_tokens == 0:
            return answers.each(answer.only_prompts())
        pause = self._pause if answer.asked.stream else lambda: 0.0
        chunks = answer.completion.chunks(pause)
        first = await anext(chunks)
        if first.error:
            await chunks.aclose()
            raise UserError(first.error)
        return answers.chained(first, chunks)

    def _pause(self) -> float:
        return EVENT_SECONDS * self.streams

    async def _stream(
        self, answer: Answer, chunks: AsyncGenerator[Chunk, None]
    ) -> AsyncGenerator[str, None]:
        """Yield the events, and count the stream while it runs."""
        self.streams += 1
        try:
            async with aclosing(answers.events(answer, chunks)) as events:
                async for event in events:
                    yield event
        finally:
            self.streams -= 1
            self.counters.completion_tokens += answer.completion.tokens

    def _rejected(self, message: str, status: int, headers: Any = None) -> Response:
        self.counters.requests_rejected += 1
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

    async def unknown(self, request: Request) -> Response:
        """Answer any other address under /v1/."""
        raise HTTPException(405 if request.url.path in METHODS else 404)

    async def health(self, request: Request) -> Response:
        """Answer GET /health."""
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        """Answer GET /metrics."""
        running, waiting = self.worker.load()
        gauges = {
            "sequences_running": running,
            "sequences_waiting": waiting,
            "slots": self.slots,
        }
        text = exposition(self.counters, gauges)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def create_app(
    engine: Engine, worker: Worker, name: str, slots: int, web: Path | None = None
) -> Starlette:
    """Return the application.

    Args:
        engine: the model.
        worker: generates its sequences.
        name: what clients call the model.
        slots: of the worker.
        web: folder of the page that is shown at /; None: there is no page.
    """
    server = Server(engine, worker, name, slots)
    page = [Mount("/", PageFiles(directory=web, html=True))] if web else []
    return Starlette(
        routes=[
            Route("/v1/completions", server.completions, methods=["POST"]),
            Route("/v1/models", server.models),
            Route("/v1/{path:path}", server.unknown, methods=["GET", "POST"]),
            Route("/health", server.health),
            Route("/metrics", server.metrics),
            *page,
        ],
        exception_handlers={HTTPException: _http_error},
    )


def _error(message: str, status: int, headers: Any = None) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    value = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": value}, status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    messages = {
        404: f"{path} is not served: use {PATHS}",
        405: f"{method} is not for {path}: use {METHODS.get(path, 'GET')}",
    }
    message = messages.get(error.status_code, f"{method} {path}: {error.detail}")
    return _error(message, error.status_code)


async def _body(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"the body has more than {MAX_BODY} bytes: send a shorter one")
    return body
