"""The download stage in a process of its own, with a local server in place of the hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import pytest
import yaml
from conftest import PATIENCE, ROOT
from hub import Fault, Hub, nobody_listens, serving

from storyllamas.corpus.tinystories import FILES, PROMPTS, PUBLISHED, REVISION
from storyllamas.corpus.transfer import Published

TRAIN, VALID = FILES["v1"]
# Runs the stage with other published files and shorter pauses.
RUN = """
import json, sys
from storyllamas.corpus import tinystories
from storyllamas.corpus.transfer import RetrySettings, Published
for name, values in json.loads(sys.argv[1]).items():
    tinystories.PUBLISHED[name] = Published(*values)
tinystories.RETRIES = RetrySettings(pauses=(0.01, 0.02), timeout=60)
from stages.download import main
main()
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


class Stage:
    """The stage in its own folder; the published files are those of `hub`."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        self.folder = folder
        self.hub = hub
        self.published = hub.published()
        self.environment: dict[str, str] = {}
        self.configure(source="tinystories")

    def configure(self, **corpus: object) -> None:
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        params["corpus"] |= corpus
        self.folder.mkdir(exist_ok=True)
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params))

    def start(self) -> subprocess.Popen[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "STORY"))}
        environment = {
            "PYTHONPATH": str(ROOT),
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_HOME": str(self.folder / "hf"),
            "NO_PROXY": "127.0.0.1,localhost",
        }
        published = {name: astuple(values) for name, values in self.published.items()}
        return subprocess.Popen(
            [sys.executable, "-c", RUN, json.dumps(published)],
            cwd=self.folder,
            env=kept | environment | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def succeeds(self, *faults: Fault) -> str:
        self.hub.faults[:] = faults
        output = finished(self.start())
        assert self.corpus() == (self.hub.files[TRAIN], self.hub.files[VALID])
        return output

    def fails(self, *faults: Fault) -> str:
        """Run, check that an error of one sentence leaves no corpus, and return the sentence."""
        self.hub.faults[:] = faults
        process = self.start()
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1, errors
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1, errors
        assert not list(self.folder.glob("data/corpus/*"))
        return errors

    def corpus(self) -> tuple[bytes, bytes]:
        folder = self.folder / "data/corpus"
        return (folder / "train.txt").read_bytes(), (folder / "valid.txt").read_bytes()

    def prompts(self) -> list[str]:
        return json.loads((self.folder / "data/corpus/prompts.json").read_text())

    def kept(self, name: str) -> Path:
        return self.folder / ".storyllamas/downloads" / REVISION / name


def finished(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    return output


def wait_for_bytes(path: Path, count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists() or path.stat().st_size < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def stage(tmp_path: Path, hub: Hub) -> Stage:
    return Stage(tmp_path, hub)


@pytest.mark.parametrize("edition", ["v1", "v2-gpt4"])
def test_downloads_both_files_once(hub: Hub, stage: Stage, edition: str) -> None:
    hub.cdn = edition == "v1"
    stage.configure(source="tinystories", edition=edition)
    for _ in range(2):
        finished(stage.start())
        assert stage.corpus() == tuple(hub.files[name] for name in FILES[edition])
        assert hub.gets == [(name, 0) for name in (*FILES[edition], PROMPTS)]
        assert stage.prompts() == ["Tom said", "Sue saw"]


@pytest.mark.parametrize("cut", [1, 54_321])
def test_a_killed_download_resumes(hub: Hub, stage: Stage, cut: int) -> None:
    hub.cdn = True
    hub.faults.append(Fault(cut_at=cut, then="stall"))
    process = stage.start()
    wait_for_bytes(stage.kept(f"{TRAIN}.partial"), cut)
    process.kill()
    process.communicate()
    stage.succeeds()
    assert hub.gets == [(TRAIN, 0), (TRAIN, cut), (VALID, 0), (PROMPTS, 0)]


def test_two_processes_do_not_download_the_same_file(hub: Hub, tmp_path: Path) -> None:
    hub.faults.append(Fault(cut_at=1000, then="hold"))
    pair = [Stage(tmp_path / name, hub) for name in "ab"]
    for stage in pair:
        stage.environment["STORYLLAMAS_STATE"] = str(tmp_path / "state")
    first = pair[0].start()
    wait_for_bytes(tmp_path / "state/downloads" / REVISION / f"{TRAIN}.partial", 1000)
    second = pair[1].start()
    size = len(hub.files[TRAIN])
    assert f"downloading {size - 1000:,} of {size:,} bytes" in second.stdout.readline()
    assert second.stdout.readline().startswith("waiting for the process that downloads")
    hub.go.set()
    finished(first)
    finished(second)
    assert sorted(hub.gets) == [(PROMPTS, 0), (TRAIN, 0), (VALID, 0)]
    assert pair[0].corpus() == pair[1].corpus() == (hub.files[TRAIN], hub.files[VALID])


def test_a_busy_server_is_reported_and_tried_again(stage: Stage) -> None:
    output = stage.succeeds(Fault(status=503), Fault(cut_at=77), Fault(status=429))
    lines = [line for line in output.splitlines() if "; retry " in line]
    size = len(stage.hub.files[TRAIN])
    assert lines[0] == f"{TRAIN}: HTTP status 503 at byte 0 of {size:,}; retry 1 of 2 in 0 s"
    assert [line.split("; ")[1] for line in lines] == [
        f"retry {number} of 2 in 0 s" for number in (1, 1, 2)
    ]


def test_a_server_that_stays_broken_is_named_with_its_status(stage: Stage) -> None:
    sentence = stage.fails(*[Fault(status=503)] * 3)
    assert f"{TRAIN} could not be downloaded from {stage.hub.endpoint} (HTTP status 503" in sentence


def test_wrong_content_is_rejected_and_kept_under_another_name(hub: Hub, stage: Stage) -> None:
    wrong = hub.files[TRAIN].replace(b"Tom", b"Tim")
    sentence = stage.fails(Fault(body=wrong))
    bad = stage.kept(f"{TRAIN}.bad")
    for words in ("SHA-256", str(bad.relative_to(stage.folder)), "run it again to restart"):
        assert words in sentence
    assert bad.read_bytes() == wrong
    stage.succeeds()


def test_missing_file_is_named_with_its_status(hub: Hub, stage: Stage) -> None:
    del hub.files[VALID]
    sentence = stage.fails()
    assert VALID in sentence
    assert "404" in sentence


def test_a_dataset_without_prompts_is_a_corpus(hub: Hub, stage: Stage) -> None:
    del hub.files[PROMPTS]
    sentence = stage.succeeds()
    assert f"there are no evaluation prompts: {PROMPTS} could not be downloaded" in sentence
    assert "404" in sentence
    assert stage.prompts() == []


def test_the_message_without_a_server_says_what_to_do(stage: Stage) -> None:
    with nobody_listens() as stage.hub.endpoint:
        sentence = stage.fails()
    for way_out in ("storybook", "HF_ENDPOINT", "corpus.mirror", "folder", stage.hub.endpoint):
        assert way_out in sentence


def test_offline_mode_is_reported(hub: Hub, stage: Stage) -> None:
    stage.environment["HF_HUB_OFFLINE"] = "1"
    assert "(HF_HUB_OFFLINE is set)" in stage.fails()
    assert hub.gets == []


def test_a_full_disk_is_reported_before_any_request(hub: Hub, stage: Stage) -> None:
    size = 1 << 60
    stage.published[TRAIN] = Published(size, "0" * 64)
    sentence = stage.fails()
    # Twice the size: the download, and the corpus files made from it.
    assert f"corpus files need {2 * (size + len(hub.files[VALID])):,}" in sentence
    assert hub.gets == []


def cache_file(stage: Stage, name: str, data: bytes) -> None:
    path = stage.folder / "hf/hub/datasets--roneneldan--TinyStories/snapshots" / REVISION / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def test_the_hubs_cache_is_used_first(hub: Hub, stage: Stage) -> None:
    for name in (TRAIN, VALID, PROMPTS):
        cache_file(stage, name, hub.files[name])
    stage.succeeds()
    assert hub.gets == []


def test_a_damaged_file_in_the_hubs_cache_is_not_used(hub: Hub, stage: Stage) -> None:
    cache_file(stage, TRAIN, hub.files[TRAIN][:-9])
    for name in (VALID, PROMPTS):
        cache_file(stage, name, hub.files[name])
    assert "is not the published file" in stage.succeeds()
    assert hub.gets == [(TRAIN, 0)]


def test_a_mirror_behind_a_url(hub: Hub, stage: Stage) -> None:
    url = f"http://me:secret@{hub.endpoint.removeprefix('http://')}/mirror/"
    stage.configure(source="tinystories", mirror=url)
    wrong = b"!" + hub.files[TRAIN][1:]
    sentence = stage.fails(Fault(body=wrong))
    assert "SHA-256" in sentence
    assert f"from {hub.endpoint}/mirror/" in sentence
    assert "secret" not in sentence
    with nobody_listens() as stage.environment["HF_ENDPOINT"]:
        stage.succeeds(Fault(cut_at=100))
    assert hub.gets == [(TRAIN, 0), (TRAIN, 0), (TRAIN, 100), (VALID, 0), (PROMPTS, 0)]


def test_a_mirror_in_a_folder(hub: Hub, stage: Stage, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    stage.configure(source="tinystories", mirror=str(mirror))
    (mirror / TRAIN).write_bytes(hub.files[TRAIN])
    sentence = stage.fails()
    assert f"{mirror / VALID} cannot be used (No such file or directory)" in sentence
    (mirror / VALID).write_bytes(hub.files[VALID][::-1])
    assert "SHA-256" in stage.fails()
    (mirror / VALID).write_bytes(hub.files[VALID])
    assert f"there are no evaluation prompts: {mirror / PROMPTS} cannot be used" in stage.succeeds()
    assert stage.prompts() == []
    (mirror / PROMPTS).write_bytes(hub.files[PROMPTS])
    stage.succeeds()
    assert stage.prompts() == ["Tom said", "Sue saw"]
    assert hub.gets == []


def test_a_proxy_is_used(hub: Hub, stage: Stage) -> None:
    stage.environment = {
        "HTTP_PROXY": hub.endpoint,
        "http_proxy": hub.endpoint,
        "HF_ENDPOINT": "http://hub.invalid",
        "NO_PROXY": "",
        "no_proxy": "",
    }
    stage.succeeds()
    assert hub.hosts == ["hub.invalid"] * 3


def test_the_published_files_are_pinned() -> None:
    assert set(PUBLISHED) == {PROMPTS, *(name for names in FILES.values() for name in names)}
    assert len({values.sha256 for values in PUBLISHED.values()}) == 5
    assert all(int(values.sha256, 16) and len(values.sha256) == 64 for values in PUBLISHED.values())
