"""The training loss, compiled by torch.compile."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from storyllamas.errors import UserError
from storyllamas.model import Llama
from storyllamas.training.device import Device

Loss = Callable[[Tensor, Tensor], Tensor]
"""A mean loss in nats a token from tokens and targets [micro_batch, context]."""


def training_loss(model: Llama, device: Device, micro_batch: int) -> Loss:
    """Return the model's loss, compiled for one shape of micro-batch if the device says so.

    Raises:
        UserError: it cannot be compiled on this machine.
    """
    if not device.compiled:
        return model.loss
    print("compiling the training step", flush=True)
    compiled: Loss = torch.compile(model.loss, dynamic=False)
    # In the strides of a batch's windows, since each memory layout needs a compilation of its own.
    windows = np.zeros((micro_batch, model.config.context + 1), np.int64)
    tokens, targets = (
        torch.from_numpy(part).to(device.name) for part in (windows[:, :-1], windows[:, 1:])
    )
    model.train()
    try:
        with device.autocast():
            loss = compiled(tokens, targets)
        loss.backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"the training step cannot be compiled ({reason}): set compute.compile to never"
        ) from None
    model.zero_grad(set_to_none=True)
    return compiled
