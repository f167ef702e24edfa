"""Requests of the server: their defaults and the errors in them."""

from __future__ import annotations

import pytest

from storyllamas.errors import UserError
from storyllamas.server import request


def test_fields_are_those_of_the_body() -> None:
    parsed = request.parse(b'{"prompt": "a", "n": 2, "temperature": 0, "stop": ["x"]}')
    assert (parsed.prompts, parsed.count, parsed.stops) == (["a"], 2, ["x"])
    given = {name: value for name, value in parsed.options(0).items() if value is not None}
    assert given == {"temperature": 0}  # the other options have the defaults of the engine
    assert parsed.options(1)["seed"] == 43


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ('"a"', ["a"]),
        ('["a", "b"]', ["a", "b"]),
        ("[1, 2]", [[1, 2]]),
        ("[[1], [2, 3]]", [[1], [2, 3]]),
        ("null", [""]),
        ("[]", [""]),
    ],
)
def test_prompts_are_texts_or_ids(prompt: str, prompts: list[object]) -> None:
    assert request.parse(b'{"prompt": %s}' % prompt.encode()).prompts == prompts


def test_what_other_clients_send_by_default() -> None:
    body = b"""{"best_of": 1, "frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {},
        "suffix": null, "user": "me", "stream": false, "logprobs": null, "stop": null}"""
    assert request.parse(body).stops == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is not a JSON object"),
        (b"[]", "the body is not a JSON object"),
        (b'{"tools": 1}', "tools is not supported: leave it out"),
        (b'{"best_of": 2}', "best_of is 2: "),
        (b'{"logprobs": 21}', "logprobs is 21: "),
        (b'{"max_tokens": 0}', "max_tokens is 0 and must be 1 or more without echo"),
        (b'{"prompt": [-1]}', "prompt must be a text, a list of texts, a list of ids"),
        (b'{"stream_options": {"x": 1}}', "stream_options.x is not supported: leave it out"),
        (b'{"prompt": ["a", "b"], "n": 129}', "2 prompts with n 129 are 258 texts, and a request"),
        (b'{"n": 0}', "n is 0: "),
        (b'{"max_tokens": "5"}', "max_tokens is '5': "),
        (b'{"temperature": -1}', "temperature is -1"),
    ],
)
def test_error_names_the_field(body: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        request.parse(body)
