"""Imports of damaged files end in one sentence that names the file; tests/fuzz finds such files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import make_config, make_source
from ranked import train
from safetensors.torch import load_file, save_file
from test_gguf import edit

from storyllamas.errors import MAX_MESSAGE, UserError
from storyllamas.interop.formats import export_model, import_model

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model in each format; tests copy from it."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("hf", "gguf", "llama2c"):
        export_model(make_source(make_config(layers=1, tied=False)), name, folder / name)
    return folder


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    """Return a Hugging Face folder whose tokenizer is a tokenizer.json."""
    for path in (exported / "hf").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tokenizer.model").unlink()
    return tmp_path


def reject(path: Path, sentence: str) -> str:
    """Check that an import ends in one sentence about the file, and leaves nothing."""
    out = path.parent / "out" / "model.slm"
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.raises(UserError, match=sentence) as caught:
            import_model(path, out)
    message = str(caught.value)
    assert str(path) in message
    assert len(message) <= MAX_MESSAGE + 3
    assert message.isprintable()
    assert not out.parent.exists() or not list(out.parent.iterdir())
    return message


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("config.json", DEEP, "nested too deeply"),
        ("tokenizer.json", DEEP, "nested too deeply"),
        ("tokenizer_config.json", DEEP, "nested too deeply"),
        ("model.safetensors", "{}", "is missing, damaged or cut short"),
        ("tokenizer.json", '{"model": {"vocab": {"\\ud800": 0}, "merges": []}}', "is damaged|none"),
        ("tokenizer_config.json", '{"bos_token": "\\ud800"}', "are damaged"),
        ("tokenizer_config.json", "[]", "is not a JSON object"),
        ("config.json", "9" * 5000, "cannot be read|integer string"),
    ],
)
def test_json_of_any_kind(model: Path, name: str, text: str, sentence: str) -> None:
    (model / name).write_text(text)
    reject(model, sentence)


@pytest.mark.parametrize(
    "processor",
    [
        {"processors": 5},
        {"type": "TemplateProcessing", "single": 5},
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": {}}}]},
        {"type": "TemplateProcessing", "single": [{}], "special_tokens": []},
    ],
)
def test_post_processors_of_another_structure(model: Path, processor: Any) -> None:
    change(model / "tokenizer.json", post_processor=processor)
    reject(model, "the settings of the tokenizer in .* are damaged")


def test_a_tokenizer_that_the_engine_rejects_is_not_written(model: Path) -> None:
    data = json.loads(train("legacy", [], []).to_str())
    data["model"]["merges"].append(["<unk>", "a"])
    data["model"]["vocab"]["<unk>a"] = len(data["model"]["vocab"])
    (model / "tokenizer.json").write_text(json.dumps(data))
    config = model / "config.json"
    change(config, vocab_size=len(data["model"]["vocab"]))
    tensors = load_file(model / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.ones(len(data["model"]["vocab"]), 32)
    save_file(tensors, model / "model.safetensors")
    reject(model, "cannot be imported: the vocabulary is damaged: .* unknown or a byte piece")


@pytest.mark.parametrize(
    ("scaling", "sentence"),
    [
        ({"rope_type": "linear", "factor": 10**400}, "must be above 0|is inf"),
        ({"rope_type": "linear", "factor": 1e-46}, "must be above 0"),
        ({"original_max_position_embeddings": 1 << 32}, "must be a whole number from 1 to"),
        ({"original_max_position_embeddings": float("nan")}, "must be a whole number from 1 to"),
        ({"original_max_position_embeddings": 0.5}, "must be a whole number from 1 to"),
        ({"low_freq_factor": 1.0, "high_freq_factor": 1.0 + 1e-12}, "below the second"),
    ],
)
def test_scalings_that_float32_cannot_hold(
    model: Path, scaling: dict[str, Any], sentence: str
) -> None:
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    llama3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    change(model / "config.json", rope_parameters=llama3 | scaling)
    reject(model, sentence)


@pytest.mark.parametrize("kind", [torch.int8, torch.complex64, torch.float8_e4m3fn])
def test_tensors_that_are_no_weights(model: Path, kind: torch.dtype) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(kind)
    save_file(tensors, model / "model.safetensors")
    reject(model, r"tensor model\.norm\.weight in .* has type")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_pipe_blocks_nobody(model: Path, name: str) -> None:
    (model / name).unlink()
    os.mkfifo(model / name)
    command = [sys.executable, "-m", "storyllamas", "import", model, "--out", model / "out.slm"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_pipe_is_no_tokenizer(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes((exported / "llama2c" / "model.bin").read_bytes())
    os.mkfifo(tmp_path / "tokenizer.bin")
    with pytest.raises(UserError, match=r"tokenizer\.bin is a pipe"):
        import_model(tmp_path / "model.bin", tmp_path / "out.slm")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"tokenizer.ggml.scores": 1.0}, "400 pieces, 1 scores and 400 types"),
        ({"tokenizer.ggml.token_type": 1}, "400 pieces, 400 scores and 1 types"),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": ["gpt-2"]}, "cannot be imported"),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1e-46}, "."),
    ],
)
def test_gguf_fields_of_another_type(
    exported: Path, tmp_path: Path, fields: dict[str, Any], sentence: str
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes((exported / "gguf" / "model.gguf").read_bytes())
    edit(path, fields)
    if sentence == ".":
        import_model(path, tmp_path / "out.slm")  # 1e-46 is 0 in float32: no scaling
    else:
        reject(path, sentence)


def test_a_sentencepiece_piece_that_is_not_utf8(exported: Path, tmp_path: Path) -> None:
    for path in (exported / "hf").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / "tokenizer.model"
    path.write_bytes(path.read_bytes().replace(b"<unk>", b"<un\xff>", 1))
    with pytest.raises(UserError, match=r"is not UTF-8|is not a SentencePiece model"):
        import_model(tmp_path, tmp_path / "out.slm")


@pytest.mark.parametrize(
    "change_tensor",
    [
        lambda t: t.to(torch.complex64),
        lambda t: t.to(torch.int64),
        lambda t: t.to(torch.float8_e4m3fn),
        lambda t: t.to_sparse(),
        lambda t: t.to("meta"),
        lambda t: t.reshape(-1)[0],
    ],
)
@pytest.mark.parametrize("name", ["norm.weight", "layers.0.feed_forward.w1.weight"])
def test_tensors_of_a_checkpoint_that_are_no_weights(
    tmp_path: Path, name: str, change_tensor: Any
) -> None:
    tensors = {"norm.weight": torch.ones(8), "layers.0.feed_forward.w1.weight": torch.ones(8, 8)}
    tensors[name] = change_tensor(tensors[name])
    path = tmp_path / "ckpt.pt"
    torch.save({"model": tensors, "model_args": {"dim": 8, "n_heads": 2}}, path)
    message = reject(path, "tensor|cannot be read")
    assert "Traceback" not in message


def test_a_weight_that_overflows_is_named_without_a_warning(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].double() * 1e300
    save_file(tensors, model / "model.safetensors")
    reject(model, "not finite")


def test_a_name_with_a_line_break_stays_in_one_line(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["a\nb\x1b[31m" + "x" * 5000] = torch.ones(1)
    save_file(tensors, model / "model.safetensors")
    assert r"a\nb\x1b[31mxxx" in reject(model, "has a tensor a")
