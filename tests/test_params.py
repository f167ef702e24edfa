"""params.yaml is checked completely; every mistake is an error that names its key."""

from __future__ import annotations

import copy
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from storyllamas import params
from storyllamas.errors import UserError
from storyllamas.interop.formats import FORMATS
from storyllamas.slm.encoding import GROUP_SIZES

PUBLISHED = {
    "2m": (2**16, 100_000, 1e-3, 0.01, 0.05),
    "7m": (2**16, 100_000, 1e-3, 0.01, 0.05),
    "30m": (2**17, 50_000, 8e-4, 0.05, 0.1),
}
PARAMETERS = {"2m": 1.57e6, "7m": 6.1e6, "30m": 29.4e6}


@pytest.fixture
def raw() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def edited(raw: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    result = copy.deepcopy(raw)
    *parents, last = path.split("/")
    section = result
    for parent in parents:
        section = section[parent]
    section[last] = value
    return result


@pytest.mark.parametrize("size", PUBLISHED)
def test_full_is_the_published_recipe(raw: dict[str, Any], size: str) -> None:
    chosen = params.parse(raw | {"model": size, "recipe": "full"})
    recipe = chosen.recipe
    table = (recipe.tokens_per_step, recipe.steps, recipe.learning_rate, recipe.weight_decay)
    assert (*table, recipe.dropout) == PUBLISHED[size]
    assert (recipe.beta1, recipe.beta2, recipe.warmup, recipe.grad_clip) == (0.9, 0.95, 0.01, 1.0)
    assert (recipe.schedule, recipe.final_lr_ratio) == ("cosine", 0.1)
    assert chosen.model_config().parameters == pytest.approx(PARAMETERS[size], rel=0.02)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("modle", "2m", "modle is unknown"),
        ("model", "9m", "model is '9m': use one of 2m, 7m, 30m"),
        ("recipe", "slow", "recipe is 'slow': use one of quick, fast, distill, full"),
        ("seed", -1, "seed is -1"),
        ("seed", 2**32, "seed is"),
        ("seed", True, "seed is True"),
        ("tokenizer/vocab_size", 65537, "tokenizer.vocab_size is 65537"),
        ("tokenizer/vocab_size", "4k", "tokenizer.vocab_size is '4k'"),
        (
            "tokenizer/vocabsize",
            4096,
            "vocabsize is unknown: use one of kind, vocab_size",
        ),
        ("tokenizer/kind", "bpe", "kind is 'bpe': input should be 'sentencepiece' or 'byte_level'"),
        ("sizes/7m/kv_heads", 3, "sizes.7m.kv_heads is 3: use a divisor of heads (8)"),
        ("sizes/2m/head_dim", 33, "sizes.2m.head_dim is 33"),
        ("sizes/2m/dims", 1, "sizes.2m.dims is unknown: use one of dim"),
        ("shape/dims", 1, "shape.dims is unknown: use one of dim"),
        ("shape/head_dim", 33, "shape.head_dim is 33"),
        ("shape/kv_heads", 3, "shape.kv_heads is 3: use a divisor of heads (4)"),
        ("evaluation/speed_tokens", 256, "evaluation.speed_tokens is 256: use less than"),
        ("train/steps", 0, "train.steps is 0"),
        ("train/step", 5, "train.step is unknown"),
        ("train/learning_rate", float("nan"), "train.learning_rate is nan"),
        ("train/teacher_share", 0, "train.teacher_share is 0"),
        ("train/teacher", 3, "train.teacher is 3"),
        ("train/teacher_folds", 1, "train.teacher_folds is 1: use 0 for no teachers, or 2 or more"),
        ("train/teacher_folds", -1, "train.teacher_folds is -1"),
        ("train/teachers_per_fold", 0, "train.teachers_per_fold is 0"),
        ("train/teacher_steps", -1, "train.teacher_steps is -1"),
        ("train/held_out", "9/8", "train.held_out is '9/8': use a fold such as 3/8, or nothing"),
        ("train/held_out", 0.5, "train.held_out is 0.5"),
        ("train/tokens_per_step", 5000, "train.tokens_per_step is 5000: use a multiple of"),
        ("recipes/quick/defaults/tokens_per_step", 5000, "recipes.quick.defaults.tokens_per_step"),
        ("recipes/full/sizes/30m/dropout", 1.5, "recipes.full.sizes.30m.dropout is 1.5"),
        ("recipes/full/sizes/9m", {}, "is '9m': use one of 2m"),
        ("recipes/full/sizes", 3, "recipes.full.sizes is 3"),
        ("recipes/full/extra", {}, "recipes.full.extra is unknown"),
        ("export/types", ["f64"], "export.types.0 is 'f64'"),
        ("export/types", [], "export.types is []"),
        ("export/calibration_sequences", -1, "export.calibration_sequences is -1"),
        ("export/group_size/q8", 6, "export.group_size.q8 is 6"),
        ("export/group_size/q4", 12, "export.group_size.q4 is 12"),
        ("export/group_size/f32", 4, "export.group_size.f32 is unknown: use one of q8, q4"),
        ("generation/temperature", -1, "generation.temperature is -1"),
        ("corpus", None, "corpus is None"),
    ],
)
def test_wrong_values_are_named(raw: dict[str, Any], path: str, value: object, named: str) -> None:
    with pytest.raises(UserError) as rejected:
        params.parse(edited(raw, path, value))
    assert named in str(rejected.value)
    assert "\n" not in str(rejected.value)


def test_what_a_byte_level_tokenizer_does_not_have(raw: dict[str, Any]) -> None:
    raw = edited(raw, "tokenizer/kind", "byte_level")
    assert params.parse(raw).tokenizer.kind == "byte_level"
    with pytest.raises(UserError, match=r"character_coverage is 0\.9: use 1\.0, since tokenizer"):
        params.parse(edited(raw, "tokenizer/character_coverage", 0.9))
    with pytest.raises(UserError, match=r"export\.formats has llama2c-q8 and tokenizer\.kind is"):
        params.parse(edited(raw, "export/formats", ["hf", "llama2c-q8"]))


def test_teachers_are_a_list_or_a_text_for_one_process(raw: dict[str, Any]) -> None:
    assert params.parse(raw).distillation.teacher == ()
    for value in (["a", "b c"], "a, b c"):
        taught = edited(raw, "train/teacher", value)
        assert params.parse(taught).distillation.teacher == ("a", "b c")
    with pytest.raises(UserError, match=r"compute\.processes is 2 and .* train\.teacher: use 1"):
        params.parse(edited(taught, "compute/processes", 2))
    with pytest.raises(UserError, match=r"train\.held_out is 1/2 and there is a train\.teacher"):
        params.parse(edited(taught, "train/held_out", "1/2"))


def test_every_key_is_needed(raw: dict[str, Any]) -> None:
    for key in raw:
        with pytest.raises(UserError, match=f"{key} is missing"):
            params.parse({name: value for name, value in raw.items() if name != key})


def test_only_the_chosen_run_must_fill_its_steps(raw: dict[str, Any]) -> None:
    raw["sizes"]["2m"]["context"] = 192
    raw["train"]["tokens_per_step"] = 3072
    assert params.parse(raw).recipe.tokens_per_step == 3072


def test_shape_overrides_the_chosen_size(raw: dict[str, Any]) -> None:
    raw["shape"] |= {"layers": 6, "norm_eps": 1e-6}
    chosen = params.parse(raw)
    assert chosen.size == replace(params.parse(raw | {"shape": {}}).size, layers=6, norm_eps=1e-6)
    assert chosen.model_config().layers == 6
    assert chosen.sizes["7m"].layers == raw["sizes"]["7m"]["layers"]
    assert set(raw["shape"]) == {field.name for field in fields(params.Size)}


def test_no_key_is_one_that_the_run_cache_ignores(raw: dict[str, Any]) -> None:
    """DVC leaves out these keys of dvc.lock, also those of params, when it looks for a run."""
    assert not {path.split("/")[-1] for path in paths(raw)} & {"size", "nfiles"}


def test_every_key_can_be_set_on_the_command_line(raw: dict[str, Any]) -> None:
    """Hydra, which reads -S, takes no key that begins with a digit."""
    overrides = {
        "sizes": raw["shape"],
        **{f"recipes/{name}/sizes": raw["train"] for name in raw["recipes"]},
    }
    for path in paths(raw):
        key = path.split("/")[-1]
        section = next((each for each in overrides if path.startswith(f"{each}/")), None)
        if section is None:
            assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key), path
        elif path.count("/") > section.count("/") + 1:
            assert key in overrides[section], path


def test_layers_override_in_order(raw: dict[str, Any]) -> None:
    assert params.parse(raw).recipe.steps == raw["recipes"]["quick"]["sizes"]["2m"]["steps"]
    assert params.parse(edited(raw, "train/steps", 7)).recipe.steps == 7
    raw["recipes"]["quick"]["sizes"]["2m"]["weight_decay"] = 0.3
    assert params.parse(raw).recipe.weight_decay == 0.3


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda text: text + "model: 7m\n", "gives 'model' twice"),
        (lambda text: "a: [1\n" + text, "is not YAML"),
        (lambda text: text.replace("  steps:\n", "  steps: [1, 2]\n", 1), "train.steps is [1, 2]"),
    ],
)
def test_wrong_files_are_rejected(tmp_path: Path, edit: Callable[[str], str], named: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(edit((ROOT / "params.yaml").read_text()))
    with pytest.raises(UserError) as rejected:
        params.load(file)
    assert named in str(rejected.value)


def test_a_missing_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        params.load(tmp_path / "params.yaml")


def test_a_rate_may_be_written_without_a_point(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text()
    file = tmp_path / "params.yaml"
    file.write_text(text.replace("learning_rate:\n", "learning_rate: 2e-3\n", 1))
    assert params.load(file).recipe.learning_rate == 2e-3


def test_every_format_and_type_is_a_choice(raw: dict[str, Any]) -> None:
    raw["export"] |= {"types": list(GROUP_SIZES), "formats": list(FORMATS)}
    chosen = params.parse(raw).export
    assert (chosen.types, chosen.formats) == (list(GROUP_SIZES), list(FORMATS))
    text = (ROOT / "params.yaml").read_text()
    assert all(name in text for name in [*GROUP_SIZES, *FORMATS])


ODD = [
    None, True, -1, 10**30, 10**5000, 1e300, math.inf, "", "x" * 10**4, "\ud800", [], [[]], [None],
    {}, {"a": {"b": []}}, {1: 2}, {"\ud800": 1}, {"x" * 10**4: 1}, date(2001, 12, 14), {1}, b"x",
]  # fmt: skip


def sentence(raw: dict[str, Any]) -> str:
    """Return the message of the error, or ''."""
    try:
        params.parse(raw)
    except UserError as error:
        return str(error)
    return ""


def paths(value: object, path: str = "") -> Iterator[str]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from paths(item, f"{path}/{key}".lstrip("/"))


def test_an_odd_value_anywhere_is_a_short_sentence(raw: dict[str, Any]) -> None:
    raw["sizes"] = {"2m": raw["sizes"]["2m"]}
    raw["recipes"] = {"quick": raw["recipes"]["quick"]}
    raw["recipes"]["quick"]["sizes"] = {"2m": raw["recipes"]["quick"]["sizes"]["2m"]}
    assert sentence(raw) == ""
    for path in paths(raw):
        for value in ODD:
            found = sentence(edited(raw, path, value))
            assert len(found) < 500
            assert "\n" not in found


def test_numbers_are_those_that_dvc_records(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text((ROOT / "params.yaml").read_text().replace("seed: 1 ", "seed: 010 ", 1))
    assert params.load(file).seed == 10
    file.write_text((ROOT / "params.yaml").read_text().replace("seed: 1 ", "seed: 1:30 ", 1))
    with pytest.raises(UserError, match="seed is '1:30'"):
        params.load(file)


@pytest.mark.parametrize(
    ("given", "told"), [((), "models/2m/export/f32.slm"), (("MODEL=my file",), "my file")]
)
def test_make_story_tells_one_of_the_model_that_it_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], told: str
) -> None:
    for name in ("Makefile", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    programs = {
        ".venv/bin/dvc": "mkdir -p models/2m/export && touch models/2m/export/f32.slm",
        "csrc/build/run": 'echo "$1"',
    }
    for name, script in programs.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "csrc/Makefile").write_text("all:\n\t@:\n")
    monkeypatch.delenv("MODEL", raising=False)
    command = ["make", "--no-print-directory", "-C", str(tmp_path), "-o", "setup", "story"]
    done = subprocess.run([*command, *given], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == told


def test_make_reads_a_quoted_model(tmp_path: Path) -> None:
    for line in ("model: 7m # size", "model: '7m'", 'model: "7m" # size'):
        text = re.sub("^model: .*$", line, (ROOT / "params.yaml").read_text(), flags=re.MULTILINE)
        (tmp_path / "params.yaml").write_text(text)
        assert params.load(tmp_path / "params.yaml").model == "7m"
        command = ["make", "-f", str(ROOT / "Makefile"), "-C", str(tmp_path), "-pn", "help"]
        printed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        assert "\nSIZE := 7m\n" in printed
