"""The training step as one compiled program (torch.compile)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from storyllamas.errors import UserError
from storyllamas.model import Llama
from storyllamas.training.device import Device

Loss = Callable[[Tensor, Tensor], Tensor]


def loss_of(model: Llama, device: Device, micro_batch: int) -> Loss:
    """The model's loss, for training: compiled for one micro-batch if the device says so.

    Raises:
        UserError: it cannot be compiled here.
    """
    if not device.compiled:
        return model.loss
    print("compiling the training step", flush=True)
    compiled: Loss = torch.compile(model.loss, dynamic=False)
    # Laid out as the windows of a batch are, since another layout would be another program.
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
