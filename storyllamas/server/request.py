"""The body of a request for completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from storyllamas.engine.options import DEFAULTS
from storyllamas.errors import UserError

MAX_STOPS = 16
"""Stop texts of a request."""

MAX_SEQUENCES = 256
"""Sequences of a request: its prompts times n."""

Id = Annotated[int, Field(ge=0, le=2**31 - 1)]


class StreamOptions(BaseModel):
    """How to stream."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class CompletionRequest(BaseModel):
    """The fields of OpenAI's interface that the server knows; it rejects others.

    Attributes:
        prompt: the beginning of the text, as text or as ids, or several such prompts.
        n: the number of texts for each prompt; the first has the given seed, each further one the
            next seed.
        stop: texts that end a completion; they are not part of it.
        echo: whether the text includes the prompt.
        logprobs: the number of most probable tokens to show with each token; None: no log
            probabilities.
        max_tokens: 0: only the prompt, with `echo`.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = ""
    prompt: str | list[str] | list[Id] | list[list[Id]] | None = None
    n: int | None = Field(None, ge=1, le=MAX_SEQUENCES)
    seed: int | None = Field(None, ge=0, le=2**64 - 1)
    temperature: float | None = Field(None, ge=0, le=1000)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31 - 1)
    min_p: float | None = Field(None, ge=0, lt=1)
    repetition_penalty: float | None = Field(None, gt=0, le=1000)
    repetition_window: int | None = Field(None, ge=0, le=2**31 - 1)
    max_tokens: int | None = Field(None, ge=0, le=2**31 - 1)
    ignore_eos: bool | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    user: str | None = None
    # Clients send these with the values that change nothing.
    best_of: Literal[1] | None = None
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    presence_penalty: float | None = Field(None, ge=0, le=0)
    logit_bias: dict[str, float] | None = Field(None, max_length=0)
    suffix: Literal[""] | None = None

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, value: str | list[str] | None) -> str | list[str] | None:
        texts = [value] if isinstance(value, str) else value or []
        if len(texts) > MAX_STOPS or not all(texts):
            raise ValueError(f"give up to {MAX_STOPS} texts that are not empty")
        return value

    @property
    def count(self) -> int:
        """The number of texts for each prompt."""
        return self.n or 1

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """The prompts, at least one: all of them texts, or all of them ids."""
        given = self.prompt
        if not isinstance(given, list):
            return [given or ""]
        if given and isinstance(given[0], int):
            return [given]
        return given or [""]  # type: ignore[return-value]

    @property
    def stops(self) -> list[str]:
        """The texts at which a completion ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def options(self, number: int) -> dict[str, float | None]:
        """Return the options of a text of a prompt, as for `Engine.generate`.

        Args:
            number: of the text, from 0.
        """
        names = ("temperature", "top_p", "top_k", "min_p", "ignore_eos", "max_tokens")
        options = {name: getattr(self, name) for name in names}
        options |= {
            "repetition_penalty": self.repetition_penalty,
            "repetition_window": self.repetition_window,
            # The engine shows the sampled token's only together with at least one other.
            "logprobs": None if self.logprobs is None else max(self.logprobs, 1),
        }
        if self.seed is not None or number:
            seed = DEFAULTS["seed"] if self.seed is None else self.seed
            options["seed"] = (seed + number) % 2**64
        return options


def parse(body: bytes) -> CompletionRequest:
    """Parse the JSON of a request.

    Raises:
        UserError: the body is not JSON, or a field is unknown or out of its range.
    """
    try:
        asked = CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise UserError(_sentence(error.errors()[0])) from None
    count = len(asked.prompts) * asked.count
    if count > MAX_SEQUENCES:
        raise UserError(
            f"{len(asked.prompts)} prompts with n {asked.count} are {count} texts, and a request "
            f"may have {MAX_SEQUENCES}: send several requests"
        )
    if asked.max_tokens == 0 and not asked.echo:
        raise UserError("max_tokens is 0 and must be 1 or more without echo")
    return asked


def _sentence(problem: Any) -> str:
    place = problem["loc"]
    if not place:
        return f"the body is not a JSON object of the request: {problem['msg']}"
    name = place[0]
    if problem["type"] == "extra_forbidden":
        return f"{'.'.join(map(str, place))} is not supported: leave it out"
    if name == "prompt":
        return (
            "prompt must be a text, a list of texts, a list of ids, or a list of such lists; an id "
            "is a whole number that is not negative"
        )
    return f"{name} is {problem['input']!r}: {problem['msg']}"
