"""Sizes and sweeps: which experiments run, and how their results are printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from storyllamas import params
from storyllamas.errors import UserError
from storyllamas.experiments import dvc, losses, run
from storyllamas.experiments.run import Experiment, apply_changes, plan

RAW = yaml.safe_load((ROOT / "params.yaml").read_text())


def test_names_of_experiments_differ() -> None:
    sizes = [*plan(["2m", "7m"], "quick")]
    assert [each.name for each in sizes] == ["2m-quick", "7m-quick"]
    assert sizes[1].changes == {"model": "7m", "recipe": "quick"}
    sweep = [*plan(["2m"], "full", 200, [1e-3, 2e-3])]
    assert [each.name for each in sweep] == [
        "2m-full-steps-200-rate-0.001",
        "2m-full-steps-200-rate-0.002",
    ]
    wanted = {"model": "2m", "recipe": "full", "train.steps": 200, "train.learning_rate": 2e-3}
    assert sweep[1].changes == wanted


def test_changes_reach_the_run_and_leave_the_file_unchanged() -> None:
    (experiment,) = plan(["7m"], "fast", 30, [5e-3])
    recipe = params.parse(apply_changes(RAW, experiment.changes)).recipe
    assert (recipe.steps, recipe.learning_rate) == (30, 5e-3)
    assert yaml.safe_load((ROOT / "params.yaml").read_text()) == RAW


def test_an_invalid_value_is_an_error_before_the_first_run(tmp_path: Path) -> None:
    good, bad = plan(["2m"], "quick", 2, [1e-3, 3.0])
    with pytest.raises(UserError, match=r"train\.learning_rate is 3\.0"):
        run.run([good, bad], RAW)


class Repository:
    """A git repository with results that DVC could have stored as experiments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.git("init", "-q", "-b", "main")
        (folder / "params.yaml").write_text(yaml.safe_dump(RAW))
        for name in run.CODE:
            file = folder / name if "." in name else folder / name / "code"
            file.parent.mkdir(exist_ok=True)
            file.write_text("{}")
        self.head = self.commit("begin")

    def git(self, *words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
        done = subprocess.run(
            ["git", *who, *words], cwd=self.folder, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def commit(self, message: str) -> str:
        self.git("add", "-A")
        self.git("commit", "-qm", message)
        return self.git("rev-parse", "HEAD")

    def store(self, experiment: Experiment, loss: float, bits: float) -> None:
        """Store a result of the experiment as DVC does."""
        size = experiment.changes["model"]
        names = {"size": size, "recipe": "quick", "steps": 20, "parameters": int(loss * 100)}
        times = {
            "validation_loss": loss,
            "framed_bits_per_byte": bits,
            "tokens_per_second": 12345,
            "seconds": 90.0,
        }
        rows = "".join(f"{step},{step * 4096},{loss + 2 / step}\n" for step in range(1, 21))
        (self.folder / "metrics").mkdir(exist_ok=True)
        for path, text in {
            "params.yaml": yaml.safe_dump(apply_changes(RAW, experiment.changes)),
            "metrics/train.json": json.dumps({**names, **times}),
            "metrics/steps.csv": f"step,tokens,loss\n{rows}",
            "metrics/validation.csv": f"step,tokens,loss\n{rows}",
        }.items():
            (self.folder / path).write_text(text)
        commit = self.commit(experiment.name)
        self.git("reset", "-q", "--hard", self.head)
        self.git("update-ref", experiment.reference, commit)
        self.stored = commit

    def dvc(self, calls: list[tuple[str, ...]]) -> Callable[..., int]:
        """Return a stand-in for `dvc.run` that stores and removes results, and lists its calls."""

        def run_dvc(*words: str) -> int:
            calls.append(words)
            if words[1] == "remove":
                self.git("update-ref", "-d", Experiment(words[-1], {}).reference)
            if words[1] == "run":
                (name,) = (word.removeprefix("--name=") for word in words if "--name" in word)
                self.git("update-ref", Experiment(name, {}).reference, self.stored)
            return 0

        return run_dvc


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.chdir(tmp_path)
    return Repository(tmp_path)


def test_results_are_a_table_and_a_figure(repository: Repository) -> None:
    sizes = [*plan(["2m", "7m"], "quick", 20)]
    for experiment, loss in zip(sizes, (3.5, 2.25), strict=True):
        repository.store(experiment, loss, loss / 3)
    assert run.table(sizes).splitlines()[2:] == [
        "| 2m | quick | 20 | 3.5000 | 1.1667 | 12,345 | 1.5 |",
        "| 7m | quick | 20 | 2.2500 | 0.7500 | 12,345 | 1.5 |",
    ]
    runs = run.curves(sizes)
    assert [run.size for run in runs] == ["2m", "7m"]
    assert runs[0].train[0][-1] == pytest.approx(20 * 4096 / 1e6)
    losses.draw(runs)
    assert Path("metrics/losses.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_experiment_does_not_run_again(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(run.dvc, "run", repository.dvc(asked))
    done, new = plan(["2m", "7m"], "quick", 20)
    repository.store(done, 1.0, 1.0)
    run.run([done, new], RAW)
    assert [word for words in asked for word in words if "name" in word] == [f"--name={new.name}"]
    asked.clear()
    run.run([done], apply_changes(RAW, {"seed": 9}))
    assert [words[:2] for words in asked] == [("exp", "remove"), ("exp", "run")]
    for file in ("dvc.yaml", "stages/code", "storyllamas/code", "csrc/code"):
        asked.clear()
        (repository.folder / file).write_text("{stages: {}}")
        run.run([done], RAW)
        assert [words[:2] for words in asked] == [("exp", "remove"), ("exp", "run")], file
        repository.git("checkout", "-q", file)
    asked.clear()
    run.run([done], RAW)
    assert asked == []
    (repository.folder / "dvc.yaml").write_text("{stages: {}}")
    repository.commit("other code")
    run.run([done], RAW)
    assert [words[:2] for words in asked] == [("exp", "run")]


@pytest.mark.parametrize("ignored", ["remove", "run"])
def test_a_result_that_dvc_does_not_store_is_an_error(
    ignored: str, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC exits with status 0 all the same."""
    (experiment,) = plan(["2m"], "quick", 20)
    repository.store(experiment, 1.0, 1.0)
    works = repository.dvc([])
    monkeypatch.setattr(run.dvc, "run", lambda *words: (words[1] != ignored and works(*words)) or 0)
    message = {"remove": "DVC did not remove the experiment", "run": "but DVC stored no result at"}
    with pytest.raises(UserError, match=message[ignored]):
        run.run([experiment], apply_changes(RAW, {"seed": 9}))


def test_a_table_that_dvc_cannot_show_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.dvc, "run", lambda *_: 255)
    with pytest.raises(UserError, match="`dvc exp show` failed with status 255"):
        run.print_sweep()


def test_what_experiments_need_is_checked_before_the_first(
    repository: Repository,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(run.dvc, "run", lambda *words: calls.append(words))
    experiments = [*plan(["2m"], "quick", 20)]
    (repository.folder / "new").touch()
    repository.commit("another")
    shallow = tmp_path_factory.mktemp("shallow")
    source = f"file://{repository.folder}"
    subprocess.run(["git", "clone", "-q", "--depth", "1", source, shallow], check=True)
    monkeypatch.chdir(shallow)
    with pytest.raises(UserError, match="shallow clone: run `git fetch --unshallow` first"):
        run.run(experiments, RAW)
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    with pytest.raises(UserError, match=r"this folder has none \(fatal: .*: clone the project"):
        run.run(experiments, RAW)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="git is not installed"):
        run.run(experiments, RAW)
    assert dvc.environment()["GIT_AUTHOR_NAME"] == "storyllamas"
    assert calls == []


def test_git_is_read_as_utf8_in_any_locale(repository: Repository) -> None:
    (repository.folder / "text").write_text("ü “x”\n", encoding="utf-8")
    repository.commit("text")
    code = "from storyllamas.experiments import git; print(ascii(git.read_at('HEAD', 'text')))"
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    output = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | locale, check=True, capture_output=True
    ).stdout
    assert output.decode().strip() == ascii("ü “x”\n")


def forget_identity(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Configure git without a name and an address."""
    for name in [each for each in os.environ if each.startswith("GIT_")]:
        monkeypatch.delenv(name)
    (folder / "nobody").mkdir()
    (folder / ".git/info/exclude").write_text("/nobody\n")
    monkeypatch.setenv("HOME", str(folder / "nobody"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "nobody"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


def test_dvc_runs_where_git_has_no_identity(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC stashes changes of the workspace, for which git needs an identity."""
    forget_identity(monkeypatch, repository.folder)
    stage = {"cmd": "cp params.yaml copy", "params": ["seed"], "outs": ["copy"]}
    (repository.folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"copy": stage}}))
    (repository.folder / ".dvc").mkdir()
    (repository.folder / ".dvc/config").touch()
    (repository.folder / ".gitignore").write_text("/copy\n/.dvc/tmp\n/.dvc/cache\n")
    repository.commit("a stage")
    (repository.folder / "params.yaml").write_text(yaml.safe_dump(apply_changes(RAW, {"seed": 7})))
    assert dvc.run("exp", "run", "--quiet", "-S", "seed=8") == 0
    assert yaml.safe_load((repository.folder / "copy").read_text())["seed"] == 8


def test_an_identity_that_git_has_is_used(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_identity(monkeypatch, repository.folder)
    assert dvc.environment()["GIT_COMMITTER_NAME"] == "storyllamas"
    repository.git("config", "user.name", "me")
    repository.git("config", "user.email", "me@example.com")
    assert "GIT_COMMITTER_NAME" not in dvc.environment()
