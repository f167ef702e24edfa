"""The shape of a model, for model.py, the weight file and the C engine.

params.yaml has the sizes, such as 2m.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ROPE_SCALINGS = ("none", "linear", "llama3")
"""The kinds of RoPE scaling; the weight file stores the index."""


@dataclass(frozen=True)
class ModelConfig:
    """All numbers that define the architecture of a Llama model.

    Attributes:
        dim: width of the residual stream.
        layers: transformer blocks.
        heads: query heads.
        kv_heads: key and value heads; divides `heads` (grouped-query attention).
        head_dim: width of one head; even, since rotary embeddings turn pairs.
        hidden: width of the SwiGLU feed-forward layer.
        context: largest number of positions that the model attends to.
        vocab_size: rows of the embedding.
        rope_theta: base of the rotary frequencies.
        norm_eps: added to the mean square inside RMSNorm.
        tied: the classifier is the embedding.
        rope_scaling: how rotary frequencies are scaled, so that the context can be longer than in
            training: `none`, `linear` (all are divided by `rope_factor`) or `llama3` (low ones
            are). The next four fields are 0 if they are not used.
        rope_factor: divisor of the frequencies.
        rope_low_freq_factor: `llama3` divides a frequency if its wavelength is above
            `rope_original_context` / `rope_low_freq_factor`.
        rope_high_freq_factor: `llama3` keeps a frequency if its wavelength is below
            `rope_original_context` / `rope_high_freq_factor`, and interpolates in between.
        rope_original_context: context in training, before the scaling.
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
    rope_scaling: str = "none"
    rope_factor: float = 0.0
    rope_low_freq_factor: float = 0.0
    rope_high_freq_factor: float = 0.0
    rope_original_context: int = 0

    @property
    def rope_problem(self) -> str:
        """A sentence about the first impossible field of the RoPE scaling, or ''."""
        low, high = self.rope_low_freq_factor, self.rope_high_freq_factor
        rest = (low, high, self.rope_original_context)
        if self.rope_scaling not in ROPE_SCALINGS:
            return f"rope_scaling is {self.rope_scaling!r}: use one of {', '.join(ROPE_SCALINGS)}"
        if self.rope_scaling == "none":
            is_unused = not any((self.rope_factor, *rest))
            return "" if is_unused else "rope_scaling is 'none' and a field of a scaling is not 0"
        if not 0 < self.rope_factor < math.inf:
            return f"rope_factor is {self.rope_factor} and must be above 0"
        if self.rope_scaling == "linear":
            return "rope_scaling is 'linear' and a field of llama3 is not 0" if any(rest) else ""
        if not (0 < low < high < math.inf and self.rope_original_context > 0):
            return (
                f"rope_low_freq_factor, rope_high_freq_factor and rope_original_context are "
                f"{rest}: they must be above 0 and the first below the second"
            )
        return ""

    @property
    def qkv_rows(self) -> int:
        """The rows of the stacked query, key and value matrix."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def parameters(self) -> int:
        """The number of trainable weights; a tied classifier counts once."""
        per_layer = (
            2 * self.dim
            + self.dim * self.qkv_rows
            + self.heads * self.head_dim * self.dim
            + 3 * self.dim * self.hidden
        )
        embeddings = (1 if self.tied else 2) * self.vocab_size * self.dim
        return embeddings + self.layers * per_layer + self.dim

    @property
    def training_flops(self) -> int:
        """The floating-point operations of training on one token, forward and backward.

        There are six for each weight of a matrix, and twelve for each pair of a query channel and a
        position of the context (Chowdhery et al. 2022, arXiv:2204.02311, appendix B). A causal mask
        needs half of the latter.
        """
        width = self.heads * self.head_dim
        vectors = self.dim * (2 * self.layers + 1)
        matrices = self.parameters - vectors - (0 if self.tied else self.vocab_size * self.dim)
        return 6 * matrices + 12 * self.layers * width * self.context


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor in file order; the names are those of `Llama`."""
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (config.vocab_size, config.dim)}
    for layer in range(config.layers):
        prefix = f"layers.{layer}."
        shapes |= {
            prefix + "attention_norm.weight": (config.dim,),
            prefix + "attention.qkv.weight": (config.qkv_rows, config.dim),
            prefix + "attention.output.weight": (config.dim, config.heads * config.head_dim),
            prefix + "feed_forward_norm.weight": (config.dim,),
            prefix + "feed_forward.gate_up.weight": (2 * config.hidden, config.dim),
            prefix + "feed_forward.down.weight": (config.dim, config.hidden),
        }
    shapes["norm.weight"] = (config.dim,)
    if not config.tied:
        shapes["classifier.weight"] = (config.vocab_size, config.dim)
    return shapes
