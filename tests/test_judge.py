"""The judge, against a local server that answers well and that misbehaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, ROOT

from storyllamas import cli
from storyllamas.errors import UserError
from storyllamas.judge.answers import Answers, default_journal
from storyllamas.judge.endpoint import Answer, Endpoint, RetrySettings, asked_wait, normalized
from storyllamas.judge.grades import Grades, MalformedError, read_grades, read_preference
from storyllamas.judge.questions import Story, comparison, grading
from storyllamas.judge.run import Judge, Settings
from storyllamas.judge.stories import pairs
from storyllamas.judge.summary import Mean, of_comparisons, of_grades

GRADES = {"grammar": 8, "creativity": 6.5, "consistency": 7, "plot": 5, "age_group": "C"}
GOOD = f"It is short. {json.dumps(GRADES)}"
KEY = "sk-very-secret"


@dataclass
class Reply:
    """What the server does with a request; `closed` cuts the connection after the body."""

    text: str | None = GOOD
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    closed: bool = False
    drip: bool = False

    def body(self) -> bytes:
        if self.raw is not None:
            return self.raw
        usage = {"prompt_tokens": 300, "completion_tokens": 20}
        message = {"role": "assistant", "content": self.text}
        return json.dumps({"choices": [{"message": message}], "usage": usage}).encode()


class Server:
    """A chat endpoint that gives the planned replies first, and then what `otherwise` returns."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.planned: list[Reply] = []
        self.otherwise: Callable[[dict[str, Any]], Reply] = lambda body: Reply()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/v1/chat/completions"
                server.requests.append(body)
                server.keys.add(self.headers["Authorization"])
                reply = server.planned.pop(0) if server.planned else server.otherwise(body)
                self.send(reply)

            def send(self, reply: Reply) -> None:
                content = reply.body()
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content) + reply.closed))
                self.end_headers()
                if reply.drip:
                    self.drip(content)
                else:
                    self.wfile.write(content)

            def drip(self, content: bytes) -> None:
                """Send a byte at a time, each of which arrives before a timeout."""
                try:
                    for byte in content:
                        self.wfile.write(bytes([byte]))
                        time.sleep(0.02)
                except OSError:
                    pass

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


class Waits(list[float]):
    """The waits of an endpoint, which take no time."""

    def __call__(self, stopped: threading.Event, seconds: float) -> bool:
        self.append(seconds)
        return stopped.is_set()


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Endpoint, "wait", lambda self, stopped, seconds: stopped.is_set())


def endpoint(server: Server, waits: Waits, timeout: float = 10) -> Endpoint:
    retries = RetrySettings(pauses=(1, 2, 4), jitter=0, timeout=timeout)
    made = Endpoint(server.url, KEY, retries)
    made.wait = waits
    return made


def ask(endpoint: Endpoint) -> Answer:
    body = Settings("a-judge").request(grading(Story("Once", " a cat sat."), 1))
    return endpoint.ask(body, read_grades)


# ---- Answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(GRADES),
        f"Good.\n```json\n{json.dumps(GRADES, indent=2)}\n```\nThat is all.",
        f"The form is {json.dumps(GRADES | {'plot': 0})}, so: {json.dumps(GRADES)}",
        f"<think>{{maybe}}</think>{json.dumps({'grades': GRADES})}",
        '{"Grammar": "8/10", "Creativity": "6.5", "consistency": 7.0, "plot": " 5 / 10",'
        ' "Age group": "c (6-7)"}',
    ],
)
def test_grades_are_found_in_an_answer(answer: str) -> None:
    assert read_grades(answer) == Grades(8, 6.5, 7, 5, "C")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "it has no JSON object with the grades"),
        ("Grammar: 8/10", "it has no JSON object with the grades"),
        ('{"grammar": 8, "creativity"', "it has no JSON object with the grades"),
        ('{"grammar": 8, "plot": 5}', "it has no age_group, consistency, creativity"),
        (json.dumps(GRADES | {"plot": 11}), "its plot is 11, not a number from 0 to 10"),
        (json.dumps(GRADES | {"plot": -1}), "its plot is -1"),
        (json.dumps(GRADES | {"plot": float("nan")}), "its plot is nan"),
        (json.dumps(GRADES | {"plot": True}), "its plot is True"),
        (json.dumps(GRADES | {"plot": "8/100"}), "its plot is '8/100'"),
        (json.dumps(GRADES | {"age_group": "adult"}), "its age group is 'adult'"),
        ('{"a":' * 4000, "it has no JSON object with the grades"),
    ],
)
def test_other_answers_are_malformed(answer: str, reason: str) -> None:
    with pytest.raises(MalformedError) as raised:
        read_grades(answer)
    assert str(raised.value).startswith(reason)


def test_preferences() -> None:
    values = [read_preference(f'I see. {{"better": {each}}}') for each in ("0", "1", '"2"')]
    assert values == [0, 1, 2]
    for wrong in ("3", "0.5", '"one"', "null"):
        with pytest.raises(MalformedError, match="the better completion is"):
            read_preference(f'{{"better": {wrong}}}')


# ---- The endpoint --------------------------------------------------------------------------------


def test_a_question_is_sent_as_a_chat(server: Server) -> None:
    waits = Waits()
    assert ask(endpoint(server, waits)) == Answer(GOOD, 300, 20)
    (request,) = server.requests
    (message,) = request.pop("messages")
    assert request == {"model": "a-judge", "seed": 1, "temperature": 0, "max_tokens": 500}
    assert message["role"] == "user"
    assert "Once ***  a cat sat." in message["content"]
    assert (server.keys, waits) == ({f"Bearer {KEY}"}, [])


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(status=429), "HTTP status 429"),
        (Reply(status=500), "HTTP status 500"),
        (Reply(status=503, raw=b"busy"), "HTTP status 503"),
        (Reply(closed=True), ""),
        (Reply(raw=b"<html>a proxy</html>"), "the response is not a chat completion"),
        (Reply(raw=b'{"choices": []}'), "the response is not a chat completion"),
        (Reply(raw=b"[" * 5000), "the response is not a chat completion"),
        (Reply(raw=b" " * (4 << 20 | 1)), "the answer has more than 4,194,304 bytes"),
    ],
)
def test_trouble_is_tried_again(server: Server, reply: Reply, reason: str) -> None:
    waits, notes = Waits(), []
    server.planned = [reply, reply]
    target = endpoint(server, waits)
    target.note = notes.append
    assert ask(target).text == GOOD
    assert waits == [1, 2]
    assert notes[0].startswith(reason)
    assert notes[0].endswith("; retry 1 of 3 in 1 s")
    server.planned = [reply] * 4
    with pytest.raises(UserError, match=r"gives no answer \(.*4 times in a row\): try again later"):
        ask(target)


def test_slow_answers_and_timeouts(server: Server) -> None:
    """A server that sends now and then a byte is as slow as one that sends nothing."""
    server.planned = [Reply(drip=True)]
    target = Endpoint(server.url, "", RetrySettings((), timeout=0.1))
    with pytest.raises(UserError, match=r"gives no answer \(no (whole )?answer in 0.1 s"):
        ask(target)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = Endpoint(
            f"http://127.0.0.1:{silent.getsockname()[1]}", "", RetrySettings((), timeout=0.1)
        )
        with pytest.raises(UserError, match=r"gives no answer \(no answer in 0.1 s"):
            ask(target)


def test_the_server_says_how_long_to_wait(server: Server) -> None:
    waits = Waits()
    server.planned = [Reply(status=429, headers={"Retry-After": "7"})]
    assert ask(endpoint(server, waits)).text == GOOD
    assert waits == [7]
    server.planned = [Reply(status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(UserError, match="asks to wait 3,600 s"):
        ask(endpoint(server, waits))
    assert asked_wait({"Retry-After": "Fri, 31 Dec 2100 23:59:59 GMT"}) > 1e9
    assert asked_wait({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}) == 0
    assert asked_wait({"Retry-After": "soon"}) == asked_wait({}) == 0


def test_a_malformed_answer_is_corrected(server: Server) -> None:
    waits = Waits()
    wrong = json.dumps(GRADES | {"plot": 11})
    server.planned = [Reply(text=wrong), Reply(text=None)]
    assert ask(endpoint(server, waits)) == Answer(GOOD, 900, 60)
    first, second, third = [each["messages"] for each in server.requests]
    assert second[:2] == [*first, {"role": "assistant", "content": wrong}]
    assert "its plot is 11, not a number from 0 to 10" in second[2]["content"]
    assert third[0] == first[0]
    assert [each["role"] for each in third] == ["user", "user"]
    server.otherwise = lambda body: Reply(text="I cannot grade this.")
    with pytest.raises(MalformedError, match="it has no JSON object"):
        ask(endpoint(server, waits))


@pytest.mark.parametrize(
    ("status", "hint"),
    [(401, "the right key"), (404, "check --endpoint"), (400, "--body"), (307, "--body")],
)
def test_a_rejected_request_is_not_tried_again(server: Server, status: int, hint: str) -> None:
    error = json.dumps({"error": {"message": f"no, {KEY}"}}).encode()
    server.planned = [Reply(status=status, raw=error, headers={"Location": server.url})]
    with pytest.raises(UserError, match=rf"HTTP status {status} \(no, …\): .*{hint}"):
        ask(endpoint(server, Waits()))
    assert len(server.requests) == 1


def test_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    waits = Waits()
    target = Endpoint(f"http://127.0.0.1:{port}/v1", retries=RetrySettings((1, 2)))
    target.wait = waits
    with pytest.raises(UserError, match="refused, 3 times in a row"):
        ask(target)
    assert len(waits) == 2


def test_addresses() -> None:
    base = "https://example.org/v1"
    assert {normalized(base + end) for end in ("", "/", "/chat/completions", "/ ")} == {base}
    for wrong in ("example.org", "ftp://example.org", "http://", ""):
        with pytest.raises(UserError, match="give an address such as"):
            normalized(wrong)
    for wrong in ("https://me:secret@example.org", "https://example.org?key=secret"):
        with pytest.raises(UserError, match="--key-variable") as raised:
            normalized(wrong)
        assert "secret" not in str(raised.value)
    with pytest.raises(UserError, match="the key has characters"):
        Endpoint(base, "a\nb")
    assert KEY not in repr(Endpoint(base, KEY))


# ---- Summaries -----------------------------------------------------------------------------------


def test_summary_of_grades() -> None:
    answers = [[Grades(8, 6, 7, 5, "C"), Grades(6, 6, 7, 5, "B")], [Grades(9, 2, 7, 5, "B"), None]]
    found = of_grades([*answers, [None, None]])
    assert found
    assert (found.stories, found.unanswered) == (2, 3)
    assert (found.grammar, found.creativity) == (Mean(8, 1), Mean(4, 2))
    assert found.age_groups == {"A": 0, "B": 2 / 3, "C": 1 / 3, "D": 0, "E": 0, "F": 0}
    assert of_grades([[None]]) is None


def test_summary_of_comparisons() -> None:
    """A judge that likes what it reads first gives a win rate of a half."""
    found = of_comparisons([[(1, 1)], [(2, 2)]])
    assert found
    assert (found.order_dependent, found.win_rate) == (1, Mean(0.5, 0))
    found = of_comparisons([[(1, 2), (0, 0)], [(2, 1), (1, 0)], [(1, None), (None, None)]])
    assert found
    assert (found.pairs, found.unanswered) == (2, 2)
    assert (found.wins, found.losses, found.ties, found.order_dependent) == (0.25,) * 4
    assert found.win_rate.mean == ((1 + 0.5) / 2 + (0 + 0.75) / 2) / 2
    assert of_comparisons([[(None, 1)]]) is None


def test_pairs_have_the_same_prompt() -> None:
    a = [Story("x", "1"), Story("y", "2"), Story("x", "3"), Story("z", "4")]
    b = [Story("y", "5"), Story("x", "6"), Story("x", "7"), Story("y", "8")]
    assert [(one.completion, two.completion) for one, two in pairs(a, b)] == [
        *(("1", "6"), ("2", "5"), ("3", "7"))
    ]


# ---- The command ---------------------------------------------------------------------------------


def write(path: Path, stories: list[tuple[str, str]]) -> Path:
    lines = [json.dumps({"prompt": prompt, "text": prompt + text}) for prompt, text in stories]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with two files of stories, where the answers are kept, too."""
    write(tmp_path / "a.jsonl", [("One day", f" a cat saw {n}.") for n in range(6)])
    write(tmp_path / "b.jsonl", [("One day", f" a dog saw {n}.") for n in range(5)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STORYLLAMAS_STATE", raising=False)
    monkeypatch.setattr("sys.stdin", None)
    return tmp_path


def run(server: Server, *arguments: object) -> object:
    """Run the command; return its exit status, or its error message."""
    command = ["judge", "a.jsonl", "--endpoint", server.url, "--judge", "j", *arguments]
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in command])
    return ended.value.code


@pytest.mark.usefixtures("folder")
def test_nothing_is_sent_without_consent(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    question = len(grading(Story("One day", " a cat saw 0."), 1).text)
    prices = ("--price-in", 2, "--price-out", 10000)
    assert run(server, "--max-tokens", 100, *prices) == (
        "error: nothing is sent yet: give --yes to start"
    )
    assert server.requests == []
    tokens = 6 * (-(-question // 4) + 10)
    assert capsys.readouterr().err == (
        "6 questions, 0 answered before\n"
        f"6 requests, about {tokens:,} tokens in, at most 600 tokens out, at most 6.00 at 2 and "
        f"10000 for a million tokens in and out, to j at {server.url}\n"
    )


def test_answers_are_kept_and_not_asked_for_again(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--yes", "--json", "--out", "grades.json", "--answers", "kept/answers.jsonl")
    assert run(server, *out, "--price-out", 1000) == 0
    printed, notes = capsys.readouterr()
    assert notes.endswith("\n6 answers kept, 1,800 tokens in, 120 tokens out, which cost 0.12\n")
    assert json.loads(printed) == json.loads((folder / "grades.json").read_text())
    assert json.loads(printed)["creativity"] == {"mean": 6.5, "standard_error": 0}
    assert server.keys == {None}
    assert run(server, *out) == 0
    assert capsys.readouterr() == (printed, "6 questions, 6 answered before\n")
    default_journal().unlink()
    assert run(server, *out) == 0
    (folder / "kept/answers.jsonl").unlink()
    assert run(server) == "error: nothing is sent yet: give --yes to start"
    assert len(server.requests) == 6
    assert run(server, "--yes", "--seed", 2, "--repeats", 2, "--temperature", 1) == 0
    assert {each["seed"] for each in server.requests[6:]} == {2, 3}
    assert len(server.requests) == 18


def test_a_file_that_links_into_a_cache_is_replaced(server: Server, folder: Path) -> None:
    cached, link = folder / "cached", folder / "answers.jsonl"
    cached.write_text("{}\n")
    link.symlink_to(cached)
    assert run(server, "--yes", "--answers", link) == 0
    assert cached.read_text() == "{}\n"
    assert len(link.read_text().splitlines()) == 6


def test_two_models_are_compared_in_both_orders(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def prefer_cats(body: dict[str, Any]) -> Reply:
        text = body["messages"][0]["content"]
        return Reply(text=f'{{"better": {1 if text.index("cat") < text.index("dog") else 2}}}')

    server.otherwise = prefer_cats
    assert run(server, "--against", "b.jsonl", "--yes", "--json") == 0
    printed, notes = capsys.readouterr()
    assert "5 stories have a partner of the same prompt; the others are out\n" in notes
    found = json.loads(printed)
    assert (found["pairs"], found["wins"], found["order_dependent"]) == (5, 1, 0)
    assert len(server.requests) == 10
    write(folder / "b.jsonl", [("Two days", " a dog.")])
    assert "have no prompt in common" in str(run(server, "--against", "b.jsonl"))


@pytest.mark.usefixtures("folder", "no_waits")
def test_a_judge_that_refuses_one_story(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.otherwise = lambda body: Reply(
        text="I must not." if "saw 3" in body["messages"][0]["content"] else GOOD
    )
    assert run(server, "--yes") == 0
    printed, notes = capsys.readouterr()
    assert "stories          5\nunanswered       1\ngrammar          8.00 ± 0.00\n" in printed
    assert "age_groups       A 0%, B 0%, C 100%," in printed
    assert "1 questions have no usable answer (it has no JSON object" in notes
    assert len(server.requests) == 5 + 7
    server.otherwise = lambda body: Reply()
    assert run(server, "--yes") == 0
    assert len(server.requests) == 13
    server.otherwise = lambda body: Reply(text="No.")
    assert str(run(server, "--yes", "--seed", 9)).startswith("error: j gives no usable answer")


@pytest.mark.usefixtures("folder", "no_waits")
def test_a_server_that_dies_half_way(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.planned = [Reply(), Reply(), Reply()]
    server.otherwise = lambda body: Reply(status=502)
    message = str(run(server, "--yes", "--concurrency", 1))
    assert "gives no answer (HTTP status 502, 7 times in a row): try again later" in message
    assert "3 answers kept, 900 tokens in" in capsys.readouterr().err
    with default_journal().open("ab") as journal:
        journal.write(b'{"key": "half a li')
    server.otherwise = lambda body: Reply()
    assert run(server, "--yes") == 0
    assert "6 questions, 3 answered before" in capsys.readouterr().err
    assert len(Answers(default_journal())._lines) == 6


def test_a_killed_process_loses_no_answer(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is killed while it waits for the answer to the fifth question."""
    waiting, ended = threading.Event(), threading.Event()

    def stall(body: dict[str, Any]) -> Reply:
        waiting.set()
        ended.wait(PATIENCE)
        return Reply()

    server.planned = [Reply()] * 4
    server.otherwise = stall
    command = [sys.executable, "-m", "storyllamas", "judge", "a.jsonl", "--yes"]
    command += ["--endpoint", server.url, "--judge", "j", "--concurrency", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        assert waiting.wait(PATIENCE)
        process.send_signal(signal.SIGKILL)
    ended.set()
    server.otherwise = lambda body: Reply()
    assert run(server, "--yes") == 0
    assert "6 questions, 4 answered before" in capsys.readouterr().err
    assert len(server.requests) == 4 + 1 + 2


@pytest.mark.usefixtures("folder")
def test_the_key_is_sent_and_never_stored(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\n")
    assert run(server, "--yes", "--key-variable", "JUDGE_KEY", "--answers", "answers.jsonl") == 0
    assert server.keys == {f"Bearer {KEY}"}
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {folder / "answers.jsonl", folder / default_journal()} < set(files)
    assert not any(KEY in path.read_text() for path in files)
    assert "NO_KEY is not set" in str(run(server, "--key-variable", "NO_KEY"))


@pytest.mark.usefixtures("folder")
def test_fields_of_the_request_can_be_changed(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"seed": None, "max_tokens": None, "max_completion_tokens": 9}
    assert run(server, "--yes", "--count", 1, "--body", json.dumps(body)) == 0
    (request,) = server.requests
    assert set(request) == {"model", "messages", "temperature", "max_completion_tokens"}
    for wrong in ("[]", "{", '{"stream": true}'):
        assert run(server, "--body", wrong) == 2
    assert run(server, "--timeout", 0) == run(server, "--price-in", -1) == 2
    capsys.readouterr()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("once", "line 1 of a.jsonl is not a story"),
        ('{"prompt": "One"}', "line 1 of a.jsonl is not a story"),
        ('{"prompt": "One", "text": "Two"}', "line 1 of a.jsonl is not a story"),
        (r'{"text": "\ud800"}', "line 1 of a.jsonl is not a story"),
        ("", "a.jsonl has no stories"),
    ],
)
def test_a_file_of_other_things(server: Server, folder: Path, line: str, sentence: str) -> None:
    (folder / "a.jsonl").write_text(f"{line}\n")
    assert str(run(server)).startswith(f"error: {sentence}")
    (folder / "a.jsonl").unlink()
    assert "a.jsonl does not exist" in str(run(server))


def test_questions_show_what_is_judged() -> None:
    first, second = Story("Once {x}", " one {y}."), Story("Once {x}", " two.")
    text = comparison(first, second, 3).text
    assert text.index("Once {x} ***  one {y}.") < text.index("Once {x} ***  two.")
    assert '{"better": 0}' in text
    assert "A: 3 or under, B: 4-5" in grading(first, 1).text


def test_an_interrupted_run_asks_nothing_more(server: Server, tmp_path: Path) -> None:
    questions = [grading(Story("", str(number)), 1) for number in range(50)]
    judge = Judge(Endpoint(server.url), Settings("j"), Answers(tmp_path / "kept.jsonl"))

    def interrupt(finished: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge.ask(questions, 2, interrupt)
    assert 1 <= len(server.requests) < 50
    assert any(judge.answer(question) for question in questions)
