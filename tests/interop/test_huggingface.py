"""Hugging Face folders: other layouts that are accepted, and models that are rejected."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_models import make_config, make_source
from safetensors.torch import load_file, save_file

from storyllamas import tokenizer
from storyllamas.errors import UserError
from storyllamas.interop import tokenizer_folder
from storyllamas.interop.formats import export_model, import_model, open_external
from storyllamas.interop.huggingface import merges, to_halves
from storyllamas.interop.model import InteropModel, parts
from storyllamas.vocabulary import Added, PieceType, Vocabulary

schema = pytest.importorskip("google.protobuf") and __import__(
    "sentencepiece.sentencepiece_model_pb2", fromlist=["ModelProto"]
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    export_model(make_source(make_config(tied=False)), "hf", tmp_path / "hf")
    return tmp_path / "hf"


def set_config(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v != "absent"}))


def test_rotary_pairs_are_half_a_head_apart() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(12, 1)  # two heads of six
    assert to_halves(rows, 6).ravel().tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_the_safetensors_package_reads_the_file(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    source = make_source(make_config(tied=False))
    assert torch.equal(tensors["lm_head.weight"], torch.tensor(source.part("classifier.weight")))
    value = source.part("layers.1.attention.value.weight")
    assert torch.equal(
        tensors["model.layers.1.self_attn.v_proj.weight"], torch.tensor(value.copy())
    )
    assert len(tensors) == 2 * 9 + 3


def test_bfloat16_shards_and_old_tables(model: Path) -> None:
    before = open_external(model)
    expected = {name: before.part(name) for name in parts(before.config)}
    tensors = {name: t.bfloat16() for name, t in load_file(model / "model.safetensors").items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    names = sorted(tensors)
    save_file({n: tensors[n] for n in names[:9]}, model / "model-00001-of-00002.safetensors")
    save_file({n: tensors[n] for n in names[9:]}, model / "model-00002-of-00002.safetensors")
    (model / "model.safetensors").unlink()
    after = open_external(model)
    for name, value in expected.items():
        rounded = torch.tensor(value.copy()).bfloat16().float().numpy()
        assert np.array_equal(after.part(name), rounded)
    (model / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="has no tensor model"):
        open_external(model)


def test_a_tied_classifier_may_be_stored_twice(tmp_path: Path) -> None:
    export_model(make_source(make_config()), "hf", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embedding.clone()}, tmp_path / "model.safetensors")
    assert open_external(tmp_path).config.tied
    save_file(tensors | {"lm_head.weight": embedding + 1}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"ties lm_head\.weight to the embedding"):
        open_external(tmp_path)


def test_tied_weights_may_be_stored_as_the_classifier_only(tmp_path: Path) -> None:
    source = make_source(make_config())
    export_model(source, "hf", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    read = open_external(tmp_path)
    assert np.array_equal(read.part("embedding.weight"), source.part("embedding.weight"))
    set_config(tmp_path, tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"no tensor model\.embed_tokens\.weight"):
        open_external(tmp_path)


def test_shards_are_found_by_their_index(model: Path) -> None:
    before = open_external(model)
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    shards = {name: f"part{index % 2}.safetensors" for index, name in enumerate(tensors)}
    for file in set(shards.values()):
        part = {name: tensor.half() for name, tensor in tensors.items() if shards[name] == file}
        save_file(part, model / file)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    after = open_external(model)
    for name in parts(before.config):
        assert np.array_equal(after.part(name), before.part(name).astype(np.float16)), name
    for text, sentence in (("[]", "is not a JSON object"), ("{}", "has no weight_map")):
        (model / "model.safetensors.index.json").write_text(text)
        with pytest.raises(UserError, match=sentence):
            open_external(model)


def test_config_json_may_omit_defaults_and_use_old_keys(model: Path) -> None:
    before = open_external(model).config
    set_config(model, head_dim=None, rope_parameters="absent", rope_theta="absent")
    set_config(model, attention_bias="absent", rope_scaling=None, pretraining_tp=1)
    assert open_external(model).config == before
    set_config(model, rope_theta=500000)
    assert open_external(model).config.rope_theta == 500000
    set_config(model, rope_parameters={"rope_type": "default", "rope_theta": 2e4})
    assert open_external(model).config.rope_theta == 2e4
    set_config(model, rms_norm_eps="absent")
    assert open_external(model).config.norm_eps == 1e-6


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"attention_bias": True}, "attention_bias in .* is True"),
        ({"mlp_bias": True}, "mlp_bias in .* is True"),
        ({"model_type": "mistral"}, "model_type in .* is 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act in .* is 'gelu'"),
        ({"sliding_window": 128}, "sliding_window in .* is 128"),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
            "rope_factor of the rotary scaling in .* is None",
        ),
        (
            {"rope_parameters": "absent", "rope_scaling": {"type": "linear"}},
            "rope_factor of the rotary scaling in .* is None",
        ),
        ({"quantization_config": {"bits": 4}}, "quantization_config in"),
        ({"num_hidden_layers": 3}, "no tensor model.layers.2"),
        ({"num_hidden_layers": 1}, "has a tensor model.layers.1"),
        ({"num_attention_heads": True}, "num_attention_heads in .* is True"),
        ({"hidden_size": "32"}, "hidden_size in .* is '32'"),
        ({"hidden_size": None}, "has no hidden_size"),
        ({"head_dim": 7}, "head width in .* is 7 and must be even"),
        ({"tie_word_embeddings": 3}, "tie_word_embeddings in .* is 3 and must be true or false"),
        (
            {"num_attention_heads": 2**19, "num_key_value_heads": 2, "head_dim": 4},
            "at most 1048576",
        ),
        ({"max_position_embeddings": 2**20 + 1}, "whole number from 1 to 1048576"),
        ({"rms_norm_eps": 1e400}, "rms_norm_eps in .* is inf"),
        ({"rms_norm_eps": 1e300}, "rms_norm_eps in .* must be a number above 0 in float32"),
        ({"intermediate_size": 95}, "mlp.gate_proj.weight in .* has shape .96, 32."),
    ],
)
def test_configurations_that_are_rejected(model: Path, changes: dict, sentence: str) -> None:
    set_config(model, **changes)
    with pytest.raises(UserError, match=sentence):
        import_model(model, model.parent / "out.slm")
    assert not (model.parent / "out.slm").exists()


def test_files_that_are_damaged_or_missing(model: Path) -> None:
    file = model / "model.safetensors"
    good = file.read_bytes()
    for size in (0, 7, 100, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:size])
        with pytest.raises(UserError, match=r"model\.safetensors is missing, damaged or cut short"):
            open_external(model)
    file.unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        open_external(model)
    (model / "config.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"config\.json cannot be read: .* nested too deeply"):
        open_external(model)
    (model / "config.json").write_text("[")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        open_external(model)
    (model / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json does not exist"):
        open_external(model)


def test_biases_are_not_dropped(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}
    save_file(tensors | bias, model / "model.safetensors")
    with pytest.raises(UserError, match=r"has a tensor model\.layers\.0\.self_attn\.q_proj\.bias"):
        open_external(model)


@pytest.mark.parametrize(
    ("spec", "field", "value", "sentence"),
    [
        ("trainer_spec", "model_type", 1, "another model_type than"),
        ("normalizer_spec", "precompiled_charsmap", b"x", "precompiled_charsmap"),
        ("normalizer_spec", "remove_extra_whitespaces", True, "remove_extra_whitespaces"),
        ("normalizer_spec", "escape_whitespaces", False, "escape_whitespaces"),
        ("trainer_spec", "treat_whitespace_as_suffix", True, "treat_whitespace_as_suffix"),
        ("trainer_spec", "bos_id", 400, "bos_id of the tokenizer in .* is 400"),
    ],
)
def test_tokenizers_that_are_rejected(
    model: Path, spec: str, field: str, value: object, sentence: str
) -> None:
    proto = schema.ModelProto()
    proto.ParseFromString((model / "tokenizer.model").read_bytes())
    setattr(getattr(proto, spec), field, value)
    (model / "tokenizer.model").write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match=sentence):
        open_external(model)
    (model / "tokenizer.model").write_bytes(b"\xff\xff\xff")
    with pytest.raises(UserError, match="is not a SentencePiece model"):
        open_external(model)
    (model / "tokenizer.model").unlink()
    (model / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        open_external(model)


def test_user_defined_pieces_cannot_be_exported(tmp_path: Path) -> None:
    source = make_source(make_config())
    types = source.vocabulary.types.copy()
    types[-1] = PieceType.USER_DEFINED
    vocabulary = Vocabulary(**(vars(source.vocabulary) | {"types": types}))
    with pytest.raises(UserError, match="user-defined"):
        export_model(InteropModel(source.config, vocabulary, source.tensor), "hf", tmp_path / "out")


def test_the_left_of_two_overlapping_splits_merges_first() -> None:
    """SentencePiece merges the first two pieces of "ab a ba" to "aba", not the last two."""
    pieces = ["<unk>", "a", "b", "ab", "ba", "aba"]
    scores = np.array([0, 0, 0, -1, -2, -3], np.float32)
    types = np.array([2, 1, 1, 1, 1, 1], np.uint8)
    vocabulary = Vocabulary([piece.encode() for piece in pieces], scores, types)
    assert merges(vocabulary) == [("a", "b"), ("b", "a"), ("ab", "a"), ("a", "ba")]


def test_transformers_reads_names_of_special_pieces_only_for_prompts_with_such_names(
    tmp_path: Path,
) -> None:
    source = make_source(make_config(vocab_size=300))
    model = tokenizer.train(["the cat sat on the mat"], 260, kind="byte_level")
    trained = tokenizer.from_bytes(model).vocabulary()
    plain = tokenizer_folder.padded(trained, 300)
    user = np.array([[*row] for row in plain.added.tolist()] + [[299, Added.SPECIAL]], np.uint32)
    for vocabulary, is_plain in (
        (plain, True),
        (replace(plain, chat_template="{{ messages }}"), False),
        (replace(plain, added=user), False),
        (source.vocabulary, True),
    ):
        changed = InteropModel(source.config, vocabulary, source.tensor)
        export_model(changed, "hf", tmp_path / "hf")
        settings = json.loads((tmp_path / "hf/tokenizer_config.json").read_text())
        assert settings["split_special_tokens"] == is_plain


def test_the_model_card_says_where_it_comes_from(tmp_path: Path) -> None:
    source = make_source(make_config())
    about = {
        "size": "2m",
        "recipe": "full",
        "corpus": "tinystories",
        "hyperparameters": {"learning_rate": 0.001},
        "training": {"validation_loss": 1.81},
    }
    known = InteropModel(source.config, source.vocabulary, source.tensor, about)
    export_model(known, "hf", tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    for text in (
        "roneneldan/TinyStories",
        "CDLA-Sharing",
        "| recipe | full |",
        "| 0.001 |",
        "1.81",
    ):
        assert text in card
    export_model(source, "hf", tmp_path)
    assert "The training is unknown" in (tmp_path / "README.md").read_text()
