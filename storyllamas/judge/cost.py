"""What the questions will cost, estimated before any is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BYTES_PER_TOKEN = 4
"""Of English text, in the vocabularies of most judges; stories for children have some more."""

MESSAGE_TOKENS = 10
"""Tokens that a chat template adds to a message."""


@dataclass(frozen=True)
class Prices:
    """Prices of a million tokens, in any currency."""

    tokens_in: float = 0
    tokens_out: float = 0

    def cost(self, tokens_in: int, tokens_out: int) -> float:
        """Return the price of some tokens."""
        return (tokens_in * self.tokens_in + tokens_out * self.tokens_out) / 1e6

    def __bool__(self) -> bool:
        return bool(self.tokens_in or self.tokens_out)


@dataclass(frozen=True)
class Estimate:
    """An estimate, without retries.

    Attributes:
        requests: the number of requests.
        tokens_in: tokens of the questions, estimated from their length.
        max_tokens_out: tokens of the answers at most.
    """

    requests: int
    tokens_in: int
    max_tokens_out: int

    @classmethod
    def of(cls, questions: Sequence[str], max_tokens: int) -> Estimate:
        """Estimate the tokens of questions whose answers have at most `max_tokens` tokens."""
        tokens = sum(
            -(-len(each.encode()) // BYTES_PER_TOKEN) + MESSAGE_TOKENS for each in questions
        )
        return cls(len(questions), tokens, len(questions) * max_tokens)

    def describe(self, prices: Prices) -> str:
        """Describe it in a sentence."""
        text = (
            f"{self.requests:,} requests, about {self.tokens_in:,} tokens in, at most "
            f"{self.max_tokens_out:,} tokens out"
        )
        if prices:
            most = prices.cost(self.tokens_in, self.max_tokens_out)
            text += (
                f", at most {most:,.2f} at {prices.tokens_in:g} and {prices.tokens_out:g} for a "
                "million tokens in and out"
            )
        return text
