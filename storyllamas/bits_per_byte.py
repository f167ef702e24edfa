"""Bits per byte: a loss that does not depend on the tokenizer."""

from __future__ import annotations

import math


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Return nats / (ln 2 * text_bytes).

    Args:
        nats: sum of the negative natural log-probabilities of the text's tokens. BOS and EOS are
            context only: their own log-probabilities are not part of the sum.
        text_bytes: length of the text in UTF-8, without BOS, EOS and separators.
    """
    return nats / (math.log(2) * text_bytes)


def framed_bits_per_byte(loss: float, tokens: int, text_bytes: int) -> float:
    """Return loss * tokens / (ln 2 * text_bytes), with BOS and EOS among the tokens.

    Training validates on windows of a token file, in which each story is framed by BOS and EOS, so
    its loss is a mean over these tokens too. The value is a little higher than `bits_per_byte` of
    the same stories.

    Args:
        loss: mean loss in nats per token.
        tokens: number of tokens in the stories, BOS and EOS included.
        text_bytes: length of the stories' text in UTF-8.
    """
    return bits_per_byte(loss * tokens, text_bytes)
