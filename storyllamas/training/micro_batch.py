"""The micro-batch of a run: the recipe's, what fits the memory, or what is left of it.

A step adds up the gradients of its micro-batches, so that its result depends on their size only by
rounding, and in a model with dropout by the masks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import torch

from storyllamas.errors import UserError
from storyllamas.model import Llama
from storyllamas.params import AUTO, Recipe
from storyllamas.training.device import Device
from storyllamas.training.distributed import Ranks, largest_divisor, micro_batch
from storyllamas.training.memory import largest_micro_batch

T = TypeVar("T")


class MicroBatch:
    """The number of sequences in a forward pass, which is halved when a GPU has no memory for it.

    Attributes:
        size: sequences, 1 …
    """

    def __init__(
        self, model: Llama, recipe: Recipe, device: Device, ranks: Ranks, resumed: int | None
    ) -> None:
        """Choose the size.

        Args:
            model: on the device.
            recipe: hyperparameters.
            device: where to train.
            ranks: the processes that train together.
            resumed: the size in the checkpoint from which the run resumes; None: it has none.

        Raises:
            UserError: the ranks cannot split a step evenly.
        """
        self._model, self._ranks = model, ranks
        limit = None
        if resumed:
            recipe = dataclasses.replace(recipe, micro_batch=resumed)
        elif recipe.micro_batch == AUTO:
            limit = ranks.min(largest_micro_batch(model, recipe, device, ranks.world_size))
        self.size = micro_batch(recipe, model.config.context, ranks.world_size, limit)

    def halving(self, action: Callable[[], T]) -> T:
        """Return the result of `action`; while a GPU has no memory for it, halve the size.

        Args:
            action: what can begin again, since it changes nothing but gradients.

        Raises:
            UserError: one sequence does not fit, or several ranks train together.
        """
        while True:
            try:
                return action()
            except torch.OutOfMemoryError:
                pass
            # Not in the handler: the traceback of the exception keeps tensors alive.
            self._halve()

    def _halve(self) -> None:
        """Drop the gradients of an unfinished step, and halve the size."""
        before, context = self.size, self._model.config.context
        if before == 1:
            raise UserError(
                f"the memory of the GPU is too small for one sequence of {context} tokens: use a "
                "smaller model, a smaller shape.context or compute.device=cpu"
            )
        if self._ranks.world_size > 1:
            raise UserError(
                f"the memory of a GPU is too small for a micro-batch of {before} sequences: use "
                f"train.micro_batch={before // 2}"
            )
        self._model.zero_grad(set_to_none=True)
        self.size = largest_divisor(before, before // 2)
        print(
            f"the memory of the GPU is too small for a micro-batch of {before} sequences: training "
            f"continues with {self.size}",
            flush=True,
        )
