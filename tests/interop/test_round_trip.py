"""A model that is exported and imported again is bit-identical in float32, in little memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import configs, make_config, make_source

from storyllamas import tokenizer
from storyllamas.config import tensor_shapes
from storyllamas.engine.tokenizer import FastTokenizer
from storyllamas.errors import UserError
from storyllamas.interop.formats import FORMATS, export_model, import_model
from storyllamas.interop.model import InteropModel, open_model, parts
from storyllamas.slm import weight_file
from storyllamas.slm.encoding import F32
from storyllamas.slm.tiles import tensor_bytes

pytest.importorskip("gguf")
pytest.importorskip("google.protobuf")

PLAIN = ("llama2c", "llama2c-q8")


STORIES = [f'Lily gave Tom {i} red balls.\n\n"It\'s here!" {"so " * (i % 5)}' for i in range(60)]


def byte_level_source() -> InteropModel:
    """Return a random model with a byte-level tokenizer."""
    model = make_source(make_config(vocab_size=300))
    trained = tokenizer.from_bytes(tokenizer.train(STORIES, 300, kind="byte_level"))
    return InteropModel(model.config, trained.vocabulary(), model.tensor)


def model_in(folder: Path) -> Path:
    """Return the path to import from an exported folder."""
    files = [folder / name for name in ("model.gguf", "model.bin")]
    return next((file for file in files if file.exists()), folder)


def there_and_back(source: InteropModel, name: str, folder: Path) -> InteropModel:
    export_model(source, name, folder / name)
    import_model(model_in(folder / name), folder / f"{name}.slm")
    return open_model(folder / f"{name}.slm")


@pytest.mark.parametrize("name", ["hf", "gguf", "llama2c"])
@settings(max_examples=10)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_float32_keeps_every_bit(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject, seed: int
) -> None:
    config = data.draw(configs(plain=name in PLAIN, divided=name == "hf"))
    folder, source = tmp_path_factory.mktemp("trip"), make_source(config, seed)
    weight_file.write(folder / "before.slm", config, source.vocabulary, source.tensor)
    there_and_back(open_model(folder / "before.slm"), name, folder)
    assert (folder / f"{name}.slm").read_bytes() == (folder / "before.slm").read_bytes()


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("gguf-f16", 2.0**-11),
        ("gguf-bf16", 2.0**-8),
        ("gguf-q8_0", 0.51 / 127),
        ("gguf-q4_0", 1.01 / 8),
        ("llama2c-q8", 0.51 / 127),
    ],
)
def test_rounding_is_no_more_than_the_type_s(tmp_path: Path, name: str, steps: float) -> None:
    source = make_source(make_config(hidden=100))
    back = there_and_back(source, name, tmp_path)
    for part in parts(source.config):
        before, after = source.part(part), back.part(part)
        largest = np.abs(before).max() if before.ndim > 1 else 0
        assert np.abs(before - after).max() <= steps * largest
        assert before.ndim == 1 or not np.array_equal(before, after)


def test_a_matrix_that_fills_no_blocks_of_32_is_kept_in_f16(tmp_path: Path) -> None:
    source = make_source(make_config(hidden=100))
    back = there_and_back(source, "gguf-q4_0", tmp_path)
    name = "layers.0.feed_forward.down.weight"  # 100 columns
    assert np.array_equal(back.part(name), source.part(name).astype(np.float16))


@pytest.mark.parametrize("name", ["hf", "gguf"])
def test_a_byte_level_tokenizer_keeps_its_ids(tmp_path: Path, name: str) -> None:
    source = byte_level_source()
    before, found = source.vocabulary, there_and_back(source, name, tmp_path).vocabulary
    for field in ("pieces", "types", "merges", "bos_id", "eos_id", "unk_id", "adds_bos"):
        assert np.array_equal(getattr(found, field), getattr(before, field)), field
    ours, theirs = FastTokenizer.of(before), FastTokenizer.of(found)
    for text in (*STORIES, *(f"{story}<|end_of_text|>é🦙\r\n\t 12345" for story in STORIES)):
        assert theirs.encode(text) == ours.encode(text)
        assert theirs.encode(text, special=True) == ours.encode(text, special=True)


@pytest.mark.parametrize("name", ["llama2c", "llama2c-q8"])
def test_llama2c_has_no_byte_level_tokenizer(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"this model: its tokenizer is not SentencePiece"):
        export_model(byte_level_source(), name, tmp_path / name)


@pytest.mark.parametrize("name", FORMATS)
def test_one_tensor_at_a_time(tmp_path: Path, name: str) -> None:
    config = make_config(dim=128, head_dim=32, layers=24, hidden=512, vocab_size=1024)
    source = make_source(config)
    weight_file.write(tmp_path / "before.slm", config, source.vocabulary, source.tensor)
    del source
    export_model(open_model(tmp_path / "before.slm"), name, tmp_path / "warm")  # imports
    tracemalloc.start()
    there_and_back(open_model(tmp_path / "before.slm"), name, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    largest = max(tensor_bytes(shape, F32.layers) for shape in tensor_shapes(config).values())
    checksum = 5_000_000  # what `Checksum` works on at once
    assert peak < 6 * largest + checksum < (tmp_path / "before.slm").stat().st_size / 2


@pytest.mark.parametrize("name", FORMATS)
def test_a_failed_export_leaves_nothing(tmp_path: Path, name: str) -> None:
    source, folder = make_source(make_config()), tmp_path / "out"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep")

    def broken(tensor: str) -> np.ndarray:
        if tensor == "norm.weight":
            raise UserError("no such luck")
        return source.tensor(tensor)

    with pytest.raises(UserError, match="no such luck"):
        export_model(InteropModel(source.config, source.vocabulary, broken), name, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    export_model(source, name, folder)
    assert (folder / "mine.txt").read_text() == "keep"
    assert len(list(tmp_path.iterdir())) == 1
