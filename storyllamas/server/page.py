"""The files of the page for browsers."""

from __future__ import annotations

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

ISOLATION = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}
"""Headers of an isolated page, which may share memory between threads."""


class PageFiles(StaticFiles):
    """A folder of files, each sent with the headers of an isolated page."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return the response with a file."""
        response = await super().get_response(path, scope)
        response.headers.update(ISOLATION)
        return response
