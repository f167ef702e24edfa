"""Quantization at import: group sizes, and calibration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from random_models import make_config, make_source

from storyllamas.config import ModelConfig
from storyllamas.errors import UserError
from storyllamas.interop.formats import export_model, import_model
from storyllamas.interop.quantization import calibration_windows, suited_storage
from storyllamas.slm import weight_file

STORIES_260K = ModelConfig(64, 5, 8, 4, 8, 172, 512, 512)
SMOLLM2 = ModelConfig(576, 30, 9, 3, 64, 1536, 8192, 49152)


def sizes(config: ModelConfig, name: str, group_size: int = 0) -> tuple[int, int]:
    storage = suited_storage(config, name, group_size)
    return storage.layers.group_size, storage.embedding.group_size


def test_groups_suit_the_widths() -> None:
    assert sizes(STORIES_260K, "f32") == (0, 0)
    assert sizes(STORIES_260K, "q8") == (64, 64)
    assert sizes(STORIES_260K, "q4") == (16, 16)
    assert sizes(SMOLLM2, "q8") == (64, 64)
    assert sizes(SMOLLM2, "q4") == (64, 64)
    assert sizes(replace(SMOLLM2, dim=512), "q8") == (128, 128)
    assert sizes(SMOLLM2, "q8", 32) == (32, 32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    export_model(make_source(make_config(context=128)), "llama2c", tmp_path)
    return tmp_path / "model.bin"


def test_q4_is_fitted_to_the_storybook_or_a_text(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat and then ran away.<|endoftext|>" * 400)
    import_model(model, tmp_path / "a.slm", "q4")
    import_model(model, tmp_path / "b.slm", "q4", calibration=text)
    import_model(model, tmp_path / "c.slm", "q4")
    a, b, c = (weight_file.read(tmp_path / f"{name}.slm") for name in "abc")
    name = "layers.0.feed_forward.down.weight"
    assert np.array_equal(a.tensor(name), c.tensor(name))
    assert not np.array_equal(a.tensor(name), b.tensor(name))


def test_windows_are_framed_stories(tmp_path: Path) -> None:
    config = make_config(context=64)
    text = tmp_path / "text.txt"
    text.write_text("Tom ran.<|endoftext|>" * 1000)
    windows = calibration_windows(make_source(config), text)
    assert windows.shape == (32, 64)
    vocabulary = make_source(config).vocabulary
    assert windows[0, 0] == vocabulary.bos_id
    assert vocabulary.eos_id in windows[0]
    text.write_text("Tom ran.")
    with pytest.raises(UserError, match="fewer than the 64 of one window"):
        calibration_windows(make_source(config), text)


@pytest.mark.parametrize(("name", "most"), [("q8", 310_000), ("q4", 180_000)])
def test_a_small_model_stays_small(shared: Path, tmp_path: Path, name: str, most: int) -> None:
    folder, out = shared / "checkpoints", tmp_path / "out.slm"
    import_model(folder / "stories260K-q8-group8.bin", out, name, tokenizer=folder / "tok512.bin")
    assert out.stat().st_size <= most
