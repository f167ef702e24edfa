"""Serve the page on this machine, with the headers that let a browser use several threads.

usage: python3 web/serve.py FOLDER PORT
"""

from __future__ import annotations

import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

ISOLATION = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}
"""Headers of an isolated page, which may share memory between threads."""


class Handler(SimpleHTTPRequestHandler):
    """Sends files, each with the headers of an isolated page."""

    def end_headers(self) -> None:
        """Add the headers."""
        for name, value in ISOLATION.items():
            self.send_header(name, value)
        super().end_headers()


def main() -> None:
    """Run the command line."""
    if len(sys.argv) != 3 or not sys.argv[2].isdigit():
        raise SystemExit("usage: python3 web/serve.py FOLDER PORT")
    folder, port = sys.argv[1], int(sys.argv[2])
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, directory=folder))
    except OSError as error:
        raise SystemExit(f"error: port {port} cannot be used: {error.strerror}") from None
    print(f"http://localhost:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
