"""The shape of a model: what model.py builds, weights.py stores and the C engine runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """Every number that fixes a Llama model's architecture.

    Attributes:
        dim: width of the residual stream.
        layers: transformer blocks.
        heads: query heads.
        kv_heads: key and value heads; divides `heads` (grouped-query attention).
        head_dim: width of one head; even, since rotary positions turn pairs.
        hidden: width of the SwiGLU feed-forward layer.
        context: most positions the model attends to.
        vocab_size: rows of the embedding.
        rope_theta: base of the rotary frequencies.
        norm_eps: added to the mean square inside RMSNorm.
        tied: the classifier is the embedding.
    """

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
    tied: bool = True

    @property
    def qkv_rows(self) -> int:
        """Rows of the stacked query, key and value matrix."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def parameters(self) -> int:
        """Trainable numbers, a tied classifier counted once."""
        per_layer = (
            2 * self.dim
            + self.dim * self.qkv_rows
            + self.heads * self.head_dim * self.dim
            + 3 * self.dim * self.hidden
        )
        embeddings = (1 if self.tied else 2) * self.vocab_size * self.dim
        return embeddings + self.layers * per_layer + self.dim
