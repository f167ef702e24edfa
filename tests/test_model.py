"""The model computes what the Llama papers say, step by step in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from storyllamas.config import ModelConfig, tensor_shapes
from storyllamas.model import Llama

CONFIGS = [
    ModelConfig(24, 2, 4, 2, 6, 20, 16, 50, rope_theta=500.0, norm_eps=1e-3, tied=False),
    ModelConfig(12, 1, 3, 1, 8, 9, 5, 11),
    ModelConfig(16, 3, 2, 2, 8, 32, 8, 30),
]


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def rotate(x: np.ndarray, position: int, theta: float) -> np.ndarray:
    """Multiply the complex numbers that a head's neighbouring pairs are by e^(i angle)."""
    pairs = x[..., 0::2] + 1j * x[..., 1::2]
    turned = pairs * np.exp(1j * position * theta ** (-np.arange(0, x.shape[-1], 2) / x.shape[-1]))
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)


def reference(config: ModelConfig, w: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """Logits [tokens, vocab_size], one position and one head at a time."""
    x = w["embedding.weight"][tokens]
    for layer in range(config.layers):
        p = f"layers.{layer}."
        h = rms_norm(x, w[p + "attention_norm.weight"], config.norm_eps)
        qkv = (h @ w[p + "attention.qkv.weight"].T).reshape(len(tokens), -1, config.head_dim)
        keys = qkv[:, config.heads : config.heads + config.kv_heads].copy()
        values = qkv[:, config.heads + config.kv_heads :]
        mixed = np.zeros((len(tokens), config.heads, config.head_dim))
        for t in range(len(tokens)):
            keys[t] = rotate(keys[t], t, config.rope_theta)
            for head in range(config.heads):
                shared = head // (config.heads // config.kv_heads)
                query = rotate(qkv[t, head], t, config.rope_theta)
                score = keys[: t + 1, shared] @ query / np.sqrt(config.head_dim)
                share = np.exp(score - score.max())
                mixed[t, head] = share / share.sum() @ values[: t + 1, shared]
        x = x + mixed.reshape(len(tokens), -1) @ w[p + "attention.output.weight"].T
        h = rms_norm(x, w[p + "feed_forward_norm.weight"], config.norm_eps)
        gate, up = np.split(h @ w[p + "feed_forward.gate_up.weight"].T, 2, axis=1)
        x = x + gate / (1 + np.exp(-gate)) * up @ w[p + "feed_forward.down.weight"].T
    classifier = w["embedding.weight" if config.tied else "classifier.weight"]
    return rms_norm(x, w["norm.weight"], config.norm_eps) @ classifier.T


@pytest.mark.parametrize("config", CONFIGS)
def test_logits_are_those_of_the_formulas(config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = Llama(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    w = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    tokens = torch.randint(config.vocab_size, (config.context,))
    expected = reference(config, w, tokens.tolist())
    with torch.no_grad():
        logits = model(tokens[None])[0].numpy()
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters_are_those_of_the_weight_file(config: ModelConfig) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in Llama(config).state_dict().items()}
    assert shapes == tensor_shapes(config)
    assert list(shapes) == list(tensor_shapes(config))
    count = sum(parameter.numel() for parameter in Llama(config).parameters())
    assert count == config.parameters


def test_dropout_is_for_training_only() -> None:
    torch.manual_seed(0)
    model = Llama(CONFIGS[2], dropout=0.5)
    tokens = torch.randint(30, (1, 8))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))
