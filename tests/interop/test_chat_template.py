"""Chat templates and the tokens that end a turn, from other programs and back to them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from random_models import make_config, make_source
from test_gguf import edit

from storyllamas.chat.template import render
from storyllamas.errors import UserError
from storyllamas.interop.formats import export_model, import_model, open_external
from storyllamas.interop.model import InteropModel, open_model
from storyllamas.vocabulary import Vocabulary

pytest.importorskip("gguf")
pytest.importorskip("google.protobuf")

TEMPLATE = "{{ bos_token }}{% for m in messages %}é {{ m.content }}{{ eos_token }}\n{% endfor %}"


def chat_source(extra: tuple[int, ...] = (5, 300)) -> InteropModel:
    source = make_source(make_config(layers=1))
    vocabulary = replace(source.vocabulary, chat_template=TEMPLATE, extra_eos_ids=extra)
    return replace(source, vocabulary=vocabulary)


def chat_of(vocabulary: Vocabulary) -> tuple[str, tuple[int, ...]]:
    return vocabulary.chat_template, vocabulary.extra_eos_ids


@pytest.mark.parametrize("name", ["hf", "gguf"])
@pytest.mark.parametrize("extra", [(), (5,), (5, 300)])
def test_goes_there_and_back(tmp_path: Path, name: str, extra: tuple[int, ...]) -> None:
    export_model(chat_source(extra), name, tmp_path / name)
    path = tmp_path / name / "model.gguf" if name == "gguf" else tmp_path / name
    assert chat_of(open_external(path).vocabulary) == (TEMPLATE, extra)
    import_model(path, tmp_path / "m.slm")
    assert chat_of(open_model(tmp_path / "m.slm").vocabulary) == (TEMPLATE, extra)


def test_llama2c_has_no_place_for_either(tmp_path: Path) -> None:
    export_model(chat_source(), "llama2c", tmp_path)
    assert chat_of(open_external(tmp_path / "model.bin").vocabulary) == ("", ())


def test_gguf_names_two_tokens_besides_eos(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="4 tokens end a text of this model, and a GGUF file names"):
        export_model(chat_source((5, 6, 7)), "gguf", tmp_path)
    assert not list(tmp_path.iterdir())


def test_ollama_takes_the_template_of_the_file(tmp_path: Path) -> None:
    export_model(chat_source(), "gguf", tmp_path)
    assert "TEMPLATE" not in (tmp_path / "Modelfile").read_text()
    export_model(make_source(make_config(layers=1)), "gguf", tmp_path)
    assert 'TEMPLATE """{{ .Prompt }}"""' in (tmp_path / "Modelfile").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    export_model(make_source(make_config(layers=1)), "hf", tmp_path)
    return tmp_path


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_where_a_folder_may_have_its_template(folder: Path) -> None:
    config = folder / "tokenizer_config.json"
    assert open_external(folder).vocabulary.chat_template == ""
    change(config, chat_template=TEMPLATE)
    assert open_external(folder).vocabulary.chat_template == TEMPLATE
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    for value, expected in ((named, "yes"), (named[:1], ""), ([], ""), ([1, {}], ""), (None, "")):
        change(config, chat_template=value)
        assert open_external(folder).vocabulary.chat_template == expected
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    change(config, chat_template="no")
    assert open_external(folder).vocabulary.chat_template == TEMPLATE


def test_templates_that_are_rejected(folder: Path) -> None:
    config = folder / "tokenizer_config.json"
    for value, sentence in (
        (5, "chat template in .*config.json is 5 and must be text"),
        ("\ud800", "is not valid Unicode: repair it"),
        ("a" * (2**20 + 1), "has 1048577 bytes and may have 1048576: remove it or give a shorter"),
        ([{"name": "default", "template": {}}], "must be text"),
    ):
        change(config, chat_template=value)
        with pytest.raises(UserError, match=sentence):
            open_external(folder)
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"chat_template\.jinja cannot be read"):
        open_external(folder)


def test_where_a_folder_may_name_its_eos_ids(folder: Path) -> None:
    for first, second, expected in (
        (2, [2, 5], (5,)),
        ([2, 300], [5, 2], (5, 300)),
        (7, None, (7,)),
        ([2, -1, 400, True, "5", 2.0], [], ()),
        (None, {}, ()),
    ):
        change(folder / "config.json", eos_token_id=first)
        change(folder / "generation_config.json", eos_token_id=second)
        assert open_external(folder).vocabulary.extra_eos_ids == expected
    (folder / "generation_config.json").unlink()
    assert open_external(folder).vocabulary.extra_eos_ids == ()


def test_where_a_gguf_file_may_have_both(tmp_path: Path) -> None:
    export_model(make_source(make_config(layers=1)), "gguf", tmp_path)
    path = tmp_path / "model.gguf"
    edit(path, {"tokenizer.chat_template": TEMPLATE, "tokenizer.ggml.eot_token_id": 9})
    assert chat_of(open_external(path).vocabulary) == (TEMPLATE, (9,))
    edit(path, {"tokenizer.ggml.eot_token_id": 2, "tokenizer.ggml.eom_token_id": 4000})
    assert chat_of(open_external(path).vocabulary) == (TEMPLATE, ())
    edit(path, {"tokenizer.chat_template": 3})
    with pytest.raises(UserError, match=r"chat template in .*model\.gguf is 3 and must be text"):
        open_external(path)


def test_transformers_reads_what_is_exported(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    export_model(chat_source(), "hf", tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    talk = [{"role": "user", "content": "a b"}]
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert theirs.apply_chat_template(talk, tokenize=False) == render(TEMPLATE, talk, tokens, False)
    generation = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert generation.eos_token_id == [2, 5, 300]
