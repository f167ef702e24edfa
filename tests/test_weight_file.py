"""A weight file returns the tensors written to it, and any change in it is an error."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_files import STORAGES
from hypothesis import given, settings
from hypothesis import strategies as st

from storyllamas.config import ModelConfig, tensor_shapes
from storyllamas.errors import UserError
from storyllamas.slm import quantize, tiles, weight_file
from storyllamas.slm.checksum import Checksum
from storyllamas.slm.encoding import GROUP_SIZES, Encoding, Storage, WeightType, storage
from storyllamas.slm.header import CHECKSUM_OFFSET, HEADER
from storyllamas.vocabulary import Vocabulary

VOCAB_SIZE = 37
SMALL = {"q8": 8, "q4": 8}


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
        for name, shape in tensor_shapes(config).items()
    }


def write(path: Path, weight_type: str = "f32", **changes: object) -> dict:
    config = make_config(**changes)
    tensors = make_tensors(config, 0)
    vocabulary = make_vocabulary(config.vocab_size)
    weight_file.write(path, config, vocabulary, tensors.__getitem__, storage(weight_type, SMALL))
    return tensors


@settings(max_examples=60)
@given(
    dim=st.integers(1, 70),
    heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    half=st.integers(1, 9),
    hidden=st.integers(1, 70),
    tied=st.booleans(),
    how=STORAGES,
)
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    dim, heads, groups, half, hidden, tied, how,
) -> None:  # fmt: skip
    config = make_config(
        dim=dim, heads=heads * groups, kv_heads=heads, head_dim=2 * half, hidden=hidden, tied=tied
    )
    path = tmp_path_factory.mktemp("weights") / "model.slm"
    tensors, vocabulary = make_tensors(config, dim), make_vocabulary(VOCAB_SIZE)
    weight_file.write(path, config, vocabulary, tensors.__getitem__, how)
    file = weight_file.read(path)
    assert file.config == make_config(
        **{**vars(config), "norm_eps": float(np.float32(config.norm_eps))}
    )
    assert file.storage == how
    assert file.vocabulary.pieces == vocabulary.pieces
    assert (file.vocabulary.scores == vocabulary.scores).all()
    assert (file.vocabulary.types == vocabulary.types).all()
    assert not file.vocabulary.dummy_prefix
    assert list(dict(file.tensors())) == list(tensors)
    for name, tensor in file.tensors():
        encoding = how.layers if name.startswith("layers.") else how.embedding
        if tensor.ndim == 1 or encoding.type == WeightType.F32:
            assert (tensor == tensors[name]).all()
        else:
            check_rounded(tensors[name], tensor, encoding)


def check_rounded(exact: np.ndarray, rounded: np.ndarray, encoding: Encoding) -> None:
    """Check that each group is integers times a bfloat16, and near the weights."""
    for start in range(0, exact.shape[1], encoding.group_size):
        group = exact[:, start : start + encoding.group_size]
        difference = np.abs(rounded[:, start : start + encoding.group_size] - group)
        largest = np.abs(group).max(axis=1, keepdims=True)
        if encoding.type == WeightType.Q8:
            assert (difference <= largest / 127 * (0.5 * (1 + 2**-7) + 1e-5)).all()
        else:
            # No worse than the plain way, the largest at 7, but for the rounding of the scale.
            plain = np.rint(group / (largest / 7)) * (largest / 7) - group
            square, scale_error = (difference**2).sum(axis=1), (group**2).sum(axis=1) * 2**-16
            assert (square <= (plain**2).sum(axis=1) * 1.02 + scale_error).all()


def from_bits(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


@settings(max_examples=200)
@given(st.floats(width=32, min_value=0, allow_infinity=False, max_value=2.0**127))
def test_bfloat16s_are_the_neighbours(value: float) -> None:
    """Against every bfloat16 there is that is finite and not negative."""
    all_of_them = from_bits(np.arange(0x7F80)).astype(np.float64)
    exact = np.array([value], np.float32)
    assert quantize.bfloat16_up(exact)[0] == all_of_them[all_of_them >= value][0]
    nearest = np.abs(all_of_them - value)
    even = np.flatnonzero(nearest == nearest.min())
    chosen = even[even % 2 == 0][0] if len(even) == 2 else even[0]
    assert quantize.bfloat16_nearest(exact)[0] == all_of_them[chosen]
    assert quantize.bfloat16_nearest(-exact)[0] == -all_of_them[chosen]


def test_q8_is_the_nearest_multiple_of_its_groups_scale() -> None:
    weight = np.array([[0.0, 127.0, -63.4, 63.6, 0.0, 0.0, 0.0, -0.5]], np.float32)
    scales, integers = quantize.quantize_q8(weight, 4)
    assert scales.tolist() == [[1.0, 0.00396728515625]]  # the bfloat16 above 0.5 / 127
    assert integers.tolist() == [[[0, 127, -63, 64], [0, 0, 0, -126]]]


def test_q4_reaches_the_best_scale_that_there_is() -> None:
    """Against every bfloat16 that could be the scale, of either sign."""
    random = np.random.default_rng(0)
    weight = random.standard_t(5, (48, 32)).astype(np.float32)
    weight[0] = 0
    weight[1, 1:] = 0
    weight[2:4] = [[0.125], [-0.125]]
    scales, integers = quantize.quantize_q4(weight, 32)
    assert integers.min() == -8
    assert integers.max() == 7
    found = ((scales[:, :, None] * integers)[:, 0] - weight).astype(np.float64)
    magnitudes = from_bits(np.arange(0x3C00, 0x4080)).astype(np.float64)
    every = np.concatenate([magnitudes, -magnitudes])[:, None]
    for row, error in zip(weight.astype(np.float64), (found**2).sum(axis=1), strict=True):
        rounded = np.clip(np.rint(row / every), -8, 7) * every
        assert error <= ((rounded - row) ** 2).sum(axis=1).min() * 1.03 + (row**2).sum() * 2**-16
    assert scales[[0, 2, 3], 0].tolist() == [0, -0.015625, 0.015625]


def correlated_moments(columns: int, seed: int) -> np.ndarray:
    """Inputs in a few directions, as a trained model's are, with one column that is always zero."""
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((400, 5)) @ random.standard_normal((5, columns))
    inputs += 0.3 * random.standard_normal(inputs.shape)
    inputs[:, 3] = 0
    return (inputs.T @ inputs / len(inputs)).astype(np.float32)


@pytest.mark.parametrize(("columns", "group_size"), [(64, 32), (72, 24), (40, 40)])
def test_q4_fitted_to_inputs_makes_the_product_s_error_small(columns: int, group_size: int) -> None:
    weight = np.random.default_rng(3).standard_normal((32, columns)).astype(np.float32)
    moments = correlated_moments(columns, 4)

    def product_error(scales: np.ndarray, integers: np.ndarray) -> float:
        assert integers.min() >= -8
        assert integers.max() <= 7
        assert (quantize.bfloat16_nearest(scales) == scales).all()
        difference = (scales[:, :, None] * integers).reshape(weight.shape) - weight
        return float(np.trace(difference @ moments @ difference.T))

    plain = product_error(*quantize.quantize_q4(weight, group_size))
    fitted = product_error(*quantize.quantize_q4(weight, group_size, moments))
    assert fitted < 0.5 * plain


def test_q4_fitted_to_independent_inputs_is_plain_q4() -> None:
    """No column can compensate for the error of another, and all count equally."""
    weight = np.random.default_rng(5).standard_normal((16, 64)).astype(np.float32)
    plain = quantize.quantize_q4(weight, 32)
    for moments in (3 * np.eye(64, dtype=np.float32), np.zeros((64, 64), np.float32)):
        fitted = quantize.quantize_q4(weight, 32, moments)
        assert (fitted[0] == plain[0]).all()
        assert (fitted[1] == plain[1]).all()


def test_fitted_files_hold_fitted_matrices(tmp_path: Path) -> None:
    """Columns are padded to whole groups, and the moments are padded with them."""
    config = make_config()
    tensors = make_tensors(config, 0)
    name = "layers.1.feed_forward.down.weight"
    moments = correlated_moments(config.hidden, 6)
    how = storage("q4", {"q4": 16})
    vocabulary = make_vocabulary(VOCAB_SIZE)
    errors = []
    for known in ([], [(name, moments)]):
        path = tmp_path / "model.slm"
        weight_file.write(path, config, vocabulary, tensors.__getitem__, how, known)
        difference = weight_file.read(path).tensor(name) - tensors[name]
        errors.append(np.trace(difference @ moments @ difference.T))
    assert errors[1] < 0.7 * errors[0]


def test_q4_does_not_depend_on_the_size_of_weights() -> None:
    weight = np.random.default_rng(1).standard_normal((16, 32)).astype(np.float32)
    scales, integers = quantize.quantize_q4(weight, 16)
    for power in (-100, -30, 30, 100):
        scaled, same = quantize.quantize_q4(np.ldexp(weight, power), 16)
        assert (same == integers).all()
        assert (scaled == np.ldexp(scales, power)).all()


def test_tiles_are_as_documented() -> None:
    weight = np.arange(17 * 5, dtype=np.float32).reshape(17, 5)
    f32 = np.frombuffer(tiles.pack(weight, Encoding(WeightType.F32, 0)), "<f4").reshape(2, 5, 16)
    assert f32[0, 3, 7] == weight[7, 3]
    assert f32[1, 4, 0] == weight[16, 4]
    assert (f32[1, :, 1:] == 0).all()


@pytest.mark.parametrize(("kind", "bits"), [(WeightType.Q8, 8), (WeightType.Q4, 4)])
def test_quantized_tiles_are_as_documented(kind: WeightType, bits: int) -> None:
    """Read weight by weight: 21 rows in two tiles, 37 columns in three groups of 16."""
    weight = np.random.default_rng(2).standard_normal((21, 37)).astype(np.float32)
    data = np.frombuffer(tiles.pack(weight, Encoding(kind, 16)), np.uint8)
    expected = tiles.unpack(data, weight.shape, Encoding(kind, 16))
    size = 128 + 3 * 16 * 16 * bits // 8  # 3 * 16 scales of two bytes are 96, padded to 128
    assert len(data) == 2 * size
    bias = 2 ** (bits - 1)
    for row in range(32):
        tile = data[row // 16 * size :][:size]
        assert (tile[96:128] == 0).all()
        for column in range(48):
            scale = from_bits(tile[(column // 16 * 16 + row % 16) * 2 :][:2].view("<u2"))[0]
            if bits == 8:
                value = tile[128 + (column // 4 * 16 + row % 16) * 4 + column % 4]
            else:
                byte = tile[128 + (column // 8 * 16 + row % 16) * 4 + column % 4]
                value = byte & 15 if column % 8 < 4 else byte >> 4
            if row < 21 and column < 37:
                assert np.float32(scale * np.float32(int(value) - bias)) == expected[row, column]
            else:
                assert value == bias


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (storage("q8", {"q8": 6}), "group size of q8 is 6: use a multiple of 4 up to 16384"),
        (storage("q4", {"q4": 12}), "group size of q4 is 12: use a multiple of 8 up to 16384"),
        (storage("q8", {"q8": 0}), "group size of q8 is 0: use a multiple of 4 up to 16384"),
        (
            Storage(Encoding(WeightType.Q8, 4), Encoding(WeightType.Q4, 16392)),
            "group size of q4 is 16392: use a multiple of 8 up to 16384",
        ),
        (
            Storage(Encoding(WeightType.F32, 0), Encoding(WeightType.Q4, 32)),
            "the layers are f32 and the embedding is q4: store both in f32 or neither",
        ),
        (storage("f32", {"f32": 4}), "group size of f32 is 4: use 0"),
    ],
)
def test_impossible_group_sizes_are_rejected(tmp_path: Path, how: Storage, sentence: str) -> None:
    config = make_config()
    tensors = make_tensors(config, 0)
    with pytest.raises(UserError, match=sentence):
        weight_file.write(tmp_path / "m.slm", config, make_vocabulary(37), tensors.__getitem__, how)


def test_checksum_is_the_documented_sum() -> None:
    data = np.random.default_rng(0).integers(0, 256, 64 * 70000, dtype=np.uint8).tobytes()
    whole, parts = Checksum(), Checksum()
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


@pytest.mark.parametrize("weight_type", GROUP_SIZES)
def test_any_flipped_bit_is_noticed(tmp_path: Path, weight_type: str) -> None:
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
            weight_file.read(path)


def test_a_cut_or_longer_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "model.slm"
    write(path)
    good = path.read_bytes()
    for size in (0, 1, 255, 256, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(UserError, match=r"model\.slm"):
            weight_file.read(path)
    path.write_bytes(good + bytes(64))
    with pytest.raises(UserError, match="its header says"):
        weight_file.read(path)


def test_another_version_is_rejected_by_number(tmp_path: Path) -> None:
    path = tmp_path / "model.slm"
    write(path)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 8, 7)
    path.write_bytes(data)
    with pytest.raises(UserError, match="version 7 and this program reads versions 2 and 3"):
        weight_file.read(path)


@settings(max_examples=150)
@given(field=st.integers(5, 27), value=st.integers(-(2**31), 2**63 - 1))
def test_a_wrong_header_with_a_right_checksum_is_rejected(
    tmp_path_factory: pytest.TempPathFactory, field: int, value: int
) -> None:
    path = tmp_path_factory.mktemp("lies") / "model.slm"
    write(path)
    data = bytearray(path.read_bytes())
    fields = list(HEADER.unpack_from(data))
    before = fields[field]
    bits = 64 if 22 < field < 27 else 32
    value %= 1 << bits
    if 17 <= field <= 20:
        value -= 1 << 31
    fields[field] = float(value) if isinstance(before, float) else value
    fields[4] = 0
    HEADER.pack_into(data, 0, *fields)
    checksum = Checksum()
    checksum.update(bytes(data))
    struct.pack_into("<Q", data, CHECKSUM_OFFSET, checksum.digest())
    path.write_bytes(data)
    # A theta, an epsilon, a context, a special id or what the tokenizer does may be another one.
    special = 17 <= field <= 20 and -1 <= value < VOCAB_SIZE
    tokenizer = field == 21 and value in (0, 2, 4, 6)
    padded = field == 8 and value == 1  # so few key and value rows end in the same tile
    free = (field == 11 and value <= 1 << 17) or field in (13, 14) or special or tokenizer or padded
    if fields[field] == before or free:
        return
    with pytest.raises(UserError, match=r"is damaged \("):
        weight_file.read(path)


@pytest.mark.parametrize(
    ("template", "extra"),
    [("", ()), ("é{{ x }}", ()), ("", (0, 36)), ("a" * 64, (3, 4, 5)), ("a" * 2**20, ())],
)
def test_a_chat_section_is_read_back(tmp_path: Path, template: str, extra: tuple[int, ...]) -> None:
    config = make_config()
    tensors = make_tensors(config, 0)
    vocabulary = replace(make_vocabulary(VOCAB_SIZE), chat_template=template, extra_eos_ids=extra)
    weight_file.write(tmp_path / "m.slm", config, vocabulary, tensors.__getitem__)
    file = weight_file.read(tmp_path / "m.slm")
    assert (file.vocabulary.chat_template, file.vocabulary.extra_eos_ids) == (template, extra)
    assert all((tensor == tensors[name]).all() for name, tensor in file.tensors())
    if not template and not extra:  # without a section the file is as it always was
        write(tmp_path / "plain.slm")
        assert (tmp_path / "plain.slm").read_bytes() == (tmp_path / "m.slm").read_bytes()


def test_a_chat_template_that_is_too_long_is_rejected(tmp_path: Path) -> None:
    config = make_config()
    tensors = make_tensors(config, 0)
    vocabulary = replace(make_vocabulary(VOCAB_SIZE), chat_template="é" * (2**19 + 1))
    with pytest.raises(UserError, match="chat template has 1048578 bytes and may have 1048576"):
        weight_file.write(tmp_path / "m.slm", config, vocabulary, tensors.__getitem__)


def test_nothing_is_left_of_a_failed_write(tmp_path: Path) -> None:
    path = tmp_path / "model.slm"
    write(path)
    before = zlib.crc32(path.read_bytes())
    config = make_config()
    tensors = make_tensors(config, 0)
    tensors["norm.weight"] = tensors["norm.weight"] * np.float32("nan")
    with pytest.raises(UserError, match=r"norm\.weight has a weight that is not finite"):
        weight_file.write(path, config, make_vocabulary(VOCAB_SIZE), tensors.__getitem__)
    tensors["norm.weight"] = np.zeros(3, np.float32)
    with pytest.raises(UserError, match="shape"):
        weight_file.write(path, config, make_vocabulary(VOCAB_SIZE), tensors.__getitem__)
    with pytest.raises(UserError, match="36 pieces"):
        weight_file.write(path, config, make_vocabulary(36), tensors.__getitem__)
    assert zlib.crc32(path.read_bytes()) == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.slm"]
