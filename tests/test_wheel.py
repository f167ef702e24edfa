"""The source distribution builds a wheel, and the wheel works with cffi and NumPy alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from functools import cached_property
from importlib.metadata import distribution
from pathlib import Path

import pytest
from conftest import ROOT, made_once, quick_compiler_in

pytestmark = [
    pytest.mark.skipif(shutil.which("git") is None, reason="needs git"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
]

VISIBLE = ("cffi", "numpy", "pycparser")
"""The packages in the bare environment: the dependencies, and what cffi depends on."""


def run(*command: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options = {"cwd": cwd, "env": environment, "capture_output": True, "encoding": "utf-8"}
    done = subprocess.run([*map(str, command)], check=False, **options)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


def sources() -> list[str]:
    """Return the files that git knows or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = run(*command, cwd=ROOT).stdout.splitlines()
    return [name for name in names if (ROOT / name).is_file()]


@dataclass(frozen=True)
class Built:
    """A folder with the distributions and a bare virtual environment with the wheel."""

    folder: Path

    def build(self) -> None:
        """Build the source distribution from a copy of the repository, then the wheel from it."""
        for name in sources():
            (self.folder / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.folder / "clone" / name)
        self._backend("build_sdist", self.folder / "clone")
        with tarfile.open(self.sdist) as archive:
            archive.extractall(self.folder / "unpacked")
        (unpacked,) = (self.folder / "unpacked").iterdir()
        self._backend("build_wheel", unpacked)
        run(sys.executable, "-m", "venv", self.folder / "bare", cwd=self.folder)
        site = run(
            self.python,
            *("-c", "import sysconfig; print(sysconfig.get_path('purelib'))"),
            cwd=self.folder,
        ).stdout.strip()
        for package in VISIBLE:
            found = distribution(package)
            for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
                Path(site, top).symlink_to(Path(str(found.locate_file(top))).resolve())
        install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index")
        run(self.python, *install, self.wheel, cwd=self.folder)

    def _backend(self, hook: str, where: Path) -> None:
        code = f"from setuptools import build_meta; build_meta.{hook}({str(self.folder)!r})"
        compiler = f"CC={quick_compiler_in(self.folder)}"
        run("env", compiler, sys.executable, "-c", code, cwd=where)

    @property
    def python(self) -> Path:
        return self.folder / "bare" / "bin" / "python"

    @property
    def sdist(self) -> Path:
        return next(self.folder.glob("*.tar.gz"))

    @property
    def wheel(self) -> Path:
        return next(self.folder.glob("*.whl"))

    @cached_property
    def names(self) -> list[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return archive.namelist()

    @cached_property
    def metadata(self) -> Message:
        (name,) = (name for name in self.names if name.endswith(".dist-info/METADATA"))
        with zipfile.ZipFile(self.wheel) as archive:
            return Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Return the distributions; the first of several test processes builds them."""
    pytest.importorskip("ensurepip", reason="needs ensurepip to make a virtual environment")
    return Built(made_once(tmp_path_factory, "distributions", lambda folder: Built(folder).build()))


def command(built: Built, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run(built.python.with_name("storyllamas"), *arguments, cwd=cwd, check=False)


def test_the_source_distribution_has_what_a_build_needs(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    needed = {name for name in sources() if re.match(r"csrc/.*\.[ch]$|storyllamas/", name)}
    assert needed - files == set()
    assert {"pyproject.toml", "setup.py", "LICENSE"} <= files
    others = {name for name in files if re.match(r"(csrc/build|tests|data|models|bench)/.", name)}
    assert others == {"tests/wheel_smoke.py"}


def test_the_wheel_is_for_all_versions_of_python(built: Built) -> None:
    assert re.fullmatch(r"storyllamas-[\d.]+-cp310-abi3-\w+\.whl", built.wheel.name)


def test_the_wheel_has_the_package_and_nothing_else(built: Built) -> None:
    package = {name for name in sources() if name.startswith("storyllamas/")}
    module = {"storyllamas/_engine.abi3.so"}
    assert {name for name in built.names if ".dist-info/" not in name} == package | module


def test_the_wheel_depends_on_cffi_and_numpy(built: Built) -> None:
    required = built.metadata.get_all("Requires-Dist") or []
    always = [each for each in required if "extra ==" not in each]
    assert [re.match(r"[\w-]+", each)[0] for each in always] == ["cffi", "numpy"]  # type: ignore[index]
    extras = built.metadata.get_all("Provides-Extra") or []
    assert {"chat", "convert", "dev", "test", "train"} <= set(extras)


def test_the_description_has_no_link_into_the_repository(built: Built) -> None:
    assert re.findall(r"\]\((?!https?:)", str(built.metadata.get_payload())) == []


def test_it_generates_what_the_repository_generates(built: Built, tmp_path: Path) -> None:
    script = tmp_path / "wheel_smoke.py"
    shutil.copy(ROOT / "tests" / script.name, script)
    stories = run(built.python, script, cwd=tmp_path).stdout
    assert len(stories.splitlines()) == 6
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    expected = subprocess.run(
        [sys.executable, script], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert stories == expected.stdout, expected.stderr


def missing(package: str, extra: str) -> str:
    return f"error: {package} is not installed: run `pip install 'storyllamas[{extra}]'`\n"


def test_a_command_names_the_extra_that_it_needs(built: Built, tmp_path: Path) -> None:
    run(built.python, "-c", WRITE_MODEL, ROOT / "tests", cwd=tmp_path)
    assert command(built, "import", "model.bin", "--out", "m.slm", cwd=tmp_path).returncode == 0
    (tmp_path / "params.yaml").write_text("model: 2m\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "stories.parquet").write_bytes(b"PAR1")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for arguments, sentence in {
        "generate": missing("pydantic", "train"),
        "info": missing("pydantic", "train"),
        "corpus stories.parquet": missing("rich", "train"),
        "evaluate --model m.slm --stories stories.parquet": "error: reading stories.parquet "
        "requires the package pyarrow: pip install 'storyllamas[formats]'\n",
        "chat m.slm": missing("jinja2", "chat"),
        "import model.bin --out q4.slm --type q4": missing("torch", "convert"),
        "import model.gguf --out g.slm": missing("tokenizers", "convert"),
        "import folder --out h.slm": missing("tokenizers", "convert"),
        "export --model m.slm --to hf out": missing("tokenizers", "convert"),
        "export --model m.slm --to gguf out": missing("tokenizers", "convert"),
        "export --to llama2c out": missing("pydantic", "train"),
    }.items():
        done = command(built, *arguments.split(), cwd=tmp_path)
        assert (done.returncode, done.stderr) == (1, sentence), arguments
    assert sorted(path.name for path in tmp_path.glob("*.slm")) == ["m.slm"]


WRITE_MODEL = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import wheel_smoke
wheel_smoke.write_model(Path())
"""


def test_every_command_explains_itself(built: Built, tmp_path: Path) -> None:
    """The help of each command needs no extra either."""
    names = re.findall(r"^    ([a-z]+)(?= |$)", command(built, "--help", cwd=tmp_path).stdout, re.M)
    assert {"generate", "chat", "info", "export", "import", "completion"} <= set(names)
    for name in names:
        assert command(built, name, "--help", cwd=tmp_path).returncode == 0
    assert "complete" in command(built, "completion", "bash", cwd=tmp_path).stdout
