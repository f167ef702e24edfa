"""The command line, as its users call it."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "interop"))
from random_models import make_config, make_source

from storyllamas import cli
from storyllamas.engine.batch import GeneratedStory
from storyllamas.engine.engine import Engine
from storyllamas.slm import weight_file
from storyllamas.slm.encoding import storage


@pytest.fixture
def model(tmp_path: Path) -> Path:
    source = make_source(make_config())
    path = tmp_path / "model.slm"
    weight_file.write(path, source.config, source.vocabulary, source.tensor)
    return path


def run(*arguments: object) -> object:
    """Run the command; return its exit status, or its error message."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return ended.value.code


def test_generate_prints_the_story_of_the_engine(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "temperature": 0.7,
        "top_k": 9,
        "top_p": 0.8,
        "min_p": 0.01,
        "seed": 5,
        "max_tokens": 12,
    }
    story = Engine(model).generate("a b", **options)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    assert run("generate", "--model", model, "--prompt", "a b", *words) == 0
    out, err = capsys.readouterr()
    assert out == "a b" + "".join(story) + "\n"
    assert err == f"{story.tokens} tokens, stopped at {story.stop}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--temperature", "-1"], "error: temperature is -1"),
        (["--seed", "-1"], "error: seed is -1"),
        (["--max-tokens", "0"], "error: max_tokens is 0"),
        (["--top-p", "0"], "error: top_p is 0"),
        (["--prompt", "a" * 200], "error: the prompt"),
        (["--prompt", "\udcff"], "error: the text is not valid Unicode"),
    ],
)
def test_generate_rejects_in_one_sentence(
    model: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert str(run("generate", "--model", model, *arguments)).startswith(sentence)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["generate", "--bogus"], "generate: unrecognized arguments: --bogus; storyllamas gener"),
        (["generate", "--count", "x"], "generate: argument --count: 'x' is not a whole number; "),
        (["import"], "import: the following arguments are required: SOURCE, --out; storyllamas i"),
        (["bogus"], ": argument COMMAND: invalid choice: 'bogus'"),
        ([], ": the following arguments are required: COMMAND; storyllamas --help lists the opt"),
    ],
)
def test_wrong_usage_is_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    separator = "" if sentence.startswith(":") else " "
    assert out == ""
    assert err.startswith(f"error: storyllamas{separator}{sentence}")
    assert err.count("\n") == 1
    assert err.endswith(" --help lists the options\n")


def test_generate_many_as_lines(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file and standard output get the stories that the engine generates one by one."""
    prompts, out = tmp_path / "prompts.txt", tmp_path / "new" / "stories.jsonl"
    prompts.write_text("a b\n\nde é")
    command = ("generate", "--model", model, "--prompts", prompts, "--count", 2, "--seed", 5)
    assert run(*command, "--out", out, "--max-tokens", 12, "--threads", 2, "--pages", "huge") == 0
    out_text, err = capsys.readouterr()
    assert out_text == ""
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert err.startswith(f"6 stories, {sum(line['tokens'] for line in lines)} tokens in ")
    for index, line in enumerate(lines):
        prompt = ["a b", "a b", "", "", "de é", "de é"][index]
        story = Engine(model).generate(prompt, seed=5 + index, max_tokens=12)
        text = prompt + "".join(story)
        assert line == {
            **{"index": index, "seed": 5 + index, "prompt": prompt, "text": text},
            **{"tokens": story.tokens, "stop": story.stop},
        }
    assert run(*command, "--max-tokens", 12) == 0
    assert capsys.readouterr().out == out.read_text()


def test_generate_many_is_all_or_nothing(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "stories.jsonl"
    out.write_text("before")
    prompts = tmp_path / "prompts.txt"
    command = ("generate", "--model", model, "--count", 3, "--out", out)
    prompts.write_text("a\n" + "a" * 200)
    assert str(run(*command, "--prompts", prompts)).startswith("error: story 3: the prompt has")
    prompts.write_bytes(b"\xff")
    assert "prompts.txt is not UTF-8" in str(run(*command, "--prompts", prompts))
    capsys.readouterr()

    def interrupted(*_: object, **__: object) -> Iterator[GeneratedStory]:
        yield GeneratedStory(0, 42, "", "a", [5], "eos")
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "generate_many", interrupted)
    assert run(*command) == 130
    assert capsys.readouterr().err == f"stopped after 1 of 3 stories: {out} is not written\n"
    assert out.read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {model.name, prompts.name, out.name}


def test_a_prompt_from_a_file_or_standard_input(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line break at its end does not count."""
    path = tmp_path / "prompt.txt"
    for text in ("a b", "", "a\n", "é"):
        assert run("generate", "--model", model, "--prompt", text, "--max-tokens", 5) == 0
        expected = capsys.readouterr().out
        for end in (b"\n", b"\r\n"):
            path.write_bytes(text.encode() + end)
            command = ("generate", "--model", model, "--max-tokens", 5)
            assert run(*command, "--prompt-file", path) == 0
            assert capsys.readouterr().out == expected
            for option in ("--prompt", "--prompt-file"):
                with path.open() as file:
                    monkeypatch.setattr(sys, "stdin", file)
                    assert run(*command, option, "-") == 0
                assert capsys.readouterr().out == expected
    path.write_bytes(b"caf\xe9")
    for source, sentence in (
        (path, f"the prompt in {path} is not UTF-8 at byte 3: convert it to UTF-8"),
        (tmp_path, f"{tmp_path} cannot be read: Is a directory"),
        (tmp_path / "none", f"{tmp_path}/none does not exist: give a file with a prompt"),
    ):
        assert run(*command, "--prompt-file", source) == f"error: {sentence}"
    assert run(*command, "--prompt", "a", "--prompt-file", path) == 2
    if Path("/dev/zero").exists():
        assert "more than 67108864 bytes" in str(run(*command, "--prompt-file", "/dev/zero"))
    capsys.readouterr()


def test_kernels_are_those_of_the_environment(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SL_KERNELS", "scalar")
    assert run("generate", "--model", model, "--count", 2, "--max-tokens", 3) == 0
    monkeypatch.setenv("SL_KERNELS", "mmx")
    assert 'no kernels "mmx"' in str(run("generate", "--model", model))
    capsys.readouterr()


def test_info(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", model, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == make_config().parameters
    assert facts["bits_per_weight"] == pytest.approx(32, rel=0.01)
    assert (facts["weight_type"], facts["norm_eps"], facts["eos_id"]) == ("f32", 1e-5, 2)
    assert (facts["extra_eos_ids"], facts["chat_template_bytes"]) == ([], 0)
    assert run("info", model) == 0
    assert f"bytes                {model.stat().st_size:,}\n" in capsys.readouterr().out


def test_evaluate(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stories = tmp_path / "stories.txt"
    stories.write_text("a bc\n<|endoftext|>\nde f\n")
    assert run("evaluate", "--model", model, "--stories", stories, "--json") == 0
    both = json.loads(capsys.readouterr().out)
    assert both["loss"] > 0
    command = ("evaluate", "--model", model, "--stories", stories, "--count", 1, "--json")
    assert run(*command) == 0
    assert json.loads(capsys.readouterr().out) != both
    assert run("evaluate", "--model", model, "--stories", tmp_path / "none").startswith("error: ")


def test_export_and_import(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "out", tmp_path / "back.slm"
    assert run("export", "--model", model, "--to", "llama2c", folder) == 0
    listed = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [str(folder / "model.bin"), str(folder / "tokenizer.bin")]
    assert run("import", folder / "model.bin", "--out", out) == 0
    assert out.read_bytes() == model.read_bytes()
    command = ("import", folder / "model.bin", "--out", out, "--type", "q4", "--group-size", 16)
    assert run(*command) == 0
    assert weight_file.read(out).storage == storage("q4", {"q4": 16})
    assert "group size of q4 is 12: use a multiple of 8" in str(run(*command[:-1], 12))
    assert "it needs no import" in str(run("import", model, "--out", out))
    assert "error: " in str(run("import", tmp_path / "none", "--out", out))
    assert "cannot be written" in str(run("export", "--model", model, "--to", "llama2c", model))
    assert run("export", "--model", model, "--to", "onnx", folder) == 2


def test_no_command_writes_over_what_it_reads(model: Path, tmp_path: Path) -> None:
    folder, prompts = tmp_path / "out", tmp_path / "prompts.txt"
    assert run("export", "--model", model, "--to", "llama2c", folder) == 0
    prompts.write_text("a")
    checkpoint = folder / "model.bin"
    base = ("generate", "--model", model)
    commands: list[tuple[object, ...]] = [
        ("import", checkpoint, "--out", checkpoint),
        ("import", checkpoint, "--out", folder / "tokenizer.bin"),
        ("import", folder, "--out", folder / "model.bin"),
        ("merge", model, prompts, model),
        ("merge", model, prompts, prompts),
        (*base, "--out", model),
        (*base, "--prompts", prompts, "--out", prompts),
        (*base, "--prompt-file", prompts, "--out", prompts),
    ]
    files = [model, prompts, *sorted(folder.iterdir())]
    before = [file.read_bytes() for file in files]
    for command in commands:
        assert str(run(*command)).endswith("is a file that this command reads: give another one")
    assert [file.read_bytes() for file in files] == before


def test_options_without_effect_are_errors(model: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "out", tmp_path / "back.slm"
    assert run("export", "--model", model, "--to", "llama2c", folder) == 0
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    command = ("import", folder / "model.bin", "--out", out)
    assert "--group-size has no effect with f32" in str(run(*command, "--group-size", 64))
    calibrated = (*command, "--type", "q8", "--calibrate", tmp_path / "none")
    assert "--calibrate has no effect with q8" in str(run(*calibrated))
    with_tokenizer = ("--out", out, "--tokenizer", folder / "tokenizer.bin")
    assert "has its own tokenizer" in str(run("import", tmp_path / "model.gguf", *with_tokenizer))
    assert "has its own tokenizer" in str(run("import", tmp_path, *with_tokenizer))
    assert not out.exists()
    for option in ("--model", "--draft", "--out"):
        assert run("generate", option, "") == 2
    assert "the name of the file with the prompt is empty" in str(
        run("generate", "--model", model, "--prompt-file", "")
    )


def test_prompts_come_from_a_file_or_standard_input(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = b"\xef\xbb\xbfb\r\n\r\na\n"
    path = tmp_path / "prompts.txt"
    path.write_bytes(data)
    command = ("generate", "--model", model, "--max-tokens", 2, "--prompts")
    assert run(*command, path) == 0
    lines = capsys.readouterr().out
    assert [json.loads(line)["prompt"] for line in lines.splitlines()] == ["b", "", "a"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert run(*command, "-") == 0
    assert capsys.readouterr().out == lines
    assert "does not exist" in str(run(*command, tmp_path / "none"))


def test_without_params_a_model_must_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        run("generate")
        == "error: the current folder has no params.yaml that names a model: give one with --model"
    )


def test_an_export_needs_a_trained_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = Path(__file__).resolve().parent.parent / "params.yaml"
    (tmp_path / "params.yaml").write_bytes(params.read_bytes())
    monkeypatch.chdir(tmp_path)
    message = (
        "models/2m is not trained yet: train it with `dvc repro`, or name a model with --model"
    )
    assert run("export", "--to", "llama2c", tmp_path / "out") == f"error: {message}"
    assert not (tmp_path / "out").exists()


def test_help_reads_like_a_manual(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    for command in ("generate", "chat", "info", "evaluate", "corpus", "export", "import"):
        assert f"  storyllamas {command} " in text
        assert run(command, "--help") == 0
