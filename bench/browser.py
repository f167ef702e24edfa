"""A headless Chromium, and a local server of a folder for it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from storyllamas.errors import UserError
from storyllamas.server.page import ISOLATION

BROWSERS, DRIVER = ("chromium", "google-chrome"), "chromedriver"
FLAGS = ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage")


@contextmanager
def open_browser() -> Iterator[Any]:
    """Start the browser; the value is Selenium's driver.

    Raises:
        UserError: Selenium, the browser or its driver is not installed.
    """
    browser = next((path for path in map(shutil.which, BROWSERS) if path), None)
    driver = shutil.which(DRIVER)
    if not (browser and driver):
        missing = DRIVER if browser else BROWSERS[0]
        raise UserError(f"{missing} is not found: install it (Debian: chromium chromium-driver)")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        raise UserError("Selenium is not installed: run pip install -e '.[test]'") from None
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield started
    finally:
        started.quit()


class Site:
    """A folder on a local server.

    Attributes:
        address: of the folder, with a final slash.
    """

    def __init__(self, folder: Path, is_isolated: bool = False) -> None:
        """Start the server; an isolated page may use several threads."""
        headers = ISOLATION if is_isolated else {}

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def end_headers(self) -> None:
                for name, value in headers.items():
                    self.send_header(name, value)
                super().end_headers()

        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(Handler, directory=str(folder))
        )
        self.address = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()


RUN = """
const done = arguments[arguments.length - 1];
(async (...args) => {{ {script} }})(...arguments)
    .then((result) => done({{ result }}), (error) => done({{ error: error.message }}));
"""


def run(browser: Any, script: str, *arguments: object) -> Any:
    """Run the body of an asynchronous function in the page and return its result.

    Args:
        browser: from `open_browser`.
        script: uses the arguments as `args`.
        arguments: values that JSON can hold.

    Raises:
        UserError: the function failed.
    """
    answer = browser.execute_async_script(RUN.format(script=script), *arguments)
    if "error" in answer:
        raise UserError(f"the browser says: {answer['error']}")
    return answer["result"]
