"""A local server with the dataset's files and faults that a test chooses."""

from __future__ import annotations

import hashlib
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

from storyllamas.corpus.tinystories import PROMPTS, REPOSITORY, REVISION
from storyllamas.corpus.transfer import Published

PREFIX = f"/datasets/{REPOSITORY}/resolve/{REVISION}/"


def stories(count: int, name: str) -> bytes:
    return b"".join(
        b"%s %d said\nhello.\n<|endoftext|>\n" % (name.encode(), i) for i in range(count)
    )


@dataclass
class Fault:
    """The faults of one response.

    Attributes:
        status: sent instead of 200 or 206, without a body.
        headers: additional headers.
        ignore_range: send the whole file whatever range the request names.
        shift: bytes by which a range begins too late.
        length_error: is added to the announced length.
        chunked: announce no length.
        body: sent instead of the file.
        cut_at: byte of the file before which the response stops.
        then: what happens there: end | reset | stall (until the test is over) | hold (until `go`).
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    ignore_range: bool = False
    shift: int = 0
    length_error: int = 0
    chunked: bool = False
    body: bytes | None = None
    cut_at: int | None = None
    then: str = "end"


@dataclass
class Hub:
    """The server's files, the faults of its next responses, and the requests so far.

    Attributes:
        files: content of each file by name.
        endpoint: the server's URL.
        cdn: redirect requests to another host, as the hub does.
        faults: faults of the next responses; the first one is used first.
        gets: file name and first byte of each request.
        hosts: the header Host of each request.
        go: ends a `hold`.
        over: ends a `stall`.
    """

    files: dict[str, bytes]
    endpoint: str = ""
    cdn: bool = False
    faults: list[Fault] = field(default_factory=list)
    gets: list[tuple[str, int]] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def published(self) -> dict[str, Published]:
        return {
            name: Published(len(data), hashlib.sha256(data).hexdigest())
            for name, data in self.files.items()
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        path = unquote(re.sub("^http://[^/]*", "", self.path))
        self.hub.hosts.append(self.headers["Host"])
        if self.hub.cdn and path.startswith(PREFIX):
            self.send_response(302)
            location = self.hub.endpoint.replace("127.0.0.1", "localhost") + "/cdn/"
            self.send_header("Location", location + quote(path.removeprefix(PREFIX)))
            self._end_without_body()
            return
        name = re.sub(f"^({re.escape(PREFIX)}|/cdn/|/mirror/)", "", path)
        requested = self.headers.get("Range")
        start = int(re.fullmatch(r"bytes=(\d+)-", requested)[1]) if requested else 0
        self.hub.gets.append((name, start))
        fault = self.hub.faults.pop(0) if self.hub.faults else Fault()
        if name not in self.hub.files:
            fault.status = 404
        if fault.status is not None:
            self.send_response(fault.status)
            self._send_headers(fault.headers)
            self._end_without_body()
            return
        data = self.hub.files[name] if fault.body is None else fault.body
        self._send(data, None if requested is None or fault.ignore_range else start, fault)

    def _send(self, data: bytes, start: int | None, fault: Fault) -> None:
        total = len(data) + fault.length_error
        if start is None:
            self.send_response(200)
            start = 0
        elif start >= len(data):
            self.send_response(416)
            self._send_headers({"Content-Range": f"bytes */{total}"})
            self._end_without_body()
            return
        else:
            start += fault.shift
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if fault.chunked:
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(total - start))
        self._send_headers(fault.headers)
        self.end_headers()
        self.close_connection = True
        if fault.cut_at is None:
            self.wfile.write(data[start:])
            return
        self.wfile.write(data[start : fault.cut_at])
        if fault.then == "reset":
            # Without lingering, closing the socket sends a reset.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
        elif fault.then == "stall":
            self.hub.over.wait()
        elif fault.then == "hold":
            self.hub.go.wait()
            self.wfile.write(data[max(start, fault.cut_at) :])

    def _send_headers(self, headers: dict[str, str]) -> None:
        for name, value in headers.items():
            self.send_header(name, value)

    def _end_without_body(self) -> None:
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        """Ignore errors: a client may close the connection."""


@contextmanager
def nobody_listens() -> Iterator[str]:
    """Return a URL that refuses connections; its port stays reserved for this test."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub(
        {
            "TinyStories-train.txt": stories(3000, "Tom"),
            "TinyStories-valid.txt": stories(20, "Sue"),
            "TinyStoriesV2-GPT4-train.txt": stories(100, "Ben"),
            "TinyStoriesV2-GPT4-valid.txt": stories(10, "Amy"),
            PROMPTS: b"- - Tom said\n- - 'Sue saw '\n",
        }
    )
    server = Server(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.over.set()
        hub.go.set()
        server.shutdown()
        thread.join()
        server.server_close()
