"""`make report`: the numbers, stories and differences on its page, and that it needs no network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import engine_files
import pytest
import yaml
from conftest import ROOT

from bench import browser as headless
from storyllamas.errors import UserError

pytest.importorskip("plotly", reason="needs plotly")

from storyllamas.report import charts, collect, experiment, runs, stories, tables
from storyllamas.report.__main__ import main
from storyllamas.report.collect import Report
from storyllamas.report.page import html

EVIL = "<script>alert(1)</script>&\"'"
"""A piece of the vocabulary, which the model generates."""

METRICS = {
    "size": "2m", "recipe": "quick", "seed": 1, "parameters": 1574016, "steps": 20,
    "tokens": 40960, "train_loss": 2.5, "validation_loss": 2.25, "framed_bits_per_byte": 0.875,
    "seconds": 90.5,
}  # fmt: skip
EVALUATION = {
    "size": "2m",
    "f32": {"loss": 0.124135, "bytes": 6359168, "tokens_per_second": 7321},
    "q8": {"loss": 0.124181, "bytes": 1685632, "tokens_per_second": 17806},
    "pytorch": {"tokens_per_second": 155},
    "parity": {"max_relative_logit_error": 7.02073e-07},
    "measures": {
        "memory": {"copied": 0.913, "longest_run": 61},
        "judges": [{"grade": 7.5}, {"grade": 8.25}],
        "a_new_one": 12345.5,
    },
}


class Page(HTMLParser):
    """What a page has in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.values: list[tuple[str, str]] = []
        self.text = ""
        self._value: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "srcset", "data", "poster") or (name == "href" and tag == "link"):
                self.sources.append(value or "")
        self._value = dict(attributes)["value"] if tag == "data" else None

    def handle_data(self, data: str) -> None:
        if self._value is not None:
            self.values.append((self._value, data))
            self._value = None
        if self.cdata_elem is None:
            self.text += data


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    command = ["git", *who, *words]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def log(loss: float) -> str:
    rows = "".join(f"{step},{step * 2048},{loss + 2 / step}\n" for step in range(1, 21))
    return f"step,tokens,loss\n{rows}"


def lock(size: str, corpus: str) -> str:
    read = {
        "corpus.source": corpus,
        "model": size,
        "recipes.quick.defaults": {"optimizer": "muon", "dropout": 0.0},
        f"recipes.quick.sizes.{size}": {"steps": 20, "dropout": 0.25},
        f"sizes.{size}": {"dim": 128, "layers": 4},
        "train": {"steps": None},
    }
    stage = {"cmd": "exec python -m stages.train", "params": {"params.yaml": read}}
    return yaml.safe_dump({"schema": "2.0", "stages": {f"train@{size}": stage}})


def write_run(folder: Path, size: str, corpus: str, loss: float) -> None:
    """Write the logs of a run, as `dvc repro` does."""
    (folder / "metrics").mkdir(exist_ok=True)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values |= {"model": size, "corpus": values["corpus"] | {"source": corpus}}
    for path, text in {
        "params.yaml": yaml.safe_dump(values),
        "dvc.lock": lock(size, corpus),
        "metrics/train.json": json.dumps(METRICS | {"size": size, "validation_loss": loss}),
        "metrics/steps.csv": log(loss),
        "metrics/validation.csv": log(loss),
    }.items():
        (folder / path).write_text(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with a run, an experiment of another size, and a model."""
    folder = tmp_path_factory.mktemp("report")
    git(folder, "init", "-q", "-b", "main")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").touch()
    stage = {"cmd": "true", "metrics": [{"metrics/train.json": {"cache": False}}]}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": stage}}))
    (folder / ".gitignore").write_text("/models\n/.dvc/tmp\n/.dvc/cache\n")
    write_run(folder, "7m", "tinystories", 1.75)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "7m")
    other = git(folder, "rev-parse", "HEAD")
    write_run(folder, "2m", "storybook", 2.25)
    (folder / "metrics/eval.json").write_text(json.dumps(EVALUATION))
    (folder / "metrics/corpus.json").write_text(json.dumps({"train": {"stories": 40000}}))
    git(folder, "add", "-A")
    git(folder, "commit", "--amend", "-qm", "2m")
    head = git(folder, "rev-parse", "HEAD")
    git(folder, "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/big", other)
    exported = folder / "models/2m/export"
    exported.mkdir(parents=True)
    vocabulary = engine_files.make_vocabulary([*engine_files.WORDS[:-1], EVIL.encode()])
    first, evil = (engine_files.word_id(index) for index in (4, 5))

    def logits(token: int) -> Any:
        row = engine_files.np.zeros(259 + len(engine_files.WORDS), engine_files.np.float32)
        row[{first: evil}.get(token, engine_files.EOS)] = 50
        return row

    for name in ("q8", "f32"):
        engine_files.write_chain(exported / f"{name}.slm", logits, vocabulary)
    return folder


@pytest.fixture(scope="module")
def report(finished: Path) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished)
        report = collect.collect(base="big")
        options = yaml.safe_load(Path("params.yaml").read_text())["generation"]
        assert report.generation == options
        given = collect.params.load()
        prompts = stories.generate(stories.weight_files(), ["a"], given.generation, 5)
    return replace(report, prompts=prompts)


@pytest.fixture(scope="module")
def text(report: Report, finished: Path) -> str:
    return html(report)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def leaves(value: object) -> list[float]:
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in leaves(each)]
    if isinstance(value, list):
        return [leaf for each in value for leaf in leaves(each)]
    return [float(value)] if isinstance(value, int | float) else []


def test_the_page_has_all_numbers_of_the_metrics(page: Page, report: Report) -> None:
    shown = [float(value) for value, _ in page.values]
    for number in (*leaves(EVALUATION), *leaves(METRICS)):
        assert number in shown
    assert all(float(value) == float(text.replace(",", "")) for value, text in page.values)
    measured = [
        float(each.value) for t in report.measures for row in t.rows for each in row if each.value
    ]
    assert sorted(measured) == sorted(leaves(EVALUATION))
    speeds = [each.value for row in report.speeds[0].rows for each in row if each.value]
    assert speeds == ["7321", "17806", "155"]


def test_the_page_says_what_was_trained_on_what(report: Report) -> None:
    values = {
        (each.caption, row[0].text): row[1].text for each in report.trained for row in each.rows
    }
    assert values["Model", "dim"] == "128"
    assert values["Corpus", "source"] == "storybook"
    assert values["Recipe", "dropout"] == "0.25"
    assert values["Recipe", "steps"] == "20"
    assert ("Training", "steps") not in values


def test_the_page_has_the_runs_of_experiments(page: Page, report: Report) -> None:
    labels = [(run.label, run.origin) for run in report.runs]
    assert labels == [
        ("2m, quick, storybook", "workspace"),
        ("7m, quick, tinystories", "experiment big"),
    ]
    assert "Here that is 7m, quick, tinystories (experiment big)." in " ".join(page.text.split())
    figure = charts.losses(report.runs).figure
    assert {note["text"] for note in figure["layout"]["annotations"]} == {
        "2m 1.81", "7m 1.60", "30m 1.41"
    }  # fmt: skip
    names = [chart.name for chart in charts.bits_per_byte(report.runs)]
    assert names == ["parameters", "tokens", "seconds"]


def test_the_page_shows_the_difference_from_another_experiment(report: Report) -> None:
    rows = {row[0].text: (row[1].text, row[2].text) for t in report.differences for row in t.rows}
    assert rows["model"] == ("7m", "2m")
    assert rows["corpus.source"] == ("tinystories", "storybook")
    assert rows["validation_loss"] == ("1.75", "2.25")


def test_the_text_of_a_story_stays_text(text: str, page: Page, report: Report) -> None:
    (prompt,) = report.prompts
    assert [story.model for story in prompt.stories] == ["2m f32", "2m q8"]
    assert prompt.stories[0].tokens[0].text == EVIL
    assert prompt.stories[0].tokens[-1].text == ""
    assert EVIL in page.text
    assert "<script>alert" not in text
    assert page.tags.count("script") == 4


def test_the_details_of_a_token_are_its_alternatives(report: Report) -> None:
    compact = stories.compact(report.prompts)
    chosen, percent, *alternatives = compact["stories"][0][0]
    assert compact["texts"][chosen] == EVIL
    assert percent == 100
    assert alternatives[:2] == [chosen, 100]
    assert len(alternatives) == 2 * stories.ALTERNATIVES


def test_the_page_loads_no_other_file(text: str, page: Page) -> None:
    assert set(page.sources) == {"data:,"}
    assert "default-src 'none'" in text
    outside = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"url\(|@import", outside)


def test_a_browser_shows_the_page(text: str, tmp_path: Path) -> None:
    """The charts are drawn, the arrow keys show a token's details, and nothing is fetched."""
    if not (shutil.which("chromedriver") and any(map(shutil.which, headless.BROWSERS))):
        pytest.skip("needs chromium and chromedriver")
    pytest.importorskip("selenium", reason="needs selenium")
    path = tmp_path / "report.html"
    path.write_text(text, encoding="utf-8")
    with headless.open_browser() as browser:
        size = {"width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(path.as_uri())
        found = browser.execute_script(
            """
            const token = document.querySelector(".story .t");
            token.focus();
            const before = document.getElementById("details").textContent;
            const key = new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true });
            token.dispatchEvent(key);
            return {
              charts: document.querySelectorAll(".chart .main-svg").length > 0,
              lines: document.querySelectorAll("#chart-losses .scatterlayer .trace").length,
              details: before,
              next: document.activeElement.className,
              width: document.documentElement.scrollWidth,
            };
            """
        )
        assert found["charts"]
        assert found["lines"] == 4
        assert EVIL in found["details"]
        assert "end" in found["next"]
        assert found["width"] == 360
        assert browser.get_log("browser") == []
        messages = [json.loads(each["message"]) for each in browser.get_log("performance")]
    requests = [
        message["message"]["params"]["request"]["url"]
        for message in messages
        if message["message"]["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in requests if not url.startswith(("data:", path.as_uri()))] == []


# ---- What is missing or wrong --------------------------------------------------------------------


def test_missing_files_are_sentences(report: Report) -> None:
    empty = replace(report, measures=[], prompts=[], speeds=[], base="", differences=[])
    shown = " ".join(Page(html(empty)).text.split())
    assert "metrics/eval.json does not exist: run dvc repro evaluate." in shown
    assert "There is no weight file in models/*/export: run dvc repro export." in shown
    assert "No speed was measured" in shown
    assert "make report BASE=EXP compares" in shown


def test_a_base_that_does_not_exist_is_an_error(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    with pytest.raises(UserError, match="BASE is 'nothing' and names no experiment"):
        collect.collect(base="nothing")


def test_a_folder_without_a_run_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report"])
    message = "error: metrics/train.json does not exist: train a model with `dvc repro` first"
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == message


@pytest.mark.parametrize(("text", "message"), [("{", "valid JSON"), ("[]", "a JSON object")])
def test_damaged_metrics_are_an_error(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("metrics").mkdir()
    Path("metrics/eval.json").write_text(text)
    with pytest.raises(UserError, match=f"metrics/eval.json is not {message}"):
        collect.documents.read("eval.json")


def test_a_damaged_log_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, "2m", "storybook", 2.0)
    Path("metrics/steps.csv").write_text("step,tokens,loss\n1,x,2\n")
    with pytest.raises(UserError, match="the logs of the run in metrics/ are damaged"):
        runs.present()


# ---- Parts ---------------------------------------------------------------------------------------


def test_the_run_cache_has_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, "2m", "storybook", 2.0)
    cached = {"metrics/train.json": json.dumps(METRICS | {"validation_loss": 1.5})}
    cached |= {path: log(1.5) for path in runs.LOGS[1:]}
    outs = []
    for number, (path, content) in enumerate(cached.items()):
        md5 = f"{number}" * 32
        file = tmp_path / "cache/files/md5" / md5[:2] / md5[2:]
        file.parent.mkdir(parents=True)
        file.write_text(content)
        outs.append({"path": path, "md5": md5})
    stage = yaml.safe_load(lock("2m", "storybook"))["stages"]["train@2m"] | {"outs": outs}
    for name, value in (("good", stage), ("lost", stage | {"outs": outs[:1]})):
        entry = tmp_path / "cache/runs/ab/abc" / name
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.write_text(yaml.safe_dump(value))
    found = runs.known(tmp_path / "cache")
    assert [(run.origin, run.metrics["validation_loss"]) for run in found] == [
        ("workspace", 2.0),
        ("run cache good", 1.5),
    ]
    assert found[1].corpus == "storybook"


def test_groups_that_share_a_key_are_one_table() -> None:
    found = tables.tables(EVALUATION)
    assert [each.caption for each in found] == [
        "Overall", "f32, q8, PyTorch", "C engine and PyTorch", "measures",
        "measures: memory", "measures: judges: 1, 2",
    ]  # fmt: skip
    assert [cell.text for cell in found[1].rows[0]] == [
        "loss, nats a token",
        "0.124135",
        "0.124181",
        "",
    ]


def test_markdown_tables_are_read() -> None:
    page = "# P\n\n## A\n\n### B\n\n| x | y |\n| --- | --- |\n| [m](m.md) | a\\|b |\n\n## C\n"
    (found,) = tables.markdown_tables(page)
    assert (found.caption, found.head) == ("A: B", ["x", "y"])
    assert [cell.text for cell in found.rows[0]] == ["m", "a|b"]


def test_a_long_curve_is_averaged() -> None:
    tokens, losses = charts.thinned(([float(i) for i in range(1000)], [2.0] * 1000))
    assert len(tokens) == 334
    assert (tokens[0], losses[0]) == (1.0, 2.0)
    assert charts.thinned(([1.0], [2.0])) == ([1.0], [2.0])


def test_parameters_that_changed_after_the_run_are_named() -> None:
    recorded = {"sizes.2m": {"dim": 128}, "train": {"steps": None}, "recipe": "quick"}
    now = {"sizes": {"2m": {"dim": 64}}, "train": {"steps": None}, "recipe": "quick"}
    assert experiment.changed(recorded, now) == ["sizes.2m.dim"]
