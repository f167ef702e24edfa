"""Requests of the server: their defaults and the errors in them."""

from __future__ import annotations

import pytest

from storyllamas.errors import UserError
from storyllamas.server import request


def test_fields_are_those_of_the_body() -> None:
    parsed = request.parse(b'{"prompt": "a", "n": 2, "temperature": 0, "stop": ["x"]}')
    assert (parsed.prompt, parsed.n, parsed.temperature, parsed.stop) == ("a", 2, 0, ["x"])
    assert (parsed.seed, parsed.top_p, parsed.max_tokens) == (42, 0.9, 256)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is not a JSON object"),
        (b"[]", "the body is not a JSON object"),
        (b'{"logprobs": 1}', "logprobs is not supported: leave it out"),
        (b'{"n": 0}', "n is 0: "),
        (b'{"max_tokens": "5"}', "max_tokens is '5': "),
        (b'{"temperature": -1}', "temperature is -1"),
    ],
)
def test_error_names_the_field(body: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        request.parse(body)
