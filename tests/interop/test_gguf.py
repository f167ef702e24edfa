"""GGUF files that are damaged, or have features that cannot be represented."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import make_config, make_source

from storyllamas.errors import UserError
from storyllamas.interop.formats import export_model, import_model, open_external
from storyllamas.interop.model import InteropModel
from storyllamas.vocabulary import PieceType

gguf = pytest.importorskip("gguf")


def edit(path: Path, fields: dict[str, Any], tensors: dict[str, np.ndarray] | None = None) -> None:
    """Rewrite a GGUF file with other fields and tensors; None and empty arrays remove them."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_suffix(".new"), "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in fields or name == "general.architecture":
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub)
    for name, value in fields.items():
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif value is not None:
            writer.add_uint32(name, value)
    all_tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    for name, tensor in (all_tensors | (tensors or {})).items():
        if tensor.size:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").replace(path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    export_model(make_source(make_config(layers=1, tied=False)), "gguf", tmp_path)
    return tmp_path / "model.gguf"


def test_the_header_is_that_of_a_llama(model: Path) -> None:
    fields = {name: field.contents() for name, field in gguf.GGUFReader(model).fields.items()}
    expected = {
        "general.architecture": "llama",
        "general.file_type": 0,
        "llama.context_length": 32,
        "llama.embedding_length": 32,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 8,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": True,
    }
    assert {name: fields[name] for name in expected} == expected
    assert fields["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    assert "FROM ./model.gguf" in (model.parent / "Modelfile").read_text()
    assert "num_ctx 32" in (model.parent / "Modelfile").read_text()


def test_a_header_may_omit_keys_with_defaults(model: Path) -> None:
    names = ["attention.key_length", "attention.value_length", "vocab_size", "rope.freq_base"]
    before = open_external(model).config
    edit(model, {f"llama.{name}": None for name in names} | {"llama.expert_count": 0})
    assert open_external(model).config == before


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"llama.rope.scaling.type": "yarn"}, r"llama\.rope\.scaling\.type in .* is 'yarn'"),
        ({"llama.attention.sliding_window": 64}, r"llama\.attention\.sliding_window in .* is 64"),
        ({"llama.expert_count": 8}, r"llama\.expert_count in .* is 8"),
        ({"llama.rope.dimension_count": 4}, "rope.dimension_count in .* is 4 and must be .* 8"),
        ({"llama.attention.head_count": 0}, "llama.attention.head_count in .* is 0"),
        ({"llama.attention.head_count_kv": 3}, "head_count_kv in .* is 3 and must divide"),
        ({"llama.feed_forward_length": [96]}, r"feed_forward_length in .* is \[96\]"),
        ({"llama.block_count": 2}, "no tensor blk.1.attn_norm.weight"),
        ({"llama.block_count": None}, "has no llama.block_count"),
        ({"llama.attention.layer_norm_rms_epsilon": 0.0}, "epsilon in .* is 0.0"),
        ({"llama.embedding_length": 64}, "shape"),
        ({"tokenizer.ggml.model": "bert"}, r"tokenizer\.ggml\.model in .* is 'bert'"),
        ({"tokenizer.ggml.model": "gpt2"}, r"tokenizer\.ggml\.pre in .* is 'default'"),
        ({"tokenizer.ggml.scores": None}, r"has no tokenizer\.ggml\.scores"),
        ({"tokenizer.ggml.bos_token_id": 4000}, "bos_id of the tokenizer in .* is 4000"),
        ({"tokenizer.ggml.tokens": ["a"] * 400}, "is of type byte and must be one of <0x00>"),
        ({"llama.context_length": 2**20 + 1}, "must be a whole number from 1 to 1048576"),
        ({"llama.rope.freq_base": 1e-46}, "must be a number above 0 in float32"),
    ],
)
def test_headers_that_are_rejected(model: Path, fields: dict[str, Any], sentence: str) -> None:
    edit(model, fields)
    with pytest.raises(UserError, match=sentence):
        import_model(model, model.with_name("out.slm"))
    assert not model.with_name("out.slm").exists()


@pytest.mark.parametrize(
    ("name", "tensor", "sentence"),
    [
        ("blk.0.attn_q.bias", np.zeros(32, np.float32), r"has a tensor blk\.0\.attn_q\.bias"),
        ("rope_freqs.weight", np.arange(1, 5, dtype=np.float32) ** 2, r"rope_freqs\.weight"),
        ("blk.0.ffn_up.weight", np.zeros((96, 31), np.float32), "shape .96, 31."),
        ("output_norm.weight", np.zeros(0, np.float32), r"no tensor output_norm\.weight"),
        ("output_norm.weight", np.full(32, np.nan, np.float32), "not finite"),
        ("output_norm.weight", np.zeros(32, np.int32), "type I32"),
    ],
)
def test_tensors_that_are_rejected(
    model: Path, name: str, tensor: np.ndarray, sentence: str
) -> None:
    edit(model, {}, {name: tensor})
    with pytest.raises(UserError, match=sentence):
        import_model(model, model.with_name("out.slm"))


def quantized_types() -> list[Any]:
    """Return the types that the gguf package can convert to float32."""
    found = []
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.dequantize(np.zeros((1, size * (256 // block)), np.uint8), kind)
        except (NotImplementedError, ValueError):
            continue
        found.append(kind)
    return found


@pytest.mark.parametrize("kind", quantized_types(), ids=lambda kind: kind.name)
def test_every_type_that_the_package_converts(tmp_path: Path, kind: Any) -> None:
    config = make_config(layers=1, dim=256, head_dim=64, hidden=256)
    export_model(make_source(config), "gguf", tmp_path)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.full((256, 256 // block * size), 3, np.uint8)
    edit_raw(tmp_path / "model.gguf", "blk.0.ffn_down.weight", data, kind)
    part = open_external(tmp_path / "model.gguf").part("layers.0.feed_forward.down.weight")
    assert np.array_equal(part, gguf.dequantize(data, kind).reshape(256, 256), equal_nan=True)


def edit_raw(path: Path, name: str, data: np.ndarray, kind: Any) -> None:
    """Store the raw blocks of a type in place of a tensor."""
    original = gguf.GGUFWriter.add_tensor

    def add(writer: Any, tensor_name: str, tensor: np.ndarray) -> None:
        raw = {"raw_dtype": kind} if tensor_name == name else {}
        original(writer, tensor_name, tensor, **raw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_tensor", add)
        edit(path, {}, {name: data})


def test_another_architecture(model: Path) -> None:
    data = model.read_bytes()
    model.write_bytes(data.replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0qwen2", 1))
    with pytest.raises(UserError, match="architecture 'qwen2'"):
        open_external(model)


def test_every_truncation_and_wrong_count_is_noticed(model: Path) -> None:
    good = model.read_bytes()
    random = np.random.default_rng(0)
    for size in [*range(4, 64), *random.integers(64, len(good), 60).tolist(), len(good) - 1]:
        model.write_bytes(good[:size])
        with pytest.raises(UserError, match=r"model\.gguf"):
            open_external(model)
    for offset in (8, 16):  # counts of tensors and of fields
        model.write_bytes(good[:offset] + b"\xff" * 7 + b"\x7f" + good[offset + 8 :])
        with pytest.raises(UserError, match=r"model\.gguf"):
            open_external(model)
    model.write_bytes(good[:4] + b"\7\0\0\0" + good[8:])
    with pytest.raises(UserError, match="version 7"):
        open_external(model)


def test_a_flipped_bit_of_the_header_ends_in_one_sentence_at_worst(model: Path) -> None:
    good = model.read_bytes()
    random = np.random.default_rng(1)
    rejected = 0
    for place in random.integers(4, 18_000, 80).tolist():
        bad = bytearray(good)
        bad[place] ^= 1 << int(random.integers(8))
        model.write_bytes(bad)
        try:
            open_external(model)
        except UserError:
            rejected += 1
    assert rejected > 10


def test_text_with_the_name_of_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_text("Once upon a time there was a llama.")
    with pytest.raises(UserError, match=r"a\.gguf is not a GGUF file"):
        open_external(tmp_path / "a.gguf")


def test_a_long_context(model: Path) -> None:
    edit(model, {"llama.context_length": 2**20})
    assert open_external(model).config.context == 2**20


@pytest.mark.parametrize(
    ("index", "kind", "sentence"),
    [
        (3, PieceType.NORMAL, "has no piece <0x00> of type byte"),
        (300, PieceType.BYTE, "is of type byte and must be one of"),
        (0, PieceType.NORMAL, "unk_id .* is 0, but this piece, '<unk>', is not of type unknown"),
    ],
)
def test_pieces_of_another_type(model: Path, index: int, kind: int, sentence: str) -> None:
    types = gguf.GGUFReader(model).fields["tokenizer.ggml.token_type"].contents()
    types[index] = int(kind)
    edit(model, {"tokenizer.ggml.token_type": types})
    with pytest.raises(UserError, match=sentence):
        open_external(model)


def test_weights_above_the_range_of_the_type(tmp_path: Path) -> None:
    source = make_source(make_config())

    def large(name: str) -> np.ndarray:
        return source.tensor(name) * np.float32(1e6)

    large_source = InteropModel(source.config, source.vocabulary, large)
    with pytest.raises(UserError, match=r"embedding\.weight has a weight of .* use f32 or bf16"):
        export_model(large_source, "gguf-f16", tmp_path / "out")
    export_model(large_source, "gguf-bf16", tmp_path / "out")


IMPORT = """
import resource, sys
from storyllamas.cli import main
idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    main()
finally:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak - idle, file=sys.stderr)
"""


def test_an_import_holds_a_few_rows_at_a_time(tmp_path: Path) -> None:
    config = make_config(layers=1, dim=4096, vocab_size=8000)
    source = make_source(config)
    export_model(source, "gguf-q8_0", tmp_path)
    path, out = tmp_path / "model.gguf", tmp_path / "model.slm"
    command = [sys.executable, "-c", IMPORT, "import", str(path), "--out", str(out), "--type", "q8"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kilobytes = int(done.stderr.splitlines()[-1])
    # The embedding takes 131 MB in float32 and 35 MB in the file.
    assert 1024 * kilobytes < 1.2 * path.stat().st_size + (16 << 20)
