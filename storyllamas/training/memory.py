"""The memory of a training step, and the largest micro-batch that fits a device."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch
from torch import Tensor

from storyllamas.model import Llama
from storyllamas.params import Recipe
from storyllamas.training.device import Device
from storyllamas.training.optimizer import hidden_matrices

MAX_TOKENS = {"cpu": 2048, "cuda": 65536}
"""Tokens of a micro-batch on a device, at most.

With more, activations leave the caches of a CPU, which is slower. An H200 is no faster with more.
"""

MAX_SHARE = 0.8
"""Share of the available memory that `micro_batch: auto` uses."""

FLOAT_BYTES = 4


def largest_micro_batch(model: Llama, recipe: Recipe, device: Device, processes: int = 1) -> int:
    """Return how many sequences of a forward pass fit the memory of the device, at least 1.

    This is a bound from what one sequence keeps for its backward pass, uncompiled. A compiled step
    keeps less.

    Args:
        model: on the device, before its first step.
        recipe: hyperparameters.
        device: where to train.
        processes: training processes that share the memory; GPUs are not shared.
    """
    free = available_bytes(device.name) * MAX_SHARE
    if device.name != "cuda":
        free /= processes
    count = max(1, int((free - state_bytes(model, recipe)) / sequence_bytes(model, device)))
    return min(count, most_sequences(device.name, model.config.context) or count)


def most_sequences(device: str, context: int) -> int | None:
    """Return the largest micro-batch that `auto` takes on a device; None: what fits the memory."""
    return max(1, MAX_TOKENS[device] // context) if device in MAX_TOKENS else None


def available_bytes(device: str) -> int:
    """Return the memory that this process can still take on a device: cpu, cuda or mps."""
    if device == "cuda":
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + cached
    if device == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    free = int(psutil.virtual_memory().available)
    # A container may have less than the machine.
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return min(free, max(0, limit - used))


def state_bytes(model: Llama, recipe: Recipe) -> int:
    """Return the bytes of the gradients and of the optimizer's state, without the weights.

    AdamW keeps two values for each weight, Muon one for each weight of a matrix. Frozen weights
    have neither.
    """
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    matrices = sum(p.numel() for p in hidden_matrices(model))
    states = 2 * total - (matrices if recipe.optimizer == "muon" else 0)
    return FLOAT_BYTES * (total + states)


def sequence_bytes(model: Llama, device: Device) -> int:
    """Return the bytes that one sequence adds to a training step: activations and logits.

    Run one forward pass, and count the tensors that it keeps for the backward pass. The backward
    pass adds the gradient of the logits in float32.
    """
    config = model.config
    tokens = torch.zeros(1, config.context, dtype=torch.int64, device=device.name)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, device.autocast():
        model.loss(tokens, tokens)
    return sum(kept.values()) + FLOAT_BYTES * config.context * config.vocab_size
