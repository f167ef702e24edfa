"""A plain (naive) PyTorch training loop: eager, float32, not tuned.

`make bench-train` compares StoryLlamas with it. It imports nothing of the library.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The shape of a Llama, named as in params.yaml."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    context: int
    vocab_size: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


class RMSNorm(nn.Module):
    """Root mean square normalization with a learned scale."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, dim] to [B, T, dim]."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate interleaved pairs of x [B, heads, T, head_dim] by angles [T, head_dim / 2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class Attention(nn.Module):
    """Causal attention: softmax(QK^T / sqrt(d) + mask) V."""

    mask: Tensor
    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.query = nn.Linear(shape.dim, shape.heads * shape.head_dim, bias=False)
        self.key = nn.Linear(shape.dim, shape.kv_heads * shape.head_dim, bias=False)
        self.value = nn.Linear(shape.dim, shape.kv_heads * shape.head_dim, bias=False)
        self.output = nn.Linear(shape.heads * shape.head_dim, shape.dim, bias=False)
        mask = torch.full((shape.context, shape.context), -math.inf).triu(diagonal=1)
        self.register_buffer("mask", mask, persistent=False)
        exponents = torch.arange(0, shape.head_dim, 2).float() / shape.head_dim
        angles = torch.outer(torch.arange(shape.context).float(), shape.rope_theta**-exponents)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, dim] to [B, T, dim]."""
        B, T, _ = x.shape  # noqa: N806
        cos, sin = self.cos[:T], self.sin[:T]
        q = self.query(x).view(B, T, self.shape.heads, -1).transpose(1, 2)
        k = self.key(x).view(B, T, self.shape.kv_heads, -1).transpose(1, 2)
        v = self.value(x).view(B, T, self.shape.kv_heads, -1).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if self.shape.kv_heads != self.shape.heads:
            groups = self.shape.heads // self.shape.kv_heads
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        scores = q @ k.transpose(2, 3) / math.sqrt(self.shape.head_dim) + self.mask[:T, :T]
        mixed = scores.softmax(dim=-1) @ v
        out: Tensor = self.output(mixed.transpose(1, 2).reshape(B, T, -1))
        return out


class FeedForward(nn.Module):
    """The SwiGLU feed-forward layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.dim, shape.hidden, bias=False)
        self.up = nn.Linear(shape.dim, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, dim] to [B, T, dim]."""
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class Block(nn.Module):
    """A transformer block: attention, then feed-forward."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(shape.dim, shape.norm_eps)
        self.attention = Attention(shape)
        self.feed_forward_norm = RMSNorm(shape.dim, shape.norm_eps)
        self.feed_forward = FeedForward(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, T, dim] to [B, T, dim]."""
        x = x + self.attention(self.attention_norm(x))
        x = x + self.feed_forward(self.feed_forward_norm(x))
        return x


class Llama(nn.Module):
    """A Llama with tied embeddings."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab_size, shape.dim)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.dim, shape.norm_eps)
        self.classifier = nn.Linear(shape.dim, shape.vocab_size, bias=False)
        self.classifier.weight = self.embedding.weight
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [B, T, vocab_size] of the token that follows each of tokens [B, T]."""
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.classifier(self.norm(x))
        return logits


def random_batch(tokens: Any, count: int, context: int) -> tuple[Tensor, Tensor]:
    """Draw windows [count, context] at random positions; return inputs and targets."""
    starts = torch.randint(len(tokens) - context, (count,)).tolist()
    rows = [torch.from_numpy(tokens[i : i + context + 1].astype(np.int64)) for i in starts]
    windows = torch.stack(rows)
    return windows[:, :-1], windows[:, 1:]


def train(
    model: nn.Module, tokens: Any, context: int, batch: int, micro_batch: int, device: str
) -> Iterator[float]:
    """Yield the mean loss over `batch` windows of each optimizer step; each `next` takes a step."""
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    while True:
        total = 0.0
        for _ in range(batch // micro_batch):
            inputs, targets = random_batch(tokens, micro_batch, context)
            logits = model(inputs.to(device))
            loss = F.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten())
            loss = loss * micro_batch / batch
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield total
