"""The models that come with the project: what their card says, and that commands find them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from storyllamas.commands.default_model import PRETRAINED
from storyllamas.engine.engine import Engine
from storyllamas.slm import weight_file

FOLDER = ROOT / "models" / "pretrained"
MODELS = sorted(FOLDER.glob("*.slm"))
MOST_BYTES = {"2m": 1_000_000, "7m": 4_000_000}


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_the_card_names_its_size(path: Path) -> None:
    card = (FOLDER / "README.md").read_text()
    section = card.split(f"## {path.name}\n")[1]
    assert f"{path.stat().st_size:,} bytes" in section
    assert f"{weight_file.read(path).config.parameters:,} parameters" in section
    (size,) = re.findall(r"-(\w+)-q4", path.stem)
    assert path.stat().st_size < MOST_BYTES[size]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_it_knows_the_words_of_stories(path: Path) -> None:
    """A model that learned nothing needs 8.3 nats for each of 4,096 pieces."""
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside."
    engine = Engine(path)
    assert -engine.score(engine.encode(story)).mean() < 2.5


def test_commands_take_it_where_nothing_is_trained(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(FOLDER, tmp_path / PRETRAINED.parent)
    command = [sys.executable, "-m", "storyllamas", "generate", "--max-tokens", "20"]

    def generated() -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert generated() == "".join(Engine(ROOT / PRETRAINED).generate("", max_tokens=20)) + "\n"
    trained = tmp_path / "models/2m/export/f32.slm"
    trained.parent.mkdir(parents=True)
    trained.write_bytes(b"")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "models/2m/export/f32.slm" in done.stderr
