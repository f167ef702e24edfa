"""The Llama 3 architecture.

B: sequences in a batch, T: tokens in a sequence, D: dim, H: heads, K: kv_heads, E: head_dim,
F: hidden, V: vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from storyllamas.config import ModelConfig

ATTENTION_BLOCK = 128
"""Number of queries whose scores are stored at a time, on CPUs."""


class SoftTargets(NamedTuple):
    """Targets that are probabilities of several tokens, in place of one token each.

    Attributes:
        ids: the tokens [B, T, N], int64; the same one may come twice.
        shares: their probabilities [B, T, N], float32, whose sum over N is 1, or 0 if the target is
            ignored.
    """

    ids: Tensor
    shares: Tensor

    def rows(self, rows: slice) -> SoftTargets:
        """Return those of some sequences."""
        return SoftTargets(self.ids[rows], self.shares[rows])

    def to(self, device: str) -> SoftTargets:
        """Return them on a device."""
        return SoftTargets(self.ids.to(device), self.shares.to(device))


class RMSNorm(nn.Module):
    """Divide by the root mean square, then scale (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Map […, D] to […, D]."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def rotary_frequencies(config: ModelConfig) -> Tensor:
    """Return the angle by which each pair turns per position, in radians: [E / 2] in float64.

    Pair i turns by rope_theta^(-2i / E) (Su et al. 2021, arXiv:2104.09864). Llama 3.1 divides the
    frequency of a pair that turns less than `rope_low_freq_factor` times over the original context
    by `rope_factor`. It keeps the frequency of a pair that turns more than `rope_high_freq_factor`
    times, and interpolates in between.
    """
    pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float64)
    frequencies = config.rope_theta ** -(pairs / config.head_dim)
    if config.rope_scaling == "none":
        return frequencies
    scaled = frequencies / config.rope_factor
    if config.rope_scaling == "linear":
        return scaled
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    turns = config.rope_original_context * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * scaled + kept * frequencies


def rotary_table(config: ModelConfig) -> Tensor:
    """Return the cosine and sine of every position and pair: [context, E / 2, 2]."""
    frequencies = rotary_frequencies(config)
    angles = torch.outer(torch.arange(config.context, dtype=torch.float64), frequencies)
    return torch.stack([angles.cos(), angles.sin()], dim=-1).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn neighbouring pairs of each head in x [B, T, H, E] by table [T, E / 2, 2]."""
    even, odd = x.float().view(*x.shape[:-1], -1, 2).unbind(-1)  # [B, T, H, E / 2] each
    cos, sin = table[:, None, :, 0], table[:, None, :, 1]  # [T, 1, E / 2]
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute causal attention of q [B, H, T, E] to k and v [B, K, T, E]: [B, H, T, E].

    On CPUs the scores are stored, which is twice as fast as PyTorch's fused kernel for sequences
    as short as stories. Each block of queries skips the keys that none of them can see.
    """
    groups = q.shape[1] // k.shape[1]
    if not q.is_cpu:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=groups > 1)
    if groups > 1:
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    mixed = []
    for first in range(0, q.shape[2], ATTENTION_BLOCK):
        queries = q[:, :, first : first + ATTENTION_BLOCK]
        seen = first + queries.shape[2]
        products = (queries @ k[:, :, :seen].transpose(-1, -2)).float()  # [B, H, block, seen]
        future = torch.full(products.shape[-2:], -math.inf, device=q.device).triu(1 + first)
        weights = (products * q.shape[-1] ** -0.5 + future).softmax(-1)
        mixed.append(torch.matmul(weights.to(v.dtype), v[:, :, :seen]))
    return torch.cat(mixed, dim=2)


class Attention(nn.Module):
    """Causal grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.qkv = nn.Linear(config.dim, config.qkv_rows, bias=False)
        self.output = nn.Linear(config.heads * config.head_dim, config.dim, bias=False)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D]."""
        heads = self.qkv(x).view(*x.shape[:2], -1, self.head_dim)  # [B, T, H + 2K, E]
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        q, k = rotate(q, table), rotate(k, table)
        mixed = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # [B, H, T, E]
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.dim, 2 * config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)  # [B, T, F] each
        out: Tensor = self.down(F.silu(gate) * up)
        return out


class Block(nn.Module):
    """One layer: attention, then feed-forward, each on the normalized residual stream."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D]."""
        x = x + self.dropout(self.attention(self.attention_norm(x), table))
        x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return x


class Llama(nn.Module):
    """A Llama 3 language model (Llama Team 2024, arXiv:2407.21783).

    Its parameters have the names and shapes of `config.tensor_shapes`. Matrices are initialized
    with normal numbers of standard deviation 0.02. For matrices that write to the residual stream
    the deviation is divided by the square root of their number, or they are zero if
    `zero_init_residual` is set, so that every layer starts as the identity.
    """

    rotary: Tensor

    def __init__(
        self, config: ModelConfig, dropout: float = 0.0, zero_init_residual: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self._output_deviation = 0.0 if zero_init_residual else 0.02 / math.sqrt(2 * config.layers)
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Block(config, dropout) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tied:
            self.classifier = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.register_buffer("rotary", rotary_table(config), persistent=False)
        self.apply(self._initialize)

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding | nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, Attention):
            nn.init.normal_(module.output.weight, std=self._output_deviation)
        if isinstance(module, FeedForward):
            nn.init.normal_(module.down.weight, std=self._output_deviation)

    def stacked(self) -> Iterator[tuple[Tensor, list[int]]]:
        """Yield each weight that stacks several matrices, with the rows of every matrix."""
        config = self.config
        query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
        for module in self.modules():
            if isinstance(module, Attention):
                yield module.qkv.weight, [query, key, key]
            if isinstance(module, FeedForward):
                yield module.gate_up.weight, [config.hidden, config.hidden]

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits [B, T, V] after each of tokens [B, T]; T is at most the context."""
        table = self.rotary[: tokens.shape[1]]
        x = self.dropout(self.embedding(tokens))  # [B, T, D]
        for layer in self.layers:
            x = layer(x, table)
        classifier = self.embedding if self.config.tied else self.classifier
        return F.linear(self.norm(x), classifier.weight)

    def loss(self, tokens: Tensor, targets: Tensor | SoftTargets) -> Tensor:
        """Return the mean cross-entropy in nats per token of targets [B, T] given tokens [B, T]."""
        logits = self(tokens)
        if isinstance(targets, Tensor):
            return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        logs = logits.float().log_softmax(-1).gather(-1, targets.ids)
        loss: Tensor = -(logs * targets.shares).sum() / targets.shares.sum()
        return loss
