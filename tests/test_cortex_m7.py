"""The example for a Cortex-M7 without an operating system, emulated by qemu."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import engine_files
import pytest
from conftest import ROOT
from engine_files import small_config

from storyllamas.engine.engine import Engine

EXAMPLE = ROOT / "examples" / "cortex-m7"
COMPILER, QEMU = "arm-none-eabi-gcc", "qemu-system-arm"

pytestmark = pytest.mark.skipif(
    not (shutil.which(COMPILER) and shutil.which(QEMU)),
    reason=f"needs {COMPILER} and {QEMU} (Debian: gcc-arm-none-eabi libnewlib-arm-none-eabi "
    "qemu-system-arm)",
)

SHAPES: dict[str, tuple[str, dict[str, Any], str]] = {
    "260k": (
        "q8",
        {"dim": 64, "hidden": 172, "layers": 5, "heads": 8, "kv_heads": 4, "head_dim": 8,
         "vocab_size": 512},
        "300000",
    ),
    "2m": (
        "q4",
        {"dim": 128, "hidden": 512, "layers": 4, "heads": 4, "kv_heads": 4, "head_dim": 32,
         "vocab_size": 4096},
        "640K",
    ),
}  # fmt: skip
"""For each model its weight type, its shape and the bytes of RAM that it gets."""


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the build. All tests share the object files in it."""
    return tmp_path_factory.mktemp("cortex-m7")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, files = tmp_path_factory.mktemp("models"), {}
    for name, (weight_type, shape, _) in SHAPES.items():
        config = small_config(**shape, context=256)
        tensors, groups = engine_files.random_tensors(config, 1), {"q8": 32, "q4": 32}
        path = folder / f"a {name} model.slm"
        files[name] = engine_files.write(path, config, tensors, None, weight_type, groups)
    return files


def run(build: Path, model: Path, **settings: object) -> tuple[int, str]:
    """Build the example with a model, run it, and return make's exit status and the output."""
    values = [f"{name}={value}" for name, value in settings.items()]
    flags = ["CFLAGS=-O2 -Werror", f"BUILD={build}", f"MODEL={model}"]
    command = ["make", "-s", "-C", EXAMPLE, "run", *flags, *values]
    done = subprocess.run(command, capture_output=True, check=False)
    errors = [line for line in done.stderr.decode().splitlines() if not line.startswith("make")]
    assert not errors, "\n".join(errors)
    return done.returncode, done.stdout.decode()


def numbers(report: str) -> dict[str, list[int]]:
    """Return the numbers in each line of the report."""
    lines = [line.partition(":") for line in report.splitlines()]
    return {name: [*map(int, re.findall(r"\d+", rest))] for name, _, rest in lines}


@pytest.mark.parametrize("name", SHAPES)
def test_text_is_that_of_the_scalar_kernels(
    name: str, build: Path, models: dict[str, Path]
) -> None:
    model, ram = models[name], SHAPES[name][2]
    engine = Engine(model, kernels="scalar", cache="q8")
    for temperature, seed, tokens in [(0.0, 42, 60), (0.8, 7, 30)]:
        options = {"temperature": temperature, "seed": seed, "max_tokens": tokens}
        story = engine.generate("ab, a", **options)
        text = "".join(story)
        settings = {key.upper(): value for key, value in options.items()}
        status, output = run(build, model, **settings, PROMPT="ab, a", RAM_BYTES=ram)
        written, mark, report = output.rpartition("\n\ntokens")
        assert (status, written) == (0, "ab, a" + text)
        values = numbers(mark.strip() + report)
        assert values["tokens"] == [len(story.ids), story.prompt_tokens]
        assert values["heap calls while generating"] == [0]
        assert values["model"][0] == model.stat().st_size
        assert values["RAM in all"] < [300_000 if name == "260k" else 620_000]


def test_a_small_model_takes_little_memory(build: Path, models: dict[str, Path]) -> None:
    _, output = run(build, models["260k"], MAX_TOKENS=1, RAM_BYTES=300000)
    values = numbers(output.rpartition("\n\n")[2])
    session, (_, model) = values["session"][0], values["model"]
    assert session < 190_000
    assert model < 82_000
    assert session + model <= values["heap"][0] < session + model + 8192
    _, output = run(build, models["260k"], MAX_TOKENS=300, CONTEXT=32)
    values = numbers(output.rpartition("\n\n")[2])
    assert sum(values["tokens"]) <= 32
    assert values["session"][0] < 60_000


def test_what_does_not_fit_is_an_error(build: Path, models: dict[str, Path]) -> None:
    status, output = run(build, models["260k"], RAM_BYTES="160K")
    assert re.fullmatch(r"error: the heap has too little room for a session of \d+ bytes\n", output)
    assert status
    status, output = run(build, models["260k"], RAM_BYTES="300000", STACK_BYTES="2K")
    assert output == "error: the processor met a fault, such as a full stack\n"
    assert status


def test_messages_have_their_numbers(build: Path, models: dict[str, Path], tmp_path: Path) -> None:
    """The C library there prints no %zu."""
    cut = tmp_path / "cut.slm"
    cut.write_bytes(models["260k"].read_bytes()[:1000])
    status, output = run(build, cut)
    assert output.startswith("error: weight file data is 1000 bytes long and its header says ")
    assert status
