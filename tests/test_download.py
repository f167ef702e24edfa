"""The download stage as it runs, against a local server that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
REVISION = "f54c09fd23315a6f9c86f9dc80f725de7d8f9c64"
PREFIX = f"/datasets/roneneldan/TinyStories/resolve/{REVISION}/"
# huggingface_hub writes 10 MiB at a time: a broken download leaves a trace only above that.
LARGE = 24 << 20


def stories(count: int, name: str) -> bytes:
    return b"".join(
        b"%s %d said\nhello.\n<|endoftext|>\n" % (name.encode(), i) for i in range(count)
    )


@dataclass
class Hub:
    """What the server has, how it misbehaves, and what it was asked."""

    files: dict[str, bytes]
    endpoint: str = ""
    size_error: int = 0
    digest_error: bool = False
    status: int = 200
    cut_at: int | None = None
    stall: bool = False
    cdn: bool = False
    gets: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(
        {
            "TinyStories-train.txt": stories(300, "Tom"),
            "TinyStories-valid.txt": stories(20, "Sue"),
            "TinyStoriesV2-GPT4-train.txt": stories(100, "Ben"),
            "TinyStoriesV2-GPT4-valid.txt": stories(10, "Amy"),
        }
    )
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            data = self._find(PREFIX)
            if data is None:
                return
            if hub.cdn:
                self.send_response(302)
                location = hub.endpoint.replace("127.0.0.1", "localhost") + "/cdn/"
                self.send_header("Location", location + self.path.removeprefix(PREFIX))
                self.send_header("Content-Length", "0")
            else:
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Accept-Ranges", "bytes")
            digest = hashlib.sha256(data + b"!" * hub.digest_error).hexdigest()
            self.send_header("ETag", '"of-the-pointer"')
            self.send_header("X-Linked-Etag", f'"{digest}"')
            self.send_header("X-Linked-Size", str(len(data) + hub.size_error))
            self.send_header("X-Repo-Commit", REVISION)
            self.end_headers()

        def do_GET(self) -> None:
            data = self._find("/cdn/" if hub.cdn else PREFIX)
            if data is None:
                return
            asked = self.headers.get("Range")
            hub.gets.append((self.path.rsplit("/", 1)[1], asked))
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            if hub.cut_at is None:
                self.wfile.write(data[start:])
                return
            self.wfile.write(data[start : hub.cut_at])
            hub.cut_at = None
            if hub.stall:
                released.wait()
            self.close_connection = True

        def _find(self, prefix: str) -> bytes | None:
            data = hub.files.get(self.path.removeprefix(prefix))
            if hub.status == 200 and data is not None:
                return data
            self.send_response(404 if hub.status == 200 else hub.status)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield hub
    released.set()
    server.shutdown()
    thread.join()
    server.server_close()


class Stage:
    """`python -m stages.download` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.configure(source="tinystories")

    def configure(self, **corpus: object) -> None:
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        params["corpus"] |= corpus
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params))

    def start(self, endpoint: str) -> subprocess.Popen[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "STORY"))}
        environment |= {
            "PYTHONPATH": str(ROOT),
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(self.folder / "hf"),
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "stages.download"],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def succeeds(self, endpoint: str) -> str:
        process = self.start(endpoint)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return output

    def fails(self, endpoint: str) -> str:
        """Run to an error of one sentence that leaves no corpus; return the sentence."""
        process = self.start(endpoint)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1, errors
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1, errors
        assert not list(self.folder.glob("data/corpus/*"))
        return errors

    def corpus(self) -> tuple[bytes, bytes]:
        folder = self.folder / "data/corpus"
        return (folder / "train.txt").read_bytes(), (folder / "valid.txt").read_bytes()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.mark.parametrize("cdn", [False, True])
@pytest.mark.parametrize(
    ("edition", "prefix"), [("v1", "TinyStories"), ("v2-gpt4", "TinyStoriesV2-GPT4")]
)
def test_downloads_both_files_once(
    hub: Hub, stage: Stage, edition: str, prefix: str, cdn: bool
) -> None:
    hub.cdn = cdn
    stage.configure(source="tinystories", edition=edition)
    stage.succeeds(hub.endpoint)
    names = [f"{prefix}-train.txt", f"{prefix}-valid.txt"]
    assert stage.corpus() == tuple(hub.files[name] for name in names)
    assert hub.gets == [(name, None) for name in names]
    stage.succeeds(hub.endpoint)
    assert len(hub.gets) == 2


def test_killed_download_goes_on_where_it_stopped(hub: Hub, stage: Stage) -> None:
    name = "TinyStories-train.txt"
    hub.files[name] = stories(LARGE // 30, "Tom")
    hub.cut_at, hub.stall = LARGE // 2, True
    process = stage.start(hub.endpoint)
    kept = 0
    deadline = time.monotonic() + 30
    while not kept and time.monotonic() < deadline:
        time.sleep(0.02)
        kept = sum(path.stat().st_size for path in stage.folder.rglob("*.partial"))
    process.kill()
    process.communicate()
    assert 0 < kept < len(hub.files[name])

    stage.succeeds(hub.endpoint)
    first, second, _ = hub.gets
    assert first == (name, None)
    assert second[0] == name
    assert int(re.fullmatch(r"bytes=(\d+)-", second[1])[1]) >= kept
    assert stage.corpus()[0] == hub.files[name]


def test_broken_connection_is_taken_up_again(hub: Hub, stage: Stage) -> None:
    hub.files["TinyStories-train.txt"] = stories(LARGE // 30, "Tom")
    hub.cut_at = LARGE // 2
    stage.succeeds(hub.endpoint)
    assert stage.corpus()[0] == hub.files["TinyStories-train.txt"]


@pytest.mark.parametrize("size_error", [-1, 1])
def test_wrong_size_is_refused(hub: Hub, stage: Stage, size_error: int) -> None:
    hub.size_error = size_error
    assert "size" in stage.fails(hub.endpoint)
    hub.size_error = 0
    stage.succeeds(hub.endpoint)
    assert stage.corpus()[0] == hub.files["TinyStories-train.txt"]


def test_wrong_content_is_refused_and_not_resumed(hub: Hub, stage: Stage) -> None:
    hub.digest_error = True
    assert "SHA-256" in stage.fails(hub.endpoint)
    hub.digest_error = False
    stage.succeeds(hub.endpoint)


def test_partial_file_of_something_else_is_refused(hub: Hub, stage: Stage) -> None:
    partial = stage.folder / ".storyllamas/downloads" / REVISION / "TinyStories-train.txt.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * 100)
    assert "SHA-256" in stage.fails(hub.endpoint)
    stage.succeeds(hub.endpoint)
    assert stage.corpus()[0] == hub.files["TinyStories-train.txt"]


def test_partial_file_that_is_too_long_is_begun_anew(hub: Hub, stage: Stage) -> None:
    partial = stage.folder / ".storyllamas/downloads" / REVISION / "TinyStories-train.txt.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * (len(hub.files["TinyStories-train.txt"]) + 1))
    stage.succeeds(hub.endpoint)
    assert stage.corpus()[0] == hub.files["TinyStories-train.txt"]


def test_hubs_own_cache_is_looked_into_first(hub: Hub, stage: Stage) -> None:
    cache = stage.folder / "hf/hub/datasets--roneneldan--TinyStories"
    snapshot = cache / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    for name in ("TinyStories-train.txt", "TinyStories-valid.txt"):
        (snapshot / name).write_bytes(hub.files[name])
    stage.succeeds("http://127.0.0.1:9")
    assert stage.corpus()[1] == hub.files["TinyStories-valid.txt"]


def test_missing_file_is_named_with_its_status(hub: Hub, stage: Stage) -> None:
    del hub.files["TinyStories-valid.txt"]
    sentence = stage.fails(hub.endpoint)
    assert "TinyStories-valid.txt" in sentence
    assert "404" in sentence


def test_broken_server_is_named_with_its_status(hub: Hub, stage: Stage) -> None:
    hub.status = 503
    assert "503" in stage.fails(hub.endpoint)


def test_without_a_server_the_sentence_says_what_to_do(stage: Stage) -> None:
    sentence = stage.fails("http://127.0.0.1:9")
    for way_out in ("storybook", "HF_ENDPOINT", "folder", "http://127.0.0.1:9"):
        assert way_out in sentence
