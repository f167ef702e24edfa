"""The training step as one compiled program (torch.compile)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from storyllamas.model import Llama
from storyllamas.training.device import Device

Loss = Callable[[Tensor, Tensor], Tensor]


def loss_of(model: Llama, device: Device, micro_batch: int) -> Loss:
    """The model's loss, for training: compiled for one micro-batch if the device says so.

    Where compiling fails it says so in one line and gives the loss as it is.
    """
    if not device.compiled:
        return model.loss
    print("compiling the training step", flush=True)
    compiled: Loss = torch.compile(model.loss, dynamic=False)
    tokens = torch.zeros(micro_batch, model.config.context, dtype=torch.int64, device=device.name)
    try:
        with device.autocast():
            loss = compiled(tokens, tokens)
        loss.backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        print(f"compiling failed ({reason}): training goes on without, slower", flush=True)
        return model.loss
    finally:
        model.zero_grad(set_to_none=True)
    return compiled
