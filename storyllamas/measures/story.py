"""A generated story."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Story:
    """A generated story: what the model was given, what it wrote, and why it stopped.

    Attributes:
        prompt: the beginning, which is not measured; it may be empty.
        completion: the text that the model generated.
        stop: why it stopped: "eos", "bos", "max_tokens" or "context".
    """

    prompt: str
    completion: str
    stop: str

    @property
    def text(self) -> str:
        """The whole story, without whitespace around it."""
        return (self.prompt + self.completion).strip()
