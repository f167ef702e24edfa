"""Checkpoints of llama2.c, compared with bytes built here as its export.py builds them."""

from __future__ import annotations

import importlib
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llama2c_files import checkpoint, save_training_checkpoint
from random_models import configs, make_config, make_source

from storyllamas.config import ModelConfig
from storyllamas.engine.tokenizer import FastTokenizer
from storyllamas.errors import UserError
from storyllamas.interop import llama2c
from storyllamas.interop.formats import export_model, import_model, open_external
from storyllamas.interop.model import InteropModel, parts
from storyllamas.slm import weight_file
from storyllamas.vocabulary import PieceType, TokenizerKind, Vocabulary


def save(folder: Path, source: InteropModel, version: int) -> Path:
    export_model(source, "llama2c", folder)  # for its tokenizer.bin
    (folder / "model.bin").write_bytes(checkpoint(source, version))
    return folder / "model.bin"


@settings(max_examples=20)
@given(config=configs(plain=True), version=st.sampled_from([0, 1]), seed=st.integers(0, 1000))
def test_float32_versions_are_read_exactly(
    tmp_path_factory: pytest.TempPathFactory, config: ModelConfig, version: int, seed: int
) -> None:
    folder, source = tmp_path_factory.mktemp("read"), make_source(config, seed)
    read = open_external(save(folder, source, version))
    assert read.config == config
    for name in parts(config):
        assert np.array_equal(read.part(name), source.part(name)), name


def test_int8_is_read_as_llama2c_reads_it(tmp_path: Path) -> None:
    source = make_source(make_config(dim=32, hidden=48, tied=False))
    read = open_external(save(tmp_path, source, 2))
    for name in parts(source.config):
        part = source.part(name)
        if part.ndim > 1:
            groups = part.reshape(-1, 8)
            scales = np.abs(groups).max(axis=1, keepdims=True) / np.float32(127)
            part = (np.round(groups / scales) * scales).reshape(part.shape)
        assert np.array_equal(read.part(name), part), name


@pytest.mark.parametrize("tied", [True, False])
def test_written_as_documented(tmp_path: Path, tied: bool) -> None:
    source = make_source(make_config(tied=tied, hidden=192))
    export_model(source, "llama2c", tmp_path)
    ours, expected = (tmp_path / "model.bin").read_bytes(), checkpoint(source, 0)
    c = source.config
    tables = 4 * c.context * c.head_dim
    end = len(expected) - (0 if tied else 4 * c.vocab_size * c.dim)
    assert ours[: end - tables] == expected[: end - tables]
    assert ours[end:] == expected[end:]
    cosines = np.frombuffer(ours[end - tables :], "<f4")[: c.context * c.head_dim // 2]
    assert cosines.reshape(c.context, -1)[3, 1] == np.float32(np.cos(3 * 10000 ** (-2 / 8)))
    export_model(source, "llama2c-q8", tmp_path)
    assert (tmp_path / "model.bin").read_bytes() == checkpoint(source, 2, group_size=32)


@pytest.mark.skipif("LLAMA2C" not in os.environ, reason="LLAMA2C names no checkout")
@pytest.mark.parametrize("tied", [True, False])
def test_written_as_its_export_py_writes(
    tmp_path: Path, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(os.environ["LLAMA2C"])
    for name in ("export", "model"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    export, model = importlib.import_module("export"), importlib.import_module("model")
    source = make_source(make_config(tied=tied, hidden=192, dim=64, head_dim=16))
    c = source.config
    llama = model.Transformer(
        model.ModelArgs(
            dim=c.dim, n_layers=c.layers, n_heads=c.heads, n_kv_heads=c.kv_heads,
            vocab_size=c.vocab_size, hidden_dim=c.hidden, max_seq_len=c.context,
        )
    )  # fmt: skip
    names = {
        "attention_norm": "attention_norm", "attention.query": "attention.wq",
        "attention.key": "attention.wk", "attention.value": "attention.wv",
        "attention.output": "attention.wo", "feed_forward_norm": "ffn_norm",
        "feed_forward.gate": "feed_forward.w1", "feed_forward.down": "feed_forward.w2",
        "feed_forward.up": "feed_forward.w3",
    }  # fmt: skip
    state = {"tok_embeddings.weight": "embedding.weight", "norm.weight": "norm.weight"}
    if not tied:
        llama.output.weight = torch.nn.Parameter(torch.tensor(source.part("classifier.weight")))
    for layer in range(c.layers):
        for ours, theirs in names.items():
            state[f"layers.{layer}.{theirs}.weight"] = f"layers.{layer}.{ours}.weight"
    llama.load_state_dict({k: torch.tensor(source.part(v)) for k, v in state.items()}, strict=False)
    export.version2_export(llama, tmp_path / "theirs2.bin")
    export.version1_export(llama, tmp_path / "theirs1.bin")
    export.legacy_export(llama, tmp_path / "theirs0.bin")
    export_model(source, "llama2c-q8", tmp_path)
    assert (tmp_path / "model.bin").read_bytes() == (tmp_path / "theirs2.bin").read_bytes()
    for version in (0, 1):
        read = open_external(tmp_path / f"theirs{version}.bin")
        assert read.config == c
        assert all(np.array_equal(read.part(name), source.part(name)) for name in parts(c))


def test_tokenizer_bin(tmp_path: Path) -> None:
    vocabulary = make_source(make_config()).vocabulary
    export_model(make_source(make_config()), "llama2c", tmp_path)
    data = (tmp_path / "tokenizer.bin").read_bytes()
    longest, score, length = struct.unpack_from("<IfI", data)
    assert (longest, score, length, data[12:17]) == (6, 0.0, 5, b"<unk>")
    assert struct.pack("<fI", 0, 5) + b"\n<s>\n" in data
    assert struct.pack("<fI", 0, 6) + b"\n</s>\n" in data
    assert data.endswith(vocabulary.pieces[-1].replace("\u2581".encode(), b" "))
    read = open_external(tmp_path / "model.bin").vocabulary
    assert read.pieces == vocabulary.pieces
    assert (read.types == vocabulary.types).all()
    assert (read.scores == vocabulary.scores).all()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rope_theta": 500000.0}, "rope_theta is 500000 and must be 10000"),
        ({"rope_scaling": "linear", "rope_factor": 2.0}, "rope_scaling is linear and must be none"),
        ({"norm_eps": 1e-6}, "norm_eps is 1e-06 and must be 1e-05"),
        ({"head_dim": 16}, r"heads \* head_dim is 64 and must be dim, 32"),
    ],
)
def test_shapes_that_it_cannot_represent(tmp_path: Path, changes: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        export_model(make_source(make_config(**changes)), "llama2c", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def changed(vocabulary: Vocabulary, **changes: object) -> Vocabulary:
    return Vocabulary(**(vars(vocabulary) | changes))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda v: changed(v, bos_id=-1), r"bos_id and eos_id are \(0, -1, 2\)"),
        (lambda v: changed(v, dummy_prefix=False), "adds no space before a text"),
        (
            lambda v: changed(v, pieces=[*v.pieces[:259], b"x", *v.pieces[260:]]),
            "piece for a space",
        ),
        (lambda v: changed(v, pieces=[*v.pieces[:4], b"x", *v.pieces[5:]]), "byte pieces at 3"),
        (
            lambda v: changed(v, types=np.where(v.types == 1, PieceType.USER_DEFINED, v.types)),
            "user-defined",
        ),
        (lambda v: changed(v, kind=TokenizerKind.BPE), "is not SentencePiece's"),
    ],
)
def test_tokenizers_that_it_cannot_represent(tmp_path: Path, change, sentence: str) -> None:
    source = make_source(make_config())
    with pytest.raises(UserError, match=sentence):
        llama2c.write(
            InteropModel(source.config, change(source.vocabulary), source.tensor), tmp_path, 0
        )


@pytest.mark.parametrize("version", [0, 1, 2])
def test_every_truncation_is_noticed(tmp_path: Path, version: int) -> None:
    path = save(tmp_path, make_source(make_config(layers=1)), version)
    good = path.read_bytes()
    for size in [0, 1, 27, 28, 255, 256, len(good) // 2, len(good) - 1]:
        path.write_bytes(good[:size])
        with pytest.raises(UserError, match=r"model\.bin"):
            import_model(path, tmp_path / "out.slm")
    path.write_bytes(good + b"\0")
    with pytest.raises(UserError, match="longer than that"):
        import_model(path, tmp_path / "out.slm")
    assert not (tmp_path / "out.slm").exists()


@pytest.mark.parametrize(
    ("offset", "value", "sentence"),
    [
        (4, 3, "version 3: only 0, 1 and 2"),
        (8, 33, r"n_heads in .*model.bin is 4 and must divide dim \(33\)"),
        (8, 64, "its header requires"),
        (12, -5, "hidden_dim in .*model.bin is -5"),
        (20, 0, "n_heads in .*model.bin is 0"),
        (24, 3, r"n_kv_heads in .* is 3 and must divide n_heads \(4\)"),
        (28, 1 << 30, "vocab_size in .* is 1073741824"),
        (37, 7, "group_size in .* is 7 and must divide every matrix"),
        (37, -8, "group_size in .* is -8"),
    ],
)
def test_wrong_headers(tmp_path: Path, offset: int, value: int, sentence: str) -> None:
    path = save(tmp_path, make_source(make_config()), 2)
    data = bytearray(path.read_bytes())
    struct.pack_into("<i", data, offset, value)
    path.write_bytes(data)
    with pytest.raises(UserError, match=sentence):
        open_external(path)


def test_groups_may_extend_over_rows(tmp_path: Path) -> None:
    source = make_source(make_config(dim=32, hidden=36))
    read = open_external(save(tmp_path, source, 2))
    part = source.part("layers.0.feed_forward.down.weight")  # rows of 36, groups of 8
    groups = part.reshape(-1, 8)
    scales = np.abs(groups).max(axis=1, keepdims=True) / np.float32(127)
    expected = (np.round(groups / scales) * scales).reshape(part.shape)
    assert np.array_equal(read.part("layers.0.feed_forward.down.weight"), expected)


def test_a_tokenizer_may_have_no_byte_pieces(tmp_path: Path) -> None:
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", b" ", b"a", b" a"]
    records = [struct.pack("<fI", -i, len(p)) + p for i, p in enumerate(pieces)]
    (tmp_path / "tokenizer.bin").write_bytes(struct.pack("<I", 6) + b"".join(records))
    vocabulary = llama2c.read_tokenizer(tmp_path / "tokenizer.bin", len(pieces))
    assert not vocabulary.byte_fallback
    assert vocabulary.types.tolist() == [2, 3, 3, 1, 1, 1]
    records[4] = struct.pack("<fI", 0, 6) + b"<0x41>"
    (tmp_path / "tokenizer.bin").write_bytes(struct.pack("<I", 6) + b"".join(records))
    with pytest.raises(UserError, match="has byte pieces, but not at 3 … 258"):
        llama2c.read_tokenizer(tmp_path / "tokenizer.bin", len(pieces))


@pytest.mark.parametrize("tied", [True, False])
def test_the_checkpoint_of_train_py(tmp_path: Path, tied: bool) -> None:
    source = make_source(make_config(tied=tied))
    export_model(source, "llama2c", tmp_path)
    save_training_checkpoint(tmp_path / "ckpt.pt", source)
    read = open_external(tmp_path / "ckpt.pt")
    assert read.config == source.config
    assert all(np.array_equal(read.part(name), source.part(name)) for name in parts(read.config))


def test_no_code_of_a_checkpoint_runs(tmp_path: Path) -> None:
    torch.save({"model": {}, "model_args": Path("x")}, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="holds other things than weights"):
        open_external(tmp_path / "ckpt.pt")
    torch.save({"state_dict": {}}, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="has no model and model_args"):
        open_external(tmp_path / "ckpt.pt")
    data = (tmp_path / "ckpt.pt").read_bytes()
    (tmp_path / "ckpt.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        open_external(tmp_path / "ckpt.pt")


def test_checkpoints_of_other_people(shared: Path) -> None:
    folder = shared / "checkpoints"
    small = open_external(folder / "stories260K-q8-group8.bin", folder / "tok512.bin")
    assert (small.config.dim, small.config.hidden) == (64, 172)
    assert np.abs(small.part("embedding.weight")).max() < 10
    characters = open_external(
        folder / "characters-105.bin", folder / "characters-105.tokenizer.bin"
    ).vocabulary
    tokenizer = FastTokenizer.of(characters)
    assert tokenizer.encode("a☃b")[2] == characters.unk_id


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"Once upon a time",
        b"Once upon a time there was a llama. " * 9,
        struct.pack("<7i", 33, 64, 2, 4, 4, 300, 32) + bytes(1000),  # 4 heads do not divide 33
        struct.pack("<Q", 120) + b'{"__metadata__": {"format": "pt"}}' + bytes(99),  # safetensors
    ],
)
def test_a_file_of_another_kind_is_rejected_with_the_kinds_that_can_be_imported(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    kinds = r"llama2\.c checkpoint \(\.bin or ckpt\.pt\), a GGUF file or a Hugging Face folder"
    with pytest.raises(UserError, match=rf"a\.txt cannot be imported: give a {kinds}$"):
        open_external(tmp_path / "a.txt")


def test_tokenizers_that_do_not_fit(tmp_path: Path) -> None:
    path = save(tmp_path, make_source(make_config()), 1)
    tokenizer = tmp_path / "tokenizer.bin"
    good = tokenizer.read_bytes()
    for size in range(0, len(good), 97):
        tokenizer.write_bytes(good[:size])
        with pytest.raises(UserError, match=r"tokenizer\.bin ends at byte"):
            open_external(path)
    tokenizer.write_bytes(good + bytes(9))
    with pytest.raises(UserError, match="more pieces than the 400"):
        open_external(path)
    tokenizer.unlink()
    with pytest.raises(UserError, match=r"name the model's tokenizer\.bin with --tokenizer FILE"):
        open_external(path)
    elsewhere = tmp_path / "other.bin"
    elsewhere.write_bytes(good)
    import_model(path, tmp_path / "out.slm", tokenizer=elsewhere)
    assert weight_file.read(tmp_path / "out.slm").config == make_config(
        norm_eps=float(np.float32(1e-5))
    )
