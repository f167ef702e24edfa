"""The weight file keeps what it is given, and is refused when anything in it changed."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storyllamas import tiles, weights
from storyllamas.config import ModelConfig
from storyllamas.errors import UserError
from storyllamas.tiles import WeightType
from storyllamas.weights import Vocabulary

VOCAB_SIZE = 37


def make_config(**changes: object) -> ModelConfig:
    shape = {
        "dim": 24, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 6, "hidden": 20,
        "context": 16, "vocab_size": VOCAB_SIZE, "rope_theta": 5000.0, "norm_eps": 1e-6,
        "tied": False,
    }  # fmt: skip
    return ModelConfig(**(shape | changes))


def make_vocabulary(count: int) -> Vocabulary:
    pieces = [f"\u2581péce{i}".encode() for i in range(count)]
    types = np.array([2, 3, 3] + [1] * (count - 3), np.uint8)
    return Vocabulary(pieces, -np.arange(count, dtype=np.float32), types, dummy_prefix=False)


def make_tensors(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        name: random.standard_normal(shape, np.float32)
        for name, shape in weights.tensor_shapes(config).items()
    }


def write(path: Path, weight_type: WeightType = WeightType.F32, **changes: object) -> dict:
    config = make_config(**changes)
    tensors = make_tensors(config, 0)
    vocabulary = make_vocabulary(config.vocab_size)
    weights.write(path, config, vocabulary, tensors.__getitem__, weight_type, 8)
    return tensors


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    dim=st.integers(1, 70),
    heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    half=st.integers(1, 9),
    hidden=st.integers(1, 70),
    tied=st.booleans(),
    group_size=st.sampled_from([4, 32, 64]),
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, dim, heads, groups, half, hidden, tied, group_size
) -> None:
    config = make_config(
        dim=dim, heads=heads * groups, kv_heads=heads, head_dim=2 * half, hidden=hidden, tied=tied
    )
    path = tmp_path_factory.mktemp("weights") / "model.slm"
    tensors, vocabulary = make_tensors(config, dim), make_vocabulary(VOCAB_SIZE)
    for weight_type in WeightType:
        weights.write(path, config, vocabulary, tensors.__getitem__, weight_type, group_size)
        file = weights.read(path)
        assert file.config == make_config(
            **{**vars(config), "norm_eps": float(np.float32(config.norm_eps))}
        )
        assert file.vocabulary.pieces == vocabulary.pieces
        assert (file.vocabulary.scores == vocabulary.scores).all()
        assert (file.vocabulary.types == vocabulary.types).all()
        assert not file.vocabulary.dummy_prefix
        assert list(dict(file.tensors())) == list(tensors)
        for name, tensor in file.tensors():
            if weight_type == WeightType.F32 or tensor.ndim == 1:
                assert (tensor == tensors[name]).all()
            else:
                step = np.abs(tensors[name]).max(axis=1, keepdims=True) / 127
                assert (np.abs(tensor - tensors[name]) <= step * 0.5001).all()


def test_q8_is_the_nearest_multiple_of_its_groups_scale() -> None:
    weight = np.array([[0.0, 127.0, -63.4, 63.6, 0.0, 0.0, 0.0, -0.5]], np.float32)
    scales, integers = tiles.quantize(weight, 4)
    assert scales.tolist() == [[1.0, np.float32(0.5) / np.float32(127)]]
    assert integers.tolist() == [[[0, 127, -63, 64], [0, 0, 0, -127]]]


def test_tiles_lie_as_documented() -> None:
    weight = np.arange(17 * 5, dtype=np.float32).reshape(17, 5)
    f32 = np.frombuffer(tiles.pack(weight, WeightType.F32, 0), "<f4").reshape(2, 5, 16)
    assert f32[0, 3, 7] == weight[7, 3]
    assert f32[1, 4, 0] == weight[16, 4]
    assert (f32[1, :, 1:] == 0).all()
    q8 = np.frombuffer(tiles.pack(weight, WeightType.Q8, 8), np.uint8).reshape(2, 1, 64 + 128)
    scales = q8[0, 0, :64].copy().view("<f4")
    assert scales[7] == np.float32(39 / 127)
    row, column = 7, 2
    byte = q8[0, 0, 64 + column // 4 * 64 + row * 4 + column % 4]
    assert byte == 128 + round(weight[row, column] / scales[row])


def test_checksum_is_the_documented_sum() -> None:
    data = np.random.default_rng(0).integers(0, 256, 64 * 70000, dtype=np.uint8).tobytes()
    whole, parts = weights.Checksum(), weights.Checksum()
    whole.update(data)
    parts.update(data[: 64 * 3])
    parts.update(data[64 * 3 :])
    a, b, mask = [0] * 8, [0] * 8, 2**64 - 1
    for index, (word,) in enumerate(struct.iter_unpack("<Q", data)):
        a[index % 8] = (a[index % 8] + word) & mask
        b[index % 8] = (b[index % 8] + a[index % 8]) & mask
    folded = 0xCBF29CE484222325
    for lane in range(8):
        for part in (a[lane], b[lane]):
            folded = ((folded ^ part) * 0x100000001B3) & mask
            folded ^= folded >> 32
    assert whole.digest() == parts.digest() == folded


@pytest.mark.parametrize("weight_type", WeightType)
def test_any_flipped_bit_is_noticed(tmp_path: Path, weight_type: WeightType) -> None:
    path = tmp_path / "model.slm"
    write(path, weight_type)
    good = path.read_bytes()
    random = np.random.default_rng(1)
    places = [*range(256), *random.integers(256, len(good), 300).tolist()]
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << int(random.integers(8))
        path.write_bytes(bad)
        with pytest.raises(UserError):
            weights.read(path)


def test_a_cut_or_longer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.slm"
    write(path)
    good = path.read_bytes()
    for size in (0, 1, 255, 256, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(UserError, match=r"model\.slm"):
            weights.read(path)
    path.write_bytes(good + bytes(64))
    with pytest.raises(UserError, match="its header says"):
        weights.read(path)


def test_another_version_is_refused_by_number(tmp_path: Path) -> None:
    path = tmp_path / "model.slm"
    write(path)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 8, 7)
    path.write_bytes(data)
    with pytest.raises(UserError, match="version 7 and this program reads version 1"):
        weights.read(path)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(field=st.integers(5, 26), value=st.integers(-(2**31), 2**63 - 1))
def test_a_header_that_lies_is_refused_though_its_checksum_holds(
    tmp_path_factory: pytest.TempPathFactory, field: int, value: int
) -> None:
    path = tmp_path_factory.mktemp("lies") / "model.slm"
    write(path)
    data = bytearray(path.read_bytes())
    fields = list(weights.HEADER.unpack_from(data))
    before = fields[field]
    bits = 64 if field > 22 else 32
    value %= 1 << bits
    if 17 <= field <= 20:
        value -= 1 << 31
    fields[field] = float(value) if isinstance(before, float) else value
    fields[4] = 0
    weights.HEADER.pack_into(data, 0, *fields)
    checksum = weights.Checksum()
    checksum.update(bytes(data))
    struct.pack_into("<Q", data, weights.CHECKSUM_OFFSET, checksum.digest())
    path.write_bytes(data)
    # A theta, an epsilon, a context, a special id or what the tokenizer does may be another one.
    special = 17 <= field <= 20 and -1 <= value < VOCAB_SIZE
    tokenizer = field == 21 and value in (0, 2, 4, 6)
    padded = field == 8 and value == 1  # so few key and value rows end in the same tile
    free = (field == 11 and value <= 1 << 17) or field in (13, 14) or special or tokenizer or padded
    if fields[field] == before or free:
        return
    with pytest.raises(UserError, match=r"is damaged \("):
        weights.read(path)


def test_nothing_is_left_of_a_failed_write(tmp_path: Path) -> None:
    path = tmp_path / "model.slm"
    write(path)
    before = zlib.crc32(path.read_bytes())
    config = make_config()
    tensors = make_tensors(config, 0)
    tensors["norm.weight"] = tensors["norm.weight"] * np.float32("nan")
    with pytest.raises(UserError, match=r"norm\.weight has a weight that is not finite"):
        weights.write(path, config, make_vocabulary(VOCAB_SIZE), tensors.__getitem__)
    tensors["norm.weight"] = np.zeros(3, np.float32)
    with pytest.raises(UserError, match="shape"):
        weights.write(path, config, make_vocabulary(VOCAB_SIZE), tensors.__getitem__)
    with pytest.raises(UserError, match="36 pieces"):
        weights.write(path, config, make_vocabulary(36), tensors.__getitem__)
    assert zlib.crc32(path.read_bytes()) == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.slm"]
