"""What changes during a run: the learning rate, and the length of sequences."""

from __future__ import annotations

import math

from storyllamas.params import Recipe


def sequence_tokens(step: int, recipe: Recipe, context: int) -> int:
    """Return the tokens of a sequence in a step, 0 … recipe.steps - 1, or after the last.

    They are half of the context in the first `half_steps`, then the context. Llama 3 was trained in
    this order, too (Llama Team 2024, arXiv:2407.21783).
    """
    return context // 2 if step < recipe.half_steps else context


def sequence_lengths(recipe: Recipe, context: int) -> tuple[int, ...]:
    """Return the lengths of sequences, in tokens, that a run has one after the other.

    The whole context is one of them: the last validation is after the last step.
    """
    return tuple(sorted({sequence_tokens(0, recipe, context), context}))


def learning_rate(step: int, recipe: Recipe) -> float:
    """Return the learning rate of a step, 0 … recipe.steps - 1.

    The rate rises linearly over the share `warmup` of the steps, stays at its peak for the share
    `stable`, then falls to `final_lr_ratio` of the peak, along half a cosine (Loshchilov & Hutter
    2017, arXiv:1608.03983) or a line.
    """
    warmup = math.ceil(recipe.warmup * recipe.steps)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    decay_start = warmup + math.floor(recipe.stable * recipe.steps)
    progress = max(0, step - decay_start) / max(1, recipe.steps - 1 - decay_start)
    factor = (1 + math.cos(math.pi * progress)) / 2 if recipe.schedule == "cosine" else 1 - progress
    return recipe.learning_rate * (recipe.final_lr_ratio + (1 - recipe.final_lr_ratio) * factor)
