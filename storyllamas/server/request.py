"""The body of a request for completions."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from storyllamas.errors import UserError

MAX_STOPS = 16
"""Stop texts of a request."""


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

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, value: str | list[str] | None) -> str | list[str] | None:
        texts = [value] if isinstance(value, str) else value or []
        if len(texts) > MAX_STOPS or not all(texts):
            raise ValueError(f"give up to {MAX_STOPS} texts that are not empty")
        return value

    @property
    def stops(self) -> list[str]:
        """The texts at which a completion ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def options(self, index: int) -> dict[str, float | None]:
        """Return the options of a choice, as for `Engine.generate`."""
        return {
            "seed": (self.seed + index) % 2**64,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
        }


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
