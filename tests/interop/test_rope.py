"""Scaled rotary positions: PyTorch's, C's, transformers' and GGUF's are the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import make_config, make_source

from storyllamas.config import ModelConfig
from storyllamas.engine.engine import Engine
from storyllamas.errors import UserError
from storyllamas.interop import gguf, huggingface, rope
from storyllamas.slm import weight_file

LINEAR = {"rope_scaling": "linear", "rope_factor": 4.0}
LLAMA3 = {
    "rope_scaling": "llama3", "rope_factor": 8.0, "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0, "rope_original_context": 64,
}  # fmt: skip
SCALINGS = {"linear": LINEAR, "llama3": LLAMA3, "llama3 other": {
    **LLAMA3, "rope_factor": 32.0, "rope_high_freq_factor": 3.5, "rope_original_context": 100,
}}  # fmt: skip


def config_of(scaling: dict[str, Any]) -> ModelConfig:
    return make_config(head_dim=64, context=300, **scaling)


@pytest.mark.parametrize("name", SCALINGS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = make_source(config_of(SCALINGS[name]))
    huggingface.write(model, tmp_path)
    assert huggingface.read(tmp_path).config == model.config
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, torch_dtype=torch.float32)
    weight_file.write(tmp_path / "model.slm", model.config, model.vocabulary, model.tensor)
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, 300).tolist()
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    ours = Engine(tmp_path / "model.slm").logits(ids)
    largest = np.abs(expected).max()
    assert np.abs(ours - expected).max() < 1e-4 * largest
    plain = replace(model.config, rope_scaling="none", **dict.fromkeys(rope.HUGGINGFACE, 0))
    weight_file.write(tmp_path / "plain.slm", plain, model.vocabulary, model.tensor)
    unscaled = Engine(tmp_path / "plain.slm").logits(ids)
    assert np.abs(unscaled - expected).max() > 1e-2 * largest


@pytest.mark.parametrize("name", SCALINGS)
def test_goes_through_gguf(name: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model = make_source(config_of(SCALINGS[name]))
    gguf.write(model, tmp_path, "f32")
    found = gguf.read(tmp_path / "model.gguf").config
    assert found.rope_scaling == model.config.rope_scaling
    assert found.rope_factor == model.config.rope_factor
    theirs, ours = rope.divisors(found), rope.divisors(model.config)
    if ours is not None and theirs is not None:
        assert np.allclose(theirs, ours, rtol=1e-5, atol=0)


@pytest.mark.parametrize("scaling", [{"type": "dynamic", "factor": 2.0}, {"rope_type": "yarn"}])
def test_rejects_other_kinds_by_name(scaling: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="only 'linear' and 'llama3' can be imported"):
        rope.from_huggingface("config.json", make_config(), scaling)


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 0},
        {"type": "linear", "factor": "2"},
        {"type": "linear"},
        {"rope_type": "llama3", "factor": 8.0},
        {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ],
)  # fmt: skip
def test_rejects_impossible_numbers(scaling: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        rope.from_huggingface("config.json", make_config(), scaling)


def test_rejects_factors_of_another_kind() -> None:
    config = make_config(head_dim=16, dim=64)
    with pytest.raises(UserError, match=r"not that of Llama 3\.1"):
        rope.from_gguf("the file", config, {}, np.linspace(1, 9, 8, dtype=np.float32) ** 2)
