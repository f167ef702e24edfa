"""`storyllamas serve` over HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import engine_files
import httpx2
import numpy as np
import pytest
from conftest import PATIENCE, ROOT

from storyllamas.engine.engine import Engine
from storyllamas.server.app import create_app
from storyllamas.server.worker import QueueFullError

SLOTS, WAITING = 3, 4
CONTEXT = 100_000


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = engine_files.small_config(context=CONTEXT)
    path = tmp_path_factory.mktemp("server") / "tiny.slm"
    return engine_files.write(path, config, engine_files.random_tensors(config, 5))


@pytest.fixture(scope="module")
def engine(path: Path) -> Engine:
    return Engine(path)


@pytest.fixture(scope="module")
def client(path: Path) -> Iterator[httpx2.Client]:
    """A client of a server in a process of its own, which ends without an error."""
    page = path.parent / "page"
    page.mkdir()
    (page / "index.html").write_text("<p>A page")
    command = [sys.executable, "-m", "storyllamas", "serve", "--model", path, "--port", "0"]
    command += ["--web", page]
    limits = ["--slots", str(SLOTS), "--max-waiting", str(WAITING)]
    process = subprocess.Popen(
        [*command, *limits], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    line = process.stdout.readline()
    found = re.fullmatch(r"tiny at (http://127\.0\.0\.1:\d+)/v1\n", line)
    assert found, process.communicate()
    with httpx2.Client(base_url=found[1], timeout=PATIENCE) as client:
        yield client
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert errors == ""


def alone(engine: Engine, prompt: str, **options: Any) -> tuple[str, int]:
    story = engine.generate(prompt, **options)
    return "".join(story), story.tokens


def complete(client: httpx2.Client, **fields: Any) -> Any:
    answer = client.post("/v1/completions", json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(client: httpx2.Client, **fields: Any) -> list[Any]:
    with client.stream("POST", "/v1/completions", json=fields | {"stream": True}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_completion_is_the_text_of_the_engine(client: httpx2.Client, engine: Engine) -> None:
    answer = complete(client, prompt="ab é", seed=7, max_tokens=20, n=2, model="tiny")
    expected = [alone(engine, "ab é", seed=seed, max_tokens=20) for seed in (7, 8)]
    assert [choice["text"] for choice in answer["choices"]] == [text for text, _ in expected]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    prompt, tokens = 1 + len(engine.encode("ab é")), sum(count for _, count in expected)
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": tokens,
        "total_tokens": prompt + tokens,
    }
    assert (answer["object"], answer["model"]) == ("text_completion", "tiny")


def test_a_stream_has_the_same_text(client: httpx2.Client) -> None:
    fields = {"prompt": "a", "seed": 3, "max_tokens": 25, "n": 3, "echo": True}
    whole = complete(client, **fields)
    *parts, last = events(client, **fields, stream_options={"include_usage": True})
    texts, reasons = [""] * 3, [None] * 3
    for part in parts:
        (choice,) = part["choices"]
        assert reasons[choice["index"]] is None
        texts[choice["index"]] += choice["text"]
        reasons[choice["index"]] = choice["finish_reason"]
    assert texts == [choice["text"] for choice in whole["choices"]]
    assert reasons == [choice["finish_reason"] for choice in whole["choices"]]
    assert all(text.startswith("a") for text in texts)
    assert last["usage"] == whole["usage"]
    assert len({part["id"] for part in parts}) == 1


def test_many_clients_get_what_each_would_get_alone(client: httpx2.Client, engine: Engine) -> None:
    def ask(seed: int) -> str:
        fields = {"prompt": "ab" * (seed % 3), "seed": seed, "max_tokens": 10 + seed}
        return complete(client, **fields)["choices"][0]["text"]

    with ThreadPoolExecutor(SLOTS + WAITING) as pool:
        texts = list(pool.map(ask, range(20)))
    for seed, text in enumerate(texts):
        assert text == alone(engine, "ab" * (seed % 3), seed=seed, max_tokens=10 + seed)[0]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_a_completion(client: httpx2.Client, engine: Engine, stream: bool) -> None:
    text, _ = alone(engine, "a", seed=1, max_tokens=60)
    assert len(text) > 20
    stop = text[10:14]
    fields = {"prompt": "a", "seed": 1, "max_tokens": 60, "stop": ["no such text", stop]}
    if stream:
        choices = [part["choices"][0] for part in events(client, **fields)]
        found, reason = "".join(each["text"] for each in choices), choices[-1]["finish_reason"]
    else:
        (choice,) = complete(client, **fields)["choices"]
        found, reason = choice["text"], choice["finish_reason"]
    assert (found, reason) == (text[: text.index(stop)], "stop")


def test_a_client_that_goes_away_frees_its_slots(client: httpx2.Client) -> None:
    """More streams than there are slots, each of which would take minutes."""
    fields = {"max_tokens": CONTEXT, "stream": True, "n": SLOTS, "ignore_eos": True}
    for _ in range(4):
        with client.stream("POST", "/v1/completions", json=fields) as answer:
            assert answer.status_code == 200
            next(answer.iter_lines())
        until_idle(client)
    complete(client, prompt="a", max_tokens=3)
    values = client.get("/metrics").text
    assert re.search(r"^storyllamas_sequences_waiting 0$", values, re.MULTILINE)


def test_a_client_that_does_not_wait_for_the_whole_frees_its_slots(client: httpx2.Client) -> None:
    fields = {"prompt": "a", "max_tokens": CONTEXT, "n": SLOTS, "ignore_eos": True}
    with pytest.raises(httpx2.ReadTimeout):
        client.post("/v1/completions", json=fields, timeout=1)
    until_idle(client)


def until_idle(client: httpx2.Client) -> None:
    """Wait until the server knows that its clients have gone away."""
    deadline = time.monotonic() + PATIENCE
    while not re.search(
        r"^storyllamas_sequences_running 0$", client.get("/metrics").text, re.MULTILINE
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)


class FullWorker:
    """A worker whose queue is full; tests/test_server_worker.py fills a real one."""

    def submit(self, sequences: object) -> None:
        raise QueueFullError("7 of 7 places for sequences are taken: try again later")


def test_a_full_queue_is_status_429(engine: Engine) -> None:
    app = create_app(engine, FullWorker(), "tiny", SLOTS)  # type: ignore[arg-type]

    async def ask() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://tiny") as client:
            return await client.post("/v1/completions", json={"prompt": "a"})

    answer = asyncio.run(ask())
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"
    assert "places for sequences are taken" in answer.json()["error"]["message"]


def test_a_client_that_goes_away_while_it_sends_is_no_error(client: httpx2.Client) -> None:
    """What the server prints would be an error of the fixture."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as half:
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n"
        half.sendall(head.encode() + b"{}")
    complete(client, prompt="a", max_tokens=3)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 400, "the body is not a JSON object"),
        (b'{"model": "gpt"}', 400, "model is 'gpt', and this server has 'tiny'"),
        (b'{"tools": 1}', 400, "tools is not supported: leave it out"),
        (b'{"max_tokens": -1}', 400, "max_tokens is -1: "),
        (b'{"prompt": [100000]}', 400, "token 100000 is not in the vocabulary, which has"),
        (b'{"stop": ""}', 400, "stop is '': "),
        (b'{"prompt": "a", "n": 8}', 400, "8 sequences, and this server takes at most 7 at a time"),
        (b'{"prompt": [[]]}', 400, "prompt is an empty list of ids"),
        (b" " * (2 << 20), 413, "the body has more than 1048576 bytes: send a shorter one"),
        (b'{"prompt": "%s"}' % (b"ab " * 120_000), 400, "prompt has .* tokens, and the model's"),
    ],
)
def test_what_the_server_rejects(
    client: httpx2.Client, body: bytes, status: int, sentence: str
) -> None:
    answer = client.post("/v1/completions", content=body)
    assert answer.status_code == status, answer.text
    assert re.search(sentence, answer.json()["error"]["message"])


def test_several_prompts_and_ids(client: httpx2.Client, engine: Engine) -> None:
    options = {"seed": 2, "max_tokens": 9}
    expected = [alone(engine, prompt, **options)[0] for prompt in ("a", "b é")]
    answer = complete(client, prompt=["a", "b é"], **options)
    assert [choice["text"] for choice in answer["choices"]] == expected
    ids = [[engine.bos_id, *engine.encode(prompt)] for prompt in ("a", "b é")]
    answer = complete(client, prompt=ids, n=2, echo=True, **options)
    texts = [choice["text"] for choice in answer["choices"]]
    assert [texts[0], texts[2]] == ["a" + expected[0], "b é" + expected[1]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(client: httpx2.Client, engine: Engine, stream: bool) -> None:
    """Of the echoed prompt and of the completion; each text stands at its offset."""
    prompt = "ab é"
    fields = {"prompt": prompt, "seed": 4, "max_tokens": 15, "logprobs": 2, "echo": True}
    if stream:
        parts = [part["choices"][0] for part in events(client, **fields)]
        text = "".join(part["text"] for part in parts)
        shown = {
            name: [value for part in parts for value in part["logprobs"][name]]
            for name in parts[0]["logprobs"]
        }
    else:
        (choice,) = complete(client, **fields)["choices"]
        text, shown = choice["text"], choice["logprobs"]
    story = engine.generate(prompt, seed=4, max_tokens=15)
    assert text == prompt + "".join(story)
    ids = [engine.bos_id, *engine.encode(prompt), *story.ids]
    assert shown["token_logprobs"] == pytest.approx(engine.score(ids).tolist(), abs=1e-5)
    assert all(len(top) == 2 for top in shown["top_logprobs"])
    best = engine.logits(ids[:-1]).max(axis=1) - np.logaddexp.reduce(
        engine.logits(ids[:-1]), axis=1
    )
    assert [max(top.values()) for top in shown["top_logprobs"]] == pytest.approx(best, abs=1e-5)
    for token, offset in zip(shown["tokens"], shown["text_offset"], strict=True):
        expected = token.lstrip() if offset == 0 else token
        # Bytes that are no character show when the next token comes, in front of its text.
        at = text.index(expected, offset) if not token.startswith("bytes:") else offset
        assert set(text[offset:at]) <= {"\ufffd"}
    assert any(token.startswith("bytes:") for token in shown["tokens"])


def test_offsets_of_bytes_that_are_no_characters(client: httpx2.Client, engine: Engine) -> None:
    a, *_ = engine.encode("a")
    spelt = [engine.encode(chr(0x80 + each))[-1] for each in (0x14, 0x2C)]  # C2 94 and C2 AC
    first = engine.encode("€")[-3]  # E2 82 AC
    euro = engine.encode("€")[-3:]
    ids = [engine.bos_id, a, spelt[0], a, *euro, a, first, a, spelt[1], spelt[1], a]
    fields = {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0}
    (choice,) = complete(client, **fields)["choices"]
    text, shown = choice["text"], choice["logprobs"]
    assert text == "a\ufffd a€ a\ufffd a\ufffd\ufffd a"
    assert shown["text_offset"] == [0, 1, 2, 4, 5, 5, 5, 7, 8, 10, 11, 12]


def test_logprobs_of_a_prompt_alone(client: httpx2.Client, engine: Engine) -> None:
    fields = {"prompt": "ab", "max_tokens": 0, "logprobs": 0, "echo": True}
    (choice,) = complete(client, **fields)["choices"]
    scores = engine.score([engine.bos_id, *engine.encode("ab")]).tolist()
    assert (choice["text"], choice["finish_reason"]) == ("ab", "length")
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(scores, abs=1e-5)
    assert choice["logprobs"]["top_logprobs"] is None


def test_the_other_pages(client: httpx2.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    answer = client.get("/")
    assert answer.text == "<p>A page"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert answer.headers["cross-origin-embedder-policy"] == "require-corp"
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["tiny"]
    before = counter(client, "requests_total")
    complete(client, prompt="a", max_tokens=3)
    assert counter(client, "requests_total") == before + 1
    assert client.get("/v1/nothing").status_code == 404
    for method, path, status, use in (
        ("GET", "/nothing", 404, "/v1/completions, /v1/models, /health or /metrics"),
        ("POST", "/health", 405, "GET"),
    ):
        answer = client.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"]["message"].endswith(f": use {use}")
    chat = client.post("/v1/chat/completions", json={})
    assert chat.status_code == 404
    assert "/v1/chat/completions is not served" in chat.json()["error"]["message"]
    for wrong, method in (("GET", "POST"), ("PUT", "POST"), ("POST", "GET"), ("PUT", "GET")):
        path = "completions" if method == "POST" else "models"
        answer = client.request(wrong, f"/v1/{path}")
        assert answer.status_code == 405
        assert answer.json()["error"]["message"].endswith(f"/v1/{path}: use {method}")


def counter(client: httpx2.Client, name: str) -> int:
    found = re.search(rf"^storyllamas_{name} (\d+)$", client.get("/metrics").text, re.MULTILINE)
    assert found
    return int(found[1])


def test_a_slow_reader_delays_nobody(client: httpx2.Client) -> None:
    fields = {"prompt": "a", "max_tokens": CONTEXT, "stream": True, "ignore_eos": True}
    with client.stream("POST", "/v1/completions", json=fields) as slow:
        next(slow.iter_lines())
        ended = threading.Event()

        def ask() -> None:
            complete(client, prompt="b", max_tokens=50)
            ended.set()

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        assert ended.wait(PATIENCE)


def test_the_openai_client(client: httpx2.Client, engine: Engine) -> None:
    openai = pytest.importorskip("openai")
    api = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0)
    expected, _ = alone(engine, "ab", seed=5, max_tokens=20)
    options = {"model": "tiny", "prompt": "ab", "seed": 5, "max_tokens": 20}
    assert api.completions.create(**options).choices[0].text == expected
    parts = api.completions.create(**options, stream=True)
    assert "".join(part.choices[0].text for part in parts if part.choices) == expected
    assert [model.id for model in api.models.list()] == ["tiny"]


def test_addresses_that_cannot_be_used(path: Path) -> None:
    command = [sys.executable, "-m", "storyllamas", "serve", "--model", path]
    for options, sentence in (
        (["--port", "70000"], "port is 70000 and must be 0 to 65535"),
        (["--port", "-1"], "port is -1 and must be 0 to 65535"),
        (["--host", "192.0.2.1"], "cannot listen at 192.0.2.1 port 8080 "),
        (["--slots", "257"], "slots is 257 and must be 1 to 256"),
        (["--web", path.parent], f"{path.parent} has no index.html: build the page"),
    ):
        done = subprocess.run(
            [*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {sentence}"), done.stderr
