"""The example for the ESP32, built with CMake and a stand-in for ESP-IDF, on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import engine_files
import pytest
import yaml
from conftest import ROOT
from engine_files import small_config

from storyllamas.engine.engine import Engine

EXAMPLE, STAND_IN = ROOT / "examples" / "esp32", ROOT / "tests" / "esp_idf"
FLAGS = "-Wall -Wextra -Wshadow -Wconversion -Werror -DSL_SCALAR_ONLY"

pytestmark = pytest.mark.skipif(not shutil.which("cmake"), reason="needs cmake")


def call(*command: object) -> str:
    environment = os.environ | {"IDF_PATH": str(STAND_IN)}
    done = subprocess.run([*map(str, command)], capture_output=True, check=False, env=environment)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return done.stdout.decode()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project with its component."""
    folder = tmp_path_factory.mktemp("esp32") / "project"
    component = folder / "components" / "storyllamas"
    ignored = shutil.ignore_patterns("build", "storyllamas.[ch]")
    shutil.copytree(EXAMPLE, folder, ignore=ignored)
    call("make", "-C", EXAMPLE, "component", f"COMPONENT={component}")
    return folder


@pytest.fixture(scope="module")
def program(project: Path) -> Path:
    build = project / "build"
    call("cmake", "-S", project, "-B", build, f"-DCMAKE_C_FLAGS={FLAGS}")
    call("cmake", "--build", build)
    return build / "story"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config(dim=48, hidden=96, context=300)
    path = tmp_path_factory.mktemp("model") / "m.slm"
    return engine_files.write(path, config, engine_files.random_tensors(config, 1), None, "q4")


def test_the_story_is_that_of_the_scalar_kernels(program: Path, model: Path) -> None:
    story = Engine(model, kernels="scalar", cache="q8").generate("Once upon a time")
    text = "".join(story)
    written, _, report = call(program, model).rpartition("\n\ntokens: ")
    assert written == "Once upon a time" + text
    assert int(report.split()[0]) == len(story.ids)


def test_what_is_missing_is_an_error(program: Path, model: Path, tmp_path: Path) -> None:
    erased = tmp_path / "erased.slm"
    erased.write_bytes(b"")
    assert 'there is no partition "model"' in call(program)
    assert 'the partition "model" has no whole weight file' in call(program, erased)
    assert re.fullmatch(
        r"error: no free block of memory has the \d+ bytes of a session\n",
        call(program, model, 1000),
    )


def test_a_component_without_the_engine_is_an_error(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project, tmp_path / "p", ignore=shutil.ignore_patterns("build", "*.[ch]"))
    with pytest.raises(AssertionError, match=r"storyllamas.c is missing: run\s+make component"):
        call("cmake", "-S", tmp_path / "p", "-B", tmp_path / "build")


def test_the_manifest_has_a_version(project: Path) -> None:
    manifest = yaml.safe_load((project / "components/storyllamas/idf_component.yml").read_text())
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'\nversion = "{manifest["version"]}"\n' in pyproject
    assert manifest["dependencies"].keys() == {"idf"}
