"""A trained model that grows computes what it did, and all that is new learns."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch

from storyllamas.config import ModelConfig, tensor_shapes
from storyllamas.model import Llama
from storyllamas.training.growth import grow, problem

START = ModelConfig(
    dim=16, layers=3, heads=4, kv_heads=2, head_dim=4, hidden=24, context=32, vocab_size=64
)
LARGER = {
    "dim": {"dim": 40},
    "layers": {"layers": 8},
    "head_dim": {"head_dim": 12},
    "hidden": {"hidden": 56},
    "query heads": {"heads": 8},
    "groups": {"heads": 6, "kv_heads": 3},
    "context": {"context": 48},
    "all": {"dim": 24, "layers": 4, "heads": 9, "kv_heads": 3, "head_dim": 8, "hidden": 32},
}
KINDS: dict[str, dict[str, object]] = {
    "plain": {},
    "untied": {"tied": False},
    "scaled": {"rope_scaling": "linear", "rope_factor": 4.0},
}


def trained(config: ModelConfig) -> Llama:
    """Return a model whose weights are all random, norms too, and large as after training."""
    torch.manual_seed(3)
    model = Llama(config)
    with torch.no_grad():
        for parameter in model.parameters():
            mean = 1.0 if parameter.ndim == 1 else 0.0
            parameter.normal_(mean, 0.3)
    return model


def grown(start: Llama, config: ModelConfig, seed: int = 1) -> Llama:
    model = Llama(config)
    model.load_state_dict(grow(start.state_dict(), start.config, config, seed))
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("larger", LARGER)
def test_a_larger_model_has_the_same_logits(larger: str, kind: str) -> None:
    start = trained(dataclasses.replace(START, **KINDS[kind]))
    config = dataclasses.replace(start.config, **LARGER[larger])
    assert not problem(start.config, config)
    # The mean square inside RMSNorm falls with the share of channels that are not 0.
    exact = dataclasses.replace(config, norm_eps=START.norm_eps * START.dim / config.dim)
    tokens = torch.randint(64, (4, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, found = start(tokens), grown(start, exact)(tokens)
        near = grown(start, config)(tokens)
    assert torch.allclose(found, wanted, atol=1e-4 * wanted.abs().max())
    assert torch.allclose(near, wanted, atol=1e-2 * wanted.abs().max())


@pytest.mark.parametrize("larger", LARGER)
def test_every_new_weight_learns(larger: str) -> None:
    start = trained(START)
    model = grown(start, dataclasses.replace(START, **LARGER[larger]))
    tokens = torch.randint(64, (16, 33), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.0)
    seen = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    for _ in range(4):
        optimizer.zero_grad()
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            seen[name] |= parameter.grad != 0
        optimizer.step()
    # The first key of a sequence is alone, so that a few products may be exactly 0.
    assert all(mask.float().mean() > 0.99 for mask in seen.values())


def test_new_layers_lie_evenly_between() -> None:
    start = trained(START)
    model = grown(start, dataclasses.replace(START, layers=6))
    is_old = [bool(layer.feed_forward.down.weight.any()) for layer in model.layers]
    assert is_old == [False, True] * 3
    for old, layers in ((1, 5), (4, 6), (6, 8), (7, 11), (5, 5)):
        small = trained(dataclasses.replace(START, layers=old))
        larger = dict(grow(small.state_dict(), small.config, shape_of(layers), 1))
        places = [i for i in range(layers) if larger[f"layers.{i}.attention.output.weight"].any()]
        assert len(places) == old
        assert places[-1] == layers - 1
        assert max(b - a for a, b in pairwise([-1, *places])) <= -(-layers // old)


def shape_of(layers: int) -> ModelConfig:
    return dataclasses.replace(START, layers=layers)


def test_the_seed_decides_what_is_new() -> None:
    start = trained(START)
    config = dataclasses.replace(START, **LARGER["all"])
    before = torch.random.get_rng_state()
    one, same, other = (grow(start.state_dict(), START, config, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert {name: tuple(tensor.shape) for name, tensor in one.items()} == tensor_shapes(config)
    assert all(torch.equal(one[name], same[name]) for name in one)
    name = "layers.0.feed_forward.gate_up.weight"
    assert not torch.equal(one[name], other[name])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layers": 2}, "its layers is 3, above 2"),
        ({"dim": 8}, "its dim is 16, above 8"),
        ({"head_dim": 6}, "its head_dim, 4, does not divide 6"),
        ({"heads": 4, "kv_heads": 4}, "2 of its query heads share each key and value head, not 1"),
        ({"rope_theta": 5e5}, "its rope_theta is 10000, not 500000"),
        ({"norm_eps": 1e-6}, "its norm_eps is 1e-05, not 1e-06"),
    ],
)
def test_what_cannot_grow_has_a_reason(changes: dict[str, object], reason: str) -> None:
    assert problem(START, dataclasses.replace(START, **changes)).startswith(reason)
