"""Requests to a chat endpoint that has OpenAI's interface, with retries.

Nothing is sent anywhere but to this endpoint, or to the proxy that the environment names for it
(`HTTPS_PROXY`, `NO_PROXY`, …); this machine's own addresses need no proxy. Redirections are errors.
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from storyllamas.errors import DAMAGED, UserError
from storyllamas.judge.grades import MalformedError

MAX_ANSWER_BYTES = 1 << 22

_BUSY = (408, 409, 425, 429, *range(500, 600))
_LOCAL = ("127.0.0.1", "::1", "localhost")
_HINTS = {
    401: "give the variable with the right key with --key-variable",
    403: "give the variable with the right key with --key-variable",
    404: "check --endpoint and --judge",
}
_OTHER_HINT = "change its fields with --body, or check --endpoint and --judge"
_AGAIN = "Your answer cannot be used: {reason}. Give the JSON object in the form that I asked for."


@dataclass(frozen=True)
class RetrySettings:
    """Settings of retries; all times are in seconds.

    Attributes:
        pauses: pause before each retry of a request.
        first_contact: retries while the server has never been reached, since its address may be
            wrong.
        jitter: share of a pause by which it may be longer, at random, so that requests that were
            rejected together do not come back together.
        timeout: time for a whole answer, and to connect.
        max_wait: upper limit of the wait that a server may ask for.
    """

    pauses: tuple[float, ...] = (1, 2, 4, 8, 16, 32)
    first_contact: int = 2
    jitter: float = 0.25
    timeout: float = 120
    max_wait: float = 600


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        text: of the message.
        tokens_in: tokens of the requests for it, retries of malformed answers included, as the
            server counted them; 0: it does not count.
        tokens_out: tokens of the answers.
    """

    text: str
    tokens_in: int = 0
    tokens_out: int = 0


class TroubleError(Exception):
    """A request that failed in a way that another attempt may overcome.

    Attributes:
        wait: seconds that the server asks to wait; 0 if it does not ask.
    """

    def __init__(self, reason: str, wait: float = 0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass
class Endpoint:
    """An endpoint; any number of threads may use it.

    Attributes:
        url: the base address, to which `/chat/completions` is added.
        key: is sent as a bearer token; "": none is sent.
        retries: settings of retries.
        note: is called with a phrase before each retry.
    """

    url: str
    key: str = field(default="", repr=False)
    retries: RetrySettings = RetrySettings()
    note: Callable[[str], None] = lambda phrase: None

    def __post_init__(self) -> None:
        """Check the address and make the client.

        Raises:
            UserError: the address or the key cannot be used.
        """
        self.url = normalized(self.url)
        self._reached = False
        if not (self.key.isascii() and self.key.isprintable()):
            raise UserError("the key has characters that no header can hold: check its variable")
        self._client = httpx2.Client(
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            timeout=self.retries.timeout,
            trust_env=httpx2.URL(self.url).host not in _LOCAL,
        )

    def ask(
        self,
        body: Mapping[str, Any],
        check: Callable[[str], object],
        stopped: threading.Event | None = None,
    ) -> Answer:
        """Ask until an answer passes a check.

        After a malformed answer, the next request says what is wrong with it.

        Args:
            body: of the request.
            check: is called with the text of an answer; raises `MalformedError`.
            stopped: ends the retries when it is set.

        Raises:
            MalformedError: the last attempt got an answer that does not pass the check.
            UserError: the server rejects the request, or the last attempt got no answer.
        """
        tokens_in = tokens_out = attempt = 0
        corrected = dict(body)
        while True:
            wait = 0.0
            error: MalformedError | TroubleError
            try:
                answer = self._post(corrected)
                tokens_in, tokens_out = tokens_in + answer.tokens_in, tokens_out + answer.tokens_out
                check(answer.text)
                return Answer(answer.text, tokens_in, tokens_out)
            except MalformedError as malformed:
                error = malformed
                corrected = _with_correction(body, answer.text, str(malformed))
            except TroubleError as trouble:
                error, wait = trouble, trouble.wait
            attempt += 1
            seconds = self._pause(error, attempt, wait)
            if self.wait(stopped or threading.Event(), seconds):
                raise error

    def wait(self, stopped: threading.Event, seconds: float) -> bool:
        """Wait for some seconds; return at once, with True, when `stopped` is set."""
        return stopped.wait(seconds)

    def _pause(self, error: MalformedError | TroubleError, attempt: int, asked: float) -> float:
        """Return the seconds to wait before retry number `attempt`, counted from 1, or give up."""
        pauses = self.retries.pauses
        if not self._reached:
            pauses = pauses[: self.retries.first_contact]
        if attempt > len(pauses):
            if isinstance(error, MalformedError):
                raise error
            remedy = "try again later" if self._reached else "check --endpoint, or start the server"
            raise UserError(
                f"{self.url} gives no answer ({error}, {attempt} times in a row): {remedy}"
            )
        if asked > self.retries.max_wait:
            raise UserError(
                f"{self.url} asks to wait {asked:,.0f} s ({error}): try again after that time"
            )
        seconds = max(asked, pauses[attempt - 1]) * (1 + random.uniform(0, self.retries.jitter))
        self.note(f"{error}; retry {attempt} of {len(pauses)} in {seconds:.0f} s")
        return seconds

    def _post(self, body: Mapping[str, Any]) -> Answer:
        """Send one request.

        Raises:
            TroubleError: there is no answer, and another attempt may get one.
            MalformedError: the answer has no text.
            UserError: the server rejects the request.
        """
        try:
            status, headers, content = self._exchange(body)
        except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.ProtocolError) as error:
            self._reached |= not isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout))
            raise TroubleError(self._phrase(error)) from None
        except httpx2.HTTPError as error:
            raise UserError(f"{self.url} cannot be used: {self._phrase(error)}") from None
        if status in _BUSY:
            raise TroubleError(f"HTTP status {status}", asked_wait(headers))
        if status != 200:
            raise UserError(
                f"{self.url} rejects the request with HTTP status {status} "
                f"({self._safe(_message(content))}): {_HINTS.get(status, _OTHER_HINT)}"
            )
        return _answer(content)

    def _exchange(self, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], bytes]:
        """Return the status, the headers and the body of a response, within the time limit."""
        end = time.monotonic() + self.retries.timeout
        content = bytearray()
        with self._client.stream("POST", f"{self.url}/chat/completions", json=body) as response:
            self._reached = True
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    raise TroubleError(f"the answer has more than {MAX_ANSWER_BYTES:,} bytes")
                if time.monotonic() > end:
                    raise TroubleError(f"no whole answer in {self.retries.timeout:g} s")
        return response.status_code, response.headers, bytes(content)

    def _phrase(self, error: Exception) -> str:
        if isinstance(error, httpx2.TimeoutException):
            return f"no answer in {self.retries.timeout:g} s"
        text = re.sub(r"^\[Errno -?\d+\] ", "", str(error))
        return self._safe(text.splitlines()[0].rstrip(".")) if text else type(error).__name__

    def _safe(self, text: str) -> str:
        """Hide the key, which a server may repeat."""
        return text.replace(self.key, "…") if self.key else text


def normalized(url: str) -> str:
    """Return the base address without `/chat/completions` and slashes at its end.

    Raises:
        UserError: it is not an address of HTTP, or it has more than a host and a path.
    """
    url = url.strip().rstrip("/").removesuffix("/chat/completions").rstrip("/")
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        parsed = httpx2.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError(
            f"the endpoint is {url!r}: give an address such as https://api.openai.com/v1"
        )
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise UserError(
            f"the endpoint at {parsed.host} has a password, a query or a fragment in its address: "
            "leave them out, and give the key in an environment variable with --key-variable"
        )
    return url


def asked_wait(headers: Mapping[str, str]) -> float:
    """Return the seconds that the header Retry-After asks to wait; 0 if there is none."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", value):
        return float(value)
    try:
        return max(0, (parsedate_to_datetime(value) - datetime.now(timezone.utc)).total_seconds())
    except (TypeError, ValueError):
        return 0


def _with_correction(body: Mapping[str, Any], answer: str, reason: str) -> dict[str, Any]:
    said = [{"role": "assistant", "content": answer}] if answer else []
    correction = {"role": "user", "content": _AGAIN.format(reason=reason)}
    return {**body, "messages": [*body["messages"], *said, correction]}


def _answer(content: bytes) -> Answer:
    """Return the answer in the body of a response.

    Raises:
        TroubleError: the body is not a chat completion.
    """
    try:
        value = json.loads(content)
        choice = value["choices"][0]
        text = choice["message"].get("content") or ""
        usage = value.get("usage") or {}
        tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        return Answer(str(text).encode(errors="replace").decode(), *tokens)
    except DAMAGED:
        raise TroubleError("the response is not a chat completion") from None


def _message(content: bytes) -> str:
    """Return the message of an error response."""
    try:
        return str(json.loads(content)["error"]["message"])
    except DAMAGED:
        return content[:200].decode(errors="replace").strip() or "without a message"
