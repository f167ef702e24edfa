"""Grow a trained model to a larger shape that computes the same, to train it further.

The idea is that of Net2Net (Chen et al. 2016, arXiv:1511.05641), which copies neurons. Here the new
weights that read from the residual stream are random, and those that write to it are zero. So new
heads, hidden channels, residual channels and layers add nothing at first and learn from the first
steps on. A head that gets wider has random keys and zero queries in its new channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from storyllamas.config import ModelConfig
from storyllamas.model import Llama
from storyllamas.rounding import shortest_float32

GROWS = ("dim", "layers", "heads", "kv_heads", "head_dim", "hidden")
"""Fields of `ModelConfig` that can grow."""

KEPT = ("rope_theta", "norm_eps")
"""Fields of `ModelConfig` that stay as they are."""


def problem(start: ModelConfig, config: ModelConfig) -> str:
    """Return a clause that says why the shape `start` cannot grow to `config`, or ''."""
    old, new = asdict(start), asdict(config)
    for name in KEPT:
        values = shortest_float32(old[name]), shortest_float32(new[name])
        if values[0] != values[1]:
            return f"its {name} is {values[0]:g}, not {values[1]:g}"
    for name in GROWS:
        if new[name] < old[name]:
            return f"its {name} is {old[name]}, above {new[name]}"
    if config.head_dim % start.head_dim:
        return f"its head_dim, {start.head_dim}, does not divide {config.head_dim}"
    group, new_group = start.heads // start.kv_heads, config.heads // config.kv_heads
    if new_group < group:
        return f"{group} of its query heads share each key and value head, not {new_group}"
    return ""


def grow(
    tensors: Mapping[str, Tensor], start: ModelConfig, config: ModelConfig, seed: int
) -> dict[str, Tensor]:
    """Return the tensors of a larger model with almost the same logits.

    RMSNorm takes its mean over more channels, of which the new ones are 0, so its weights shrink by
    the root of start.dim / config.dim. `norm_eps` weighs config.dim / start.dim times as much,
    which changes the loss of a trained model by some 1e-4.

    Args:
        tensors: every tensor of `tensor_shapes(start)`, float32.
        start: the shape to grow, for which `problem` returns ''.
        config: the shape to grow to, of the same vocabulary.
        seed: seed of the random weights.

    Returns:
        Every tensor of `tensor_shapes(config)`, float32.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        grown = dict(Llama(config, zero_init_residual=True).state_dict())
    narrower = (start.dim / config.dim) ** 0.5
    grown["embedding.weight"].zero_()
    for old_name, old in tensors.items():
        name = _new_name(old_name, start.layers, config.layers)
        new = grown[name]
        if name.endswith("norm.weight"):
            new.fill_(narrower * old.mean())
            new[: start.dim] = narrower * old
        elif name.endswith("qkv.weight"):
            _grow_qkv(new, old, start, config)
        elif name.endswith("output.weight"):
            new[: start.dim, _query_heads(start, config, range(start.head_dim))] = old
        elif name.endswith("gate_up.weight"):
            for new_part, old_part in zip(new.chunk(2), old.chunk(2), strict=True):
                new_part[: start.hidden, : start.dim] = old_part
        else:
            new[: old.shape[0], : old.shape[1]] = old
    return grown


def _new_name(name: str, old_layers: int, layers: int) -> str:
    """Return the name of a tensor in the larger model, whose new layers lie evenly between."""
    if not name.startswith("layers."):
        return name
    _, layer, rest = name.split(".", 2)
    place = ((int(layer) + 1) * layers + old_layers // 2) // old_layers - 1
    return f"layers.{place}.{rest}"


def _grow_qkv(new: Tensor, old: Tensor, start: ModelConfig, config: ModelConfig) -> None:
    """Place the weights of a layer's queries, keys and values, [heads · head_dim, dim] each."""
    wider = config.head_dim // start.head_dim
    # A pair goes where its rotary frequency is: i of head_dim / 2 becomes wider * i.
    pairs = [channel // 2 * 2 * wider + channel % 2 for channel in range(start.head_dim)]
    rows = [start.heads * start.head_dim] + 2 * [start.kv_heads * start.head_dim]
    new_rows = [config.heads * config.head_dim] + 2 * [config.kv_heads * config.head_dim]
    q, k, v = old.split_with_sizes(rows)
    new_q, new_k, new_v = new.split_with_sizes(new_rows)
    new_q[_query_heads(start, config, range(config.head_dim)), : start.dim] = 0
    new_q[_query_heads(start, config, pairs), : start.dim] = q * wider**0.5
    new_k[_kv_heads(start, config, pairs), : start.dim] = k
    new_v[_kv_heads(start, config, range(start.head_dim)), : start.dim] = v


def _query_heads(start: ModelConfig, config: ModelConfig, channels: Sequence[int]) -> list[int]:
    """Return the rows of some channels of the start's query heads in the larger model."""
    group, new_group = start.heads // start.kv_heads, config.heads // config.kv_heads
    heads = [head // group * new_group + head % group for head in range(start.heads)]
    return [head * config.head_dim + channel for head in heads for channel in channels]


def _kv_heads(start: ModelConfig, config: ModelConfig, channels: Sequence[int]) -> list[int]:
    """Return the rows of some channels of the start's key heads, or value heads."""
    heads = range(start.kv_heads)
    return [head * config.head_dim + channel for head in heads for channel in channels]
