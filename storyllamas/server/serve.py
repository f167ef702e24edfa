"""`storyllamas serve`: listens until Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from storyllamas.engine.engine import Engine
from storyllamas.errors import UserError
from storyllamas.server.app import create_app
from storyllamas.server.completion import notify
from storyllamas.server.worker import Worker

GRACE = 5
"""Seconds that requests in progress have to end at Ctrl-C."""

MAX_PORT = 65535

SWITCH_SECONDS = 0.0005
"""How long the thread of the worker waits after each token for that of the clients. With Python's
0.005 seconds it mostly waits: a token of a small model takes less."""


def serve(
    engine: Engine,
    name: str,
    *,
    host: str,
    port: int,
    slots: int,
    max_waiting: int,
    web: Path | None,
) -> None:
    """Answer requests until Ctrl-C or SIGTERM.

    Args:
        engine: the model.
        name: what clients call it.
        host: the address to listen at.
        port: 0: any free port.
        slots: sequences that are generated at a time.
        max_waiting: sequences that may wait for a slot.
        web: folder of the page that is shown at /; None: there is no page.

    Raises:
        UserError: slots is out of its range, the address cannot be used, or the folder has no
            page.
    """
    # asyncio warns of each write to a client that has just gone away.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    sys.setswitchinterval(SWITCH_SECONDS)
    if web and not (web / "index.html").is_file():
        raise UserError(f"{web} has no index.html: build the page with `make web`")
    worker = Worker(engine, slots, max_waiting, notify)
    try:
        with _listening(host, port) as listener:
            address, chosen = listener.getsockname()[:2]
            shown = f"[{address}]" if ":" in address else address
            print(f"{name} at http://{shown}:{chosen}/v1", flush=True)
            _Server(create_app(engine, worker, name, slots, web), worker).run([listener])
    finally:
        worker.close()


class _Server(uvicorn.Server):
    """Ends requests that are still in progress some time after Ctrl-C."""

    def __init__(self, app: Starlette, worker: Worker) -> None:
        super().__init__(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2 * GRACE)
        )
        self._worker = worker

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(GRACE, self._worker.stop)
        await super().shutdown(sockets)


def _listening(host: str, port: int) -> socket.socket:
    if not 0 <= port <= MAX_PORT:
        raise UserError(f"port is {port} and must be 0 to {MAX_PORT}")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise UserError(
            f"cannot listen at {host} port {port} ({error}): choose others with --host and --port"
        ) from None
