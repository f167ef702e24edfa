"""The body of a request for completions."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from storyllamas.errors import UserError


class CompletionRequest(BaseModel):
    """The fields of OpenAI's interface that the server knows; it rejects others.

    Attributes:
        prompt: the beginning of the text.
        n: the number of texts; the first has the given seed, each further one the next seed.
        stop: texts that end a completion; they are not part of it.
        echo: whether the text includes the prompt.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = ""
    prompt: str = ""
    n: int = Field(1, ge=1, le=256)
    seed: int = Field(42, ge=0, le=2**64 - 1)
    temperature: float = Field(0.8, ge=0, le=1000)
    top_p: float = Field(0.9, gt=0, le=1)
    max_tokens: int = Field(256, ge=1, le=2**31 - 1)
    stop: str | list[str] | None = None
    stream: bool = False
    echo: bool = False
    user: str = ""


def parse(body: bytes) -> CompletionRequest:
    """Parse the JSON of a request.

    Raises:
        UserError: the body is not JSON, or a field is unknown or out of its range.
    """
    try:
        return CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise UserError(_sentence(error.errors()[0])) from None


def _sentence(problem: Any) -> str:
    name = ".".join(map(str, problem["loc"]))
    if not name:
        return f"the body is not a JSON object of the request: {problem['msg']}"
    if problem["type"] == "extra_forbidden":
        return f"{name} is not supported: leave it out"
    return f"{name} is {problem['input']!r}: {problem['msg']}"
