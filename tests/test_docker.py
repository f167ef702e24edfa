"""The Dockerfiles copy what exists, and what they build runs where there is nothing else."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import engine_files
import pytest
from conftest import ROOT
from engine_files import small_config

FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
MAX_BYTES = 2_100_000  # with glibc, which adds 0.7 MB to what the image has with musl
Q4_BYTES = 903_296
"""The size of the 2m model's q4.slm."""

Instruction = tuple[str, list[str]]


def instructions(path: Path) -> list[Instruction]:
    """Return the instructions with their words, build arguments replaced by their defaults."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.M).replace("\\\n", " ")
    found: list[Instruction] = []
    defaults: dict[str, str] = {}
    for line in filter(None, text.splitlines()):
        name, _, rest = line.partition(" ")
        rest = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], rest)
        words = json.loads(rest) if rest.startswith("[") else shlex.split(rest)
        if name == "ARG":
            argument, _, value = words[0].partition("=")
            defaults[argument] = value
        found.append((name, words))
    return found


def is_ignored(path: str, patterns: list[str]) -> bool:
    """Return whether a build leaves a file out: as in Docker, the last match decides."""
    ignored = False
    for line in patterns:
        pattern = re.escape(line.removeprefix("!"))
        pattern = pattern.replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if re.fullmatch(f"{pattern}(/.*)?", path):
            ignored = not line.startswith("!")
    return ignored


def ignore_patterns(path: Path) -> list[str]:
    own = path.with_name(f"{path.name}.dockerignore")
    lines = (own if own.exists() else ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def copied(path: Path) -> list[str]:
    """Return the sources of the COPY instructions that come from the repository."""
    copies = [words for name, words in instructions(path) if name == "COPY"]
    return [each for words in copies if "--from" not in words[0] for each in words[:-1]]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_has_known_instructions_and_a_command(path: Path) -> None:
    names = [name for name, _ in instructions(path)]
    known = {"FROM", "RUN", "COPY", "ARG", "WORKDIR", "USER", "VOLUME", "ENTRYPOINT", "CMD"}
    assert set(names) <= known
    assert names[0] == "FROM"
    assert names[-1] == "CMD"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_copies_what_exists_and_is_not_ignored(path: Path) -> None:
    patterns = ignore_patterns(path)
    for source in copied(path):
        assert (ROOT / source).exists(), source
        assert source == "." or not is_ignored(source, patterns), source


def test_images_leave_out_builds_and_data() -> None:
    generate, train = map(ignore_patterns, FILES)
    for name in (
        ".venv/bin/python",
        "csrc/build/run",
        "data/x",
        "storyllamas/a.so",
        "a/__pycache__/b",
    ):
        assert is_ignored(name, train)
        assert is_ignored(name, generate)
    for name in (
        "storyllamas/cli.py",
        ".git/HEAD",
        "params.yaml",
        "dvc.lock",
        "csrc/program/main.c",
    ):
        assert not is_ignored(name, train)
    assert not is_ignored("csrc/kernels/avx2.c", generate)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_make_targets_exist(path: Path) -> None:
    for name, words in instructions(path):
        if (
            "make" not in words
            or name not in ("RUN", "CMD")
            or "apt-get" in words
            or "apk" in words
        ):
            continue
        arguments = words[words.index("make") + 1 :]
        folder = ROOT / arguments.pop(1).strip("/") if arguments[0] == "-C" else ROOT
        target = next(each for each in arguments if not each.startswith("-"))
        assert re.search(rf"^{target}:", (folder / "Makefile").read_text(), re.M), target


def test_the_image_has_no_shell() -> None:
    """The last stage is empty but for what it copies, and runs no command to build."""
    found = instructions(ROOT / "docker/generate.Dockerfile")
    last = max(i for i, (name, _) in enumerate(found) if name == "FROM")
    assert found[last] == ("FROM", ["scratch"])
    assert "RUN" not in [name for name, _ in found[last:]]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that the image of generation would have, built by its own command."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs a static C library")
    found = instructions(ROOT / "docker/generate.Dockerfile")
    (command,) = (words for name, words in found if name == "RUN" and words[0] == "make")
    root = tmp_path_factory.mktemp("image")
    build = tmp_path_factory.mktemp("build")
    command = [word.replace("/csrc", str(ROOT / "csrc")) for word in command]
    done = subprocess.run([*command, f"BUILD={build}"], capture_output=True, text=True, check=False)
    if "cannot find -l" in done.stderr:
        pytest.skip("the static C library is not installed")
    assert done.returncode == 0, done.stderr
    shutil.copy(build / "run", root / "run")
    config = small_config()
    engine_files.write(root / "model.slm", config, engine_files.random_tensors(config, 1))
    return root


def test_the_image_is_small(image: Path) -> None:
    assert (image / "run").stat().st_size + Q4_BYTES < MAX_BYTES


def test_the_program_runs_where_there_is_nothing_else(image: Path) -> None:
    (entry,) = (words for name, words in instructions(FILES[0]) if name == "ENTRYPOINT")
    alone = ["unshare", "--map-root-user", "chroot"]
    if shutil.which(alone[0]) is None or subprocess.run([*alone, "/", "true"]).returncode:
        pytest.skip("a user of this system may not change the root folder")
    alone.append(str(image))
    story = [*entry, "--seed", "7", "ab"]
    inside = subprocess.run([*alone, *story], capture_output=True, check=True).stdout
    outside = [str(image / word.strip("/")) for word in entry] + story[len(entry) :]
    assert inside == subprocess.run(outside, capture_output=True, check=True).stdout
    assert inside.startswith(b"ab")
