"""The learning rate of a step."""

from __future__ import annotations

import math

from storyllamas.params import Recipe


def learning_rate(step: int, recipe: Recipe) -> float:
    """The rate of step 0 … recipe.steps - 1.

    It rises linearly over the first `warmup` share of the steps, stays for the share `stable`, then
    falls to `final_lr_ratio` of its peak, along half a cosine (Loshchilov & Hutter 2017,
    arXiv:1608.03983) or a line.
    """
    warmup = math.ceil(recipe.warmup * recipe.steps)
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    peak = warmup + math.floor(recipe.stable * recipe.steps)
    passed = max(0, step - peak) / max(1, recipe.steps - 1 - peak)
    left = (1 + math.cos(math.pi * passed)) / 2 if recipe.schedule == "cosine" else 1 - passed
    return recipe.learning_rate * (recipe.final_lr_ratio + (1 - recipe.final_lr_ratio) * left)
