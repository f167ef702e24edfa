"""`dvc repro` and `dvc exp run` do what a DVC user expects; on a small model, in a copy."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, made_once, quick_compiler_in
from tokenizers import Tokenizer

from storyllamas import params, tokenizer
from storyllamas.tokenizer.byte_level import ByteLevelTokenizer

BIN = Path(sys.executable).parent

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")

SMALL = {
    "corpus": {"stories": 400, "valid_stories": 20},
    "tokenizer": {"vocab_size": 400},
    "recipes": {"quick": {"sizes": {"2m": {"steps": 12}, "7m": {"steps": 6}}}},
    "train": {"tokens_per_step": 512, "micro_batch": 4, "eval_every": 4, "eval_sequences": 4},
    "compute": {"threads": 1, "checkpoint_seconds": 1},
    "evaluation": {
        "stories": 4, "samples": 2, "parity_stories": 1, "speed_tokens": 8,
        "prompts": ["Once upon a time"],
    },
}  # fmt: skip
SHAPE = {"dim": 32, "layers": 1, "heads": 2, "kv_heads": 2, "head_dim": 16, "hidden": 64}


def merged(values: dict, changes: dict) -> dict:
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(values.get(key), dict)
        values[key] = merged(values[key], value) if both else value
    return values


class Workspace:
    """A folder with the project, and its own commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        """Copy the project, with small parameters, and commit it."""
        folder = self.folder
        folder.mkdir(exist_ok=True)
        tracked = self._output("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT)
        for name in tracked.splitlines():
            if (ROOT / name).is_file() and not name.startswith(("metrics/", "bench/", "dvc.lock")):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        values = merged(yaml.safe_load((ROOT / "params.yaml").read_text()), SMALL)
        for size in values["sizes"].values():
            size |= SHAPE | {"context": 64}
        values["sizes"]["7m"]["layers"] = 2
        (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        self._output("git", "init", "-q", "-b", "main")
        quick_compiler_in(folder / ".git")
        self.commit("begin")

    def commit(self, message: str) -> None:
        self._output("git", "add", "-A")
        who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        self._output("git", *who, "commit", "-qm", message)

    def edit(self, pattern: str, line: str) -> None:
        """Replace the line of params.yaml that a pattern finds."""
        file = self.folder / "params.yaml"
        text, count = re.subn(pattern, line, file.read_text(), flags=re.MULTILINE)
        assert count == 1, pattern
        file.write_text(text)

    def run(self, *command: str, code: int = 0) -> str:
        done = subprocess.run(command, **self.options())
        assert done.returncode == code, done.stdout
        return done.stdout

    def options(self) -> dict:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("STORYLLAMAS")}
        environment |= {"PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        environment["CC"] = str(self.folder / ".git" / "cc")
        environment["SHELL"] = "/bin/sh"  # some stay as the parent of the command that they run
        environment |= {f"GIT_{who}_{what}": "a@example.com" for who in ("AUTHOR", "COMMITTER")
                        for what in ("NAME", "EMAIL")}  # fmt: skip
        return {
            "cwd": self.folder,
            "env": environment,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "text": True,
        }

    def _output(self, *command: str, cwd: Path | None = None) -> str:
        return subprocess.run(
            command, cwd=cwd or self.folder, check=True, capture_output=True, text=True
        ).stdout

    def read(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text())

    def exported(self) -> dict[str, str]:
        """MD5 of each exported file."""
        return {
            path.name: hashlib.md5(path.read_bytes()).hexdigest()
            for path in sorted(self.folder.glob("models/2m/export/*"))
        }


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all stages once for all workers of pytest-xdist, and commit the results."""

    def make(folder: Path) -> None:
        space = Workspace(folder)
        space.fill()
        space.run("dvc", "repro")
        space.commit("run")

    return made_once(tmp_path_factory, "finished", make)


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Workspace:
    """Return a workspace of this test in which all stages have run."""
    shutil.copytree(finished, tmp_path / "workspace", symlinks=True)
    return Workspace(tmp_path / "workspace")


def stages_that_ran(output: str) -> list[str]:
    return re.findall(r"Running stage '([\w@]+)'", output)


def test_the_chain_ends_in_metrics_and_stories(workspace: Workspace) -> None:
    report = workspace.read("metrics/eval.json")
    assert report["size"] == "2m"
    assert report["parity"]["max_relative_logit_error"] < 1e-4
    assert report["parity"]["greedy_agreement"] == 1
    assert report["q8"]["loss"] == pytest.approx(report["f32"]["loss"], rel=0.01)
    assert report["q4"]["loss"] == pytest.approx(report["f32"]["loss"], rel=0.05)
    assert "Once upon a time" in (workspace.folder / "metrics/samples.md").read_text()
    train = workspace.read("metrics/train.json")
    assert train["steps"] == 12
    assert train["tokens"] == 12 * 512


def test_a_second_run_has_nothing_to_do(workspace: Workspace) -> None:
    assert "up to date" in workspace.run("dvc", "repro")
    assert workspace.run("git", "status", "--porcelain") == ""


def test_only_what_depends_on_a_change_runs_again(workspace: Workspace) -> None:
    before = workspace.exported()
    changes = ("-S", "train.learning_rate=2e-3", "-S", "shape.layers=3")
    output = workspace.run("dvc", "exp", "run", *changes)
    assert stages_that_ran(output) == ["train@2m", "export", "evaluate"]
    assert workspace.exported() != before
    assert workspace.read("models/2m/config.json")["model"]["layers"] == 3
    differences = workspace.run("dvc", "params", "diff")
    assert "train.learning_rate" in differences
    assert "shape.layers" in differences
    assert "f32.loss" in workspace.run("dvc", "metrics", "diff")
    workspace.run("git", "reset", "-q", "--hard")
    output = workspace.run("dvc", "repro")
    assert stages_that_ran(output) == []
    assert workspace.exported() == before


@pytest.mark.parametrize(
    ("pattern", "line", "stages"),
    [
        (r"^  vocab_size:.*$", "  vocab_size: 380", {"tokenizer", "train@2m"}),
        (r"^  layers:.*$", "  layers: 3", {"train@2m"}),
        (r"^  learning_rate:.*$", "  learning_rate: 2e-3", {"train@2m"}),
    ],
    ids=["vocabulary", "shape", "rate"],
)
def test_each_value_changes_the_stages_that_read_it(
    workspace: Workspace, pattern: str, line: str, stages: set[str]
) -> None:
    workspace.edit(pattern, line)
    changed = workspace.run("dvc", "status")
    assert set(re.findall(r"^([\w@]+):$", changed, re.M)) == stages


def test_values_that_ran_before_come_from_the_run_cache(workspace: Workspace) -> None:
    """Every stage does, with all that it wrote, metrics and the page of samples included."""
    before = {file: file.read_bytes() for file in (workspace.folder / "metrics").iterdir()}
    stages = ["download", "tokenizer", "pretokenize", "train@2m", "export", "evaluate"]
    assert stages_that_ran(workspace.run("dvc", "exp", "run", "-S", "seed=2")) == stages
    assert all(file.read_bytes() != text for file, text in before.items())
    output = workspace.run("dvc", "exp", "run", "-S", "seed=1")
    assert stages_that_ran(output) == []
    assert re.findall(r"Stage '([\w@]+)' is cached", output) == stages
    assert {file: file.read_bytes() for file in before} == before


def test_a_byte_level_tokenizer_runs_everything_after_it(workspace: Workspace) -> None:
    """The same metrics, samples and formats come of it; a file of the same name holds it."""
    change = ("-S", "tokenizer.kind=byte_level", "-S", "tokenizer.vocab_size=380")
    change += ("-S", "export.formats=[hf,gguf]")
    output = workspace.run("dvc", "exp", "run", *change)
    assert stages_that_ran(output) == ["tokenizer", "pretokenize", "train@2m", "export", "evaluate"]
    report = workspace.read("metrics/eval.json")
    assert report["parity"]["max_relative_logit_error"] < 1e-4
    assert report["parity"]["greedy_agreement"] == 1
    # 12 steps teach either kind about as much of a byte.
    assert report["f32"]["bits_per_byte"] == pytest.approx(
        json.loads(workspace.run("git", "show", "HEAD:metrics/eval.json"))["f32"]["bits_per_byte"],
        rel=0.2,
    )
    assert "Once upon a time" in (workspace.folder / "metrics/samples.md").read_text()
    folder = workspace.folder / "models/2m"
    assert (folder / "export/gguf/model.gguf").is_file()
    trained = tokenizer.load(workspace.folder / "models/tokenizer.model")
    assert isinstance(trained, ByteLevelTokenizer)
    assert workspace.read("models/2m/config.json")["tokenizer_sha256"] == trained.digest.hex()
    exported = Tokenizer.from_file(str(folder / "export/hf/tokenizer.json"))
    story = 'Once upon a time there was 1 café.\n\n"It\'s fine," said Tom.'
    assert exported.encode(story).ids == [trained.bos_id, *trained.encode(story)]


def test_cleaning_clean_stories_runs_nothing_after_it(workspace: Workspace) -> None:
    clean = ("-S", "corpus.clean.drop_duplicates=true", "-S", "corpus.clean.repair_encoding=true")
    output = workspace.run("dvc", "exp", "run", *clean)
    assert stages_that_ran(output) == ["download"]
    assert workspace.read("metrics/corpus.json")["train"]["stories"] == 400


def test_queued_experiments_run_in_workspaces_of_their_own(workspace: Workspace) -> None:
    output = workspace.run("dvc", "exp", "run", "--temp", "-S", "model=7m", "--name", "seven")
    assert stages_that_ran(output) == ["train@7m", "export", "evaluate"]
    assert workspace.run("git", "status", "--porcelain") == ""
    shown = workspace.run("dvc", "exp", "show", "--csv", "--num", "1")
    assert "seven" in shown
    workspace.run("dvc", "exp", "apply", "seven")
    assert workspace.read("metrics/train.json")["size"] == "7m"
    assert "7m" in workspace.run("dvc", "metrics", "diff", "--all")


def test_sizes_and_sweeps_leave_the_workspace_as_it_was(
    workspace: Workspace, tmp_path: Path
) -> None:
    options = workspace.options()
    names = {name for name in options["env"] if name.startswith("GIT_")}
    options["env"] = {k: v for k, v in options["env"].items() if k not in names}
    options["env"] |= {"HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}  # nobody's name

    def experiments(*words: str) -> str:
        command = [sys.executable, "-m", "storyllamas.experiments.run", *words, "--steps", "4"]
        return subprocess.run(command, **options, check=True).stdout

    with (workspace.folder / "README.md").open("a") as file:
        file.write("changed\n")
    before = workspace.run("git", "status", "--porcelain")
    output = experiments("sizes", "--sizes", "7m")
    assert stages_that_ran(output) == ["train@7m", "export", "evaluate"]
    assert "| 7m | quick | 4 | " in output
    (workspace.folder / "metrics/losses.png").unlink()
    output = experiments("sizes", "--sizes", "7m")
    assert stages_that_ran(output) == []
    assert "| 7m | quick | 4 | " in output
    drawn = workspace.run(sys.executable, "-m", "storyllamas.experiments.losses")
    assert drawn == "metrics/losses.png: 2m, 7m\n"
    (workspace.folder / "metrics/losses.png").unlink()
    output = experiments("sweep", "--sizes", "7m", "--rates", "3e-3")
    assert "[7m-quick-steps-4-rate-0.003]" in output
    assert "framed_bits_per_byte" in output
    assert workspace.run("git", "status", "--porcelain") == before


def test_a_killed_repro_resumes_to_the_same_files(workspace: Workspace) -> None:
    workspace.edit(r"^  steps:.*$", "  steps: 800")
    workspace.edit(r"^  eval_every:.*$", "  eval_every: 400")
    workspace.run("dvc", "repro", "export")
    unbroken = workspace.exported()
    workspace.run("git", "checkout", "-q", "HEAD", "--", "dvc.lock", "metrics")
    shutil.rmtree(workspace.folder / ".dvc/cache/runs")
    for _ in range(2):
        process = subprocess.Popen(["dvc", "repro", "export"], **workspace.options())
        states = workspace.folder / ".storyllamas"
        known = set(states.glob("runs/*/*.safetensors"))
        while process.poll() is None and set(states.glob("runs/*/*.safetensors")) <= known:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    output = workspace.run("dvc", "repro", "export")
    assert "resuming from step" in output
    assert workspace.exported() == unbroken
    assert not list(workspace.folder.glob(".storyllamas/runs/*"))


def test_a_kill_before_dvc_notes_the_result_does_not_train_again(workspace: Workspace) -> None:
    """DVC forgets a stage that has ended, as when it is killed before it writes dvc.lock."""
    workspace.edit(r"^  learning_rate:.*$", "  learning_rate: 7e-3")
    workspace.run("dvc", "repro", "train@2m")
    trained = (workspace.folder / "models/2m/model.safetensors").read_bytes()
    workspace.run("git", "checkout", "-q", "HEAD", "--", "dvc.lock")
    shutil.rmtree(workspace.folder / ".dvc/cache/runs")
    output = workspace.run("dvc", "repro", "export")
    assert stages_that_ran(output)[-2:] == ["train@2m", "export"]
    assert "resuming from step 12 of 12" in output
    assert "step 4/12" not in output
    assert (workspace.folder / "models/2m/model.safetensors").read_bytes() == trained
    assert not list(workspace.folder.glob(".storyllamas/runs/*"))


def test_a_misspelt_parameter_stops_the_run(workspace: Workspace) -> None:
    workspace.edit(r"^  steps:.*$", "  step: 5")
    output = workspace.run("dvc", "repro", code=255)
    assert "error: train.step is unknown" in output
    assert "Traceback" not in output


def test_each_stage_names_the_parameters_that_it_reads() -> None:
    """Every section of params.yaml decides some stage's result, and dvc.yaml says so."""
    named = {
        str(name).split(".")[0]
        for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
        for name in stage.get("params", [])
    }
    sections = set(yaml.safe_load((ROOT / "params.yaml").read_text()))
    assert sections - named == {"pretokenize"}  # how many threads: the result is the same
    assert params.load(ROOT / "params.yaml").pretokenize.threads == 0
