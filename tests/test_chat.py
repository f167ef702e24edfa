"""Conversations: chat templates, reuse of the key-value cache, and the command."""

from __future__ import annotations

import fcntl
import os
import random
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import engine_files
import numpy as np
import pytest
from conftest import PATIENCE, ROOT
from engine_files import BOS, EOS, make_vocabulary, small_config, word_id

from storyllamas import cli
from storyllamas.chat.conversation import Conversation, special_tokens
from storyllamas.chat.renderer import Renderer
from storyllamas.chat.template import render
from storyllamas.chat.terminal import PROMPT
from storyllamas.engine import sequence
from storyllamas.engine.engine import Engine
from storyllamas.engine.ffi import ffi, lib
from storyllamas.engine.sequence import CachedSequence
from storyllamas.errors import UserError
from storyllamas.vocabulary import PieceType, Vocabulary

TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role[0] }}:{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>a:{% endif %}"
)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

TALK = [
    {"role": "user", "content": 'Hi "you" <b>é\n'},
    {"role": "assistant", "content": " Hello! "},
    {"role": "user", "content": "Why?"},
]
SYSTEM = [{"role": "system", "content": "Be kind."}]

TEMPLATES = {
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama 2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) "
    "%}{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}",
    "llama 3": "{{- bos_token }}\n{%- set date = strftime_now('%Y') %}\n"
    "{%- if tools is not none %}\n    {{- tools | tojson(indent=4) }}\n{%- endif %}\n"
    "{%- for message in messages %}\n    {{- '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- date + '<|start_header_id|>assistant"
    "<|end_header_id|>\\n\\n' }}\n{%- endif %}\n",
    "blocks": "  {% for m in messages %}\n    {% if loop.first %}\n first\n    {% endif %}\n"
    "{{ m | tojson }} {{ m.content | tojson(indent=2) }}\n  {% endfor %}\n\nend\n",
    "loop controls": "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}"
    "{% if loop.index > 3 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, self=1) %}{% for m in messages %}{% set ns.n = ns.n + "
    "(m.content | length) %}{% endfor %}{{ ns.n }}{{ dict(a=1) | tojson }}"
    "{{ dict.fromkeys('ab') | tojson }}{{ unk_token }}{{ missing }}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}{% endgeneration %}{% else %}{{ m.content | e }}{% endif %}{% endfor %}",
    "macro": "{% macro turn(m) %}[{{ caller() }}{{ m.role }}]{% endmacro %}{% for m in messages %}"
    "{% call turn(m) %}x{% endcall %}{% endfor %}{{ messages | map(attribute='role') | list }}"
    "{{ messages[0].items() | list | length }}{{ range(3) | join(',') }}",
}


# ---- Templates -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    tokens = TOKENS | {"unk_token": "<unk>"}
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), **tokens
    )
    for talk in (TALK, TALK[:1], SYSTEM + TALK):
        for prompted in (True, False):
            expected = theirs.apply_chat_template(
                talk,
                chat_template=TEMPLATES[name],
                tokenize=False,
                add_generation_prompt=prompted,
            )
            assert render(TEMPLATES[name], talk, tokens, prompted) == expected


WRONG = [
    ("{% for m in messages %}", "line 1: Unexpected end of template"),
    ("{{ messages[0].content.nothing.more }}", "has no attribute 'nothing'"),
    ("{{ 1 / 0 }}", "division by zero"),
    ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ("{{ messages.append(1) }}", "unsafe|not safely callable"),
    ("{{ namespace(_x=1) }}", "cannot have an attribute '_x'"),
    ("{% include 'file' %}", "no loader for this environment specified"),
    ("{{ 'a' * (10 ** 12) }}", "more than 256 MiB of memory|Range too big|cannot fit"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deeply"),
    ("{{ range(10 ** 9) | list }}", "Range too big"),
    (
        "{% for a in range(999) %}{% for b in range(999) %}{{ 'a' * 99 }}{% endfor %}{% endfor %}",
        "a text of more than 16,777,216 characters",
    ),
    (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "takes more than 1 seconds",
    ),
    ("{{ 10 ** (10 ** 10) }}", "takes more than 1 seconds|MiB of memory"),
    ("{{ '%099999999999d' % 1 }}", "MiB of memory|too big|too long|cannot"),
]


@pytest.mark.parametrize(("template", "sentence"), WRONG)
def test_a_wrong_template_is_one_sentence(template: str, sentence: str) -> None:
    """None hangs this process or fills it up, and the next conversation is rendered again."""
    with Renderer("m.slm", template, TOKENS, seconds=1, memory=1 << 28) as renderer:
        for _ in range(2):
            with pytest.raises(UserError, match=sentence) as raised:
                renderer.render(TALK)
            message = str(raised.value)
            assert message.startswith("the chat template of m.slm cannot be rendered (")
            assert message.endswith("): use `storyllamas generate`, which needs no template")
            assert "\n" not in message
            assert len(message) < 400


def test_a_template_may_reject_a_conversation() -> None:
    template = "{{ raise_exception('System role\n  not\x1b[31m supported' + 'x' * 1000) }}"
    with (
        Renderer("m.slm", template, TOKENS) as renderer,
        pytest.raises(UserError, match=r"m\.slm rejects the conversation: System role not \[31m s"),
    ):
        renderer.render(TALK)


def test_an_interrupted_request_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to it does not become the answer to the next one."""
    from storyllamas.chat import renderer as module

    exchange = module._exchange

    def interrupted(process: Any, line: str) -> str:
        process.stdin.write(line)
        process.stdin.flush()
        raise KeyboardInterrupt

    with Renderer("m.slm", "{{ messages[0].content }}", TOKENS) as renderer:
        assert renderer.render([{"role": "user", "content": "é1"}]) == "é1"
        monkeypatch.setattr(module, "_exchange", interrupted)
        with pytest.raises(KeyboardInterrupt):
            renderer.render([{"role": "user", "content": "2"}])
        monkeypatch.setattr(module, "_exchange", exchange)
        assert renderer.render([{"role": "user", "content": "3"}]) == "3"


# ---- The key-value cache -------------------------------------------------------------------------


def chat_vocabulary(template: str = TEMPLATE, extra: tuple[int, ...] = ()) -> Vocabulary:
    return replace(make_vocabulary(), chat_template=template, extra_eos_ids=extra)


def random_model(
    path: Path, context: int = 600, template: str = TEMPLATE, kind: str = "f32"
) -> Engine:
    config = small_config(context=context)
    tensors = engine_files.random_tensors(config, 3)
    return Engine(engine_files.write(path, config, tensors, chat_vocabulary(template), kind))


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return random_model(tmp_path / "m.slm")


def conversation(engine: Engine, **options: Any) -> Conversation:
    renderer = Renderer("m.slm", engine.chat_template, special_tokens(engine))
    return Conversation(engine, renderer, **options)


@pytest.mark.parametrize("kind", ["f32", "q8", "q4"])
def test_continued_ids_give_the_text_of_started_ones(tmp_path: Path, kind: str) -> None:
    """Any lists of ids, also shorter and longer ones, and after scoring, which uses the cache."""
    engine = random_model(tmp_path / "m.slm", context=300, kind=kind)
    source = random.Random(1)
    session, options = engine._new_session(1), lib.sl_defaults()
    options.temperature, options.max_tokens = 1.0, 4
    kept, piece = ffi.new("size_t *"), ffi.new("sl_piece *")
    ids = [5]
    for seed in range(60):
        same = source.choice([len(ids), source.randrange(len(ids) + 1)])
        more = [source.randrange(265) for _ in range(source.choice([0, 1, 9, 140]))]
        new = (ids[:same] + more)[: engine.context] or [7]
        if seed % 10 == 9:
            scores = ffi.new("double[]", 2)
            lib.sl_score(session, [1, 2, 3], 3, scores)
        options.seed = seed
        pointer = kept if seed % 3 else ffi.NULL
        assert lib.sl_continue_ids(session, new, len(new), ffi.addressof(options), pointer) == 0
        generated = []
        while not lib.sl_next(session, piece) and not piece.stop:
            generated.append(piece.id)
        story = engine.generate(new, temperature=1.0, max_tokens=4, seed=seed)
        assert "".join(story) is not None
        assert generated == story.ids
        common = sequence._common(ids, new)
        if seed % 3:
            cached = 0 if seed % 10 == 9 else min(common, len(new) - 1)
            assert cached - 1 <= kept[0] <= max(cached, 0)
        ids = new + generated


def test_wrong_ids_leave_the_sequence(engine: Engine) -> None:
    cached = CachedSequence(engine)
    first = "".join(cached.generate([1, 5, 6], max_tokens=5))
    ids = cached.ids
    for wrong, sentence in (
        ([300], "not in the vocabulary"),
        ([5] * 601, "601 tokens"),
        ([], "no"),
    ):
        with pytest.raises(UserError, match=sentence):
            list(cached.generate(wrong))
    with pytest.raises(UserError, match="top_p is 2"):
        list(cached.generate([5], top_p=2))
    assert "".join(cached.generate([1, 5, 6], max_tokens=5)) == first
    assert (cached.ids, cached.reused) == (ids, 2)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("step", [3, 256])
def test_a_conversation_is_the_same_without_reuse(
    engine: Engine, seed: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a model of random weights spells words as no tokenizer does, all is reused."""
    monkeypatch.setattr(sequence, "STEP", step)
    options = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 30}
    talk = conversation(engine, seed=seed, system="é" * seed, **options)
    before: list[int] = []
    for turn, line in enumerate(["a b ab", "é", "  ", "ab <s> a", "日本"]):
        text = "".join(talk.reply(line))
        ids = talk._sequence.ids
        assert talk.reused >= len(before) - 1
        assert ids[: len(before)] == before
        # The prompt is the cached ids up to where the reply begins.
        rendered = render(TEMPLATE, talk.messages[:-1], TOKENS)
        prompt = next(
            ids[:end]
            for end in range(len(before) + 1, len(ids) + 1)
            if engine.decode(ids[:end]) == engine.decode(engine.tokenizer.encode(rendered, True))
        )
        story = engine.generate(prompt, seed=seed + turn, **options)
        assert "".join(story) == text
        assert prompt + story.ids == ids
        before = ids
    assert [each["role"] for each in talk.messages] == ["system"] + ["user", "assistant"] * 5


def test_a_template_that_changes_old_turns_is_right_too(tmp_path: Path) -> None:
    """One that strips replies, and numbers the turns from the end."""
    template = (
        "{% for m in messages %}<s>{{ messages | length - loop.index0 }}{{ m.content | trim }}</s>"
        "{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"
    )
    engine = random_model(tmp_path / "m.slm", template=template)
    talk = conversation(engine, max_tokens=20)
    for turn, line in enumerate(["a", "b", "a b"]):
        text = "".join(talk.reply(line))
        ids = engine.tokenizer.encode(render(template, talk.messages[:-1], TOKENS), True)
        assert "".join(engine.generate(ids, seed=42 + turn, max_tokens=20)) == text


# ---- Turns ---------------------------------------------------------------------------------------

SPELT = [word_id(0), word_id(3), word_id(1)]  # "ab", space and more


def chain(path: Path, after: dict[int, int], template: str, extra: tuple[int, ...] = ()) -> Path:
    """A model that generates a fixed token after each; EOS after all others."""
    vocabulary = chat_vocabulary(template, extra)
    types = np.array(vocabulary.types)
    types[word_id(5)] = PieceType.CONTROL
    pieces = [*vocabulary.pieces[:-1], b"<|eot|>"]
    vocabulary = replace(vocabulary, pieces=pieces, types=types)

    def logits(token: int) -> np.ndarray:
        row = np.zeros(len(pieces), np.float32)
        row[after.get(token, EOS)] = 50
        return row

    return engine_files.write_chain(path, logits, vocabulary, context=400)


EOT = word_id(5)
A, B = word_id(0), word_id(1)
PLAIN = "{% for m in messages %}<s>{{ m.content }}{{ END }}{% endfor %}<s>"


def chain_talk(tmp_path: Path, end: str, extra: tuple[int, ...], **options: Any) -> Conversation:
    template = PLAIN.replace("{{ END }}", end)
    after = {BOS: A, A: B, B: EOT, EOT: A}
    engine = Engine(chain(tmp_path / "m.slm", after, template, extra))
    return conversation(engine, temperature=0, **options)


def test_a_reply_ends_at_a_token_of_the_file_or_of_the_template(tmp_path: Path) -> None:
    """No special token is printed, and none is generated twice."""
    for extra, end in (((EOT,), ""), ((), "<|eot|>"), ((), " <|eot|>\n"), ((EOT,), "<|eot|>")):
        talk = chain_talk(tmp_path, end, extra, max_tokens=9)
        assert "".join(talk.reply("é")) == "ab"
        assert talk.stop == "eos"
        assert EOT not in talk._sequence.ids[-2:]
    talk = chain_talk(tmp_path, "", (), max_tokens=7)  # nothing says that <|eot|> ends a turn
    assert ("".join(talk.reply("é")), talk.stop) == ("ababab"[:5], "max_tokens")


def test_the_extra_eos_ids_end_stories_too(tmp_path: Path) -> None:
    engine = Engine(chain(tmp_path / "m.slm", {BOS: A, A: B, B: EOT, EOT: A}, "", (EOT,)))
    assert engine.extra_eos_ids == (EOT,)
    story = engine.generate("", temperature=0)
    assert ("".join(story), story.stop) == ("ab", "eos")
    (many,) = engine.generate_many("", temperature=0)
    assert (many.text, many.stop) == ("ab", "eos")
    ignoring = engine.generate("", temperature=0, ignore_eos=True, max_tokens=5)
    assert "".join(ignoring) == "abab"


def test_a_full_context_drops_the_oldest_turns(tmp_path: Path) -> None:
    engine = random_model(tmp_path / "m.slm", context=200)
    notes: list[str] = []
    talk = conversation(engine, system="sys", note=notes.append, max_tokens=25)
    for turn in range(20):
        line = f"{turn:02d} ab ab"
        assert "".join(talk.reply(line)) is not None
        assert talk.messages[0] == {"role": "system", "content": "sys"}
        roles = [each["role"] for each in talk.messages[1:]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert talk.messages[-2]["content"] == line
        assert talk.stop in ("max_tokens", "eos", "bos")
    assert 2 <= len(notes) < 10
    assert notes[0].startswith("the context of 200 tokens is full: the oldest")
    assert "turns are dropped" in notes[0] or "turn is dropped" in notes[0]


def test_a_message_beyond_the_context_is_taken_back(tmp_path: Path) -> None:
    engine = random_model(tmp_path / "m.slm", context=100)
    talk = conversation(engine, max_tokens=10)
    "".join(talk.reply("a"))
    messages = list(talk.messages)
    with pytest.raises(
        UserError, match=r"prompt of 1\d\d tokens, and the model's context is 100: w"
    ):
        "".join(talk.reply("é" * 150))
    assert talk.messages == messages
    assert "".join(talk.reply("b")) is not None
    assert len(talk.messages) == 4


def test_an_interrupted_reply_stays_as_far_as_it_goes(engine: Engine) -> None:
    talk = conversation(engine, max_tokens=50)
    reply = talk.reply("a")
    text = next(reply) + next(reply)
    reply.close()
    assert talk.messages[-1] == {"role": "assistant", "content": text}
    before = list(talk.messages)
    reply = talk.reply("b")
    reply.close()  # it has not begun
    assert talk.messages == before
    assert "".join(talk.reply("b")) is not None
    assert len(talk.messages) == 4


# ---- The command ---------------------------------------------------------------------------------


def run(*arguments: object, text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "storyllamas", *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, check=False, cwd=ROOT)


@pytest.fixture
def chat_file(tmp_path: Path) -> Path:
    """A model that answers with ab."""
    return chain(tmp_path / "m.slm", {BOS: A, A: B}, PLAIN.replace("{{ END }}", "</s>"))


def test_a_pipe_gets_a_reply_for_each_line(chat_file: Path) -> None:
    done = run("chat", chat_file, "--temperature", 0, text=b"a\r\n\n  \nb")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"ab\nab\n", b"")
    done = run("chat", chat_file, "--seed", "random", "--max-tokens", 1, text=b"a\n")
    assert done.stdout == b"a\n"
    seed, note = done.stderr.decode().splitlines()
    assert re.fullmatch(r"seed \d+", seed)
    assert note == "note: the reply is cut off after 1 tokens: --max-tokens allows more"


def test_the_same_seed_gives_the_same_replies(tmp_path: Path) -> None:
    random_model(tmp_path / "m.slm")
    command = ("chat", tmp_path / "m.slm", "--max-tokens", 12, "--temperature", 1)
    ran = [run(*command, "--seed", seed, text=b"a\na\n") for seed in (1, 1, 2)]
    assert ran[0].returncode == 0
    assert ran[0].stdout == ran[1].stdout != ran[2].stdout
    more = [
        run(*command, *extra, text=b"a\n").stdout
        for extra in ([], ["--system", "x"], ["--repetition-penalty", 9, "--top-k", 3])
    ]
    assert len(set(more)) == 3


def test_a_system_message_without_effect_is_noted(tmp_path: Path, chat_file: Path) -> None:
    last = tmp_path / "last.slm"
    random_model(last, template="{{ messages[-1].content }}")
    note = "note: the chat template has no place for a system message: it has no effect\n"
    for path, expected in ((last, note), (chat_file, "")):
        done = run("chat", path, "--system", "be nice", text=b"")
        assert (done.returncode, done.stderr.decode()) == (0, expected)


def test_what_the_command_rejects(tmp_path: Path, chat_file: Path) -> None:
    plain = tmp_path / "plain.slm"
    config = small_config()
    engine_files.write(plain, config, engine_files.random_tensors(config))
    wrong = tmp_path / "wrong.slm"
    random_model(wrong, template="{{ raise_exception('no\nsystem') }}")
    for arguments, text, sentence in (
        ([plain], b"a\n", "has no chat template, so it is no model for conversations: use `storyl"),
        ([wrong], b"a\n", "the chat template of .* rejects the conversation: no system"),
        ([chat_file], b"a\n\xff\n", "line 2 of standard input is not UTF-8 text"),
        ([chat_file], b"a" * 1000, "your message makes a prompt of 1\\d\\d\\d tokens, and"),
        ([chat_file, "--system", "a" * 1000], b"a\n", "the system message makes a prompt of 1\\d"),
        ([chat_file, "--top-p", 2], b"a\n", "top_p is 2"),
        ([chat_file, "--seed", "-1"], b"a\n", "seed is -1"),
        ([tmp_path / "none.slm"], b"", "none.slm does not exist"),
    ):
        done = run("chat", *arguments, text=text)
        error = done.stderr.decode()
        assert done.returncode == 1
        assert re.match(f"error: .*{sentence}", error), error
        assert error.count("\n") == 1
    assert run("chat", chat_file, "--ignore-eos").returncode == 2


def _control_terminal() -> None:
    """Let Ctrl-C in the terminal on standard input interrupt this process."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # A job in the background of a shell, and what it starts, ignores Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """`storyllamas chat` at a terminal of its own."""

    def __init__(self, model: Path) -> None:
        self.ours, theirs = os.openpty()
        settings = termios.tcgetattr(theirs)
        settings[3] &= ~termios.ECHO
        termios.tcsetattr(theirs, termios.TCSANOW, settings)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "storyllamas", "chat", model, "--temperature", "0"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=ROOT,
            env=os.environ | {"TERM": "dumb"},
            start_new_session=True,
            preexec_fn=_control_terminal,
        )
        os.close(theirs)
        self.text = ""

    def read_to(self, end: str) -> str:
        """Return what is printed up to `end`."""
        deadline = time.monotonic() + PATIENCE
        while end not in self.text:
            assert self._read(deadline - time.monotonic()), f"no {end!r} after {self.text!r}"
        before, _, self.text = self.text.partition(end)
        return before.replace("\r\n", "\n")

    def _read(self, seconds: float) -> bool:
        """Read what is printed next; return whether anything was within so many seconds."""
        if not select.select([self.ours], [], [], max(0, seconds))[0]:
            return False
        self.text += os.read(self.ours, 4096).decode()
        return True

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def press(self, key: str, end: str) -> None:
        """Press a key until `end` is printed.

        Python may notice a signal between the print of a prompt and the wait for a key only at the
        next key.
        """
        deadline = time.monotonic() + PATIENCE
        while end not in self.text:
            assert self.process.poll() is None, f"it ended after {self.text!r}"
            assert time.monotonic() < deadline, f"no {end!r} after {self.text!r}"
            with suppress(OSError):  # the other end is closed
                self.type(key)
                again = time.monotonic() + 1
                while end not in self.text and self._read(again - time.monotonic()):
                    pass

    def end(self) -> None:
        """Press Ctrl-D until the program ends."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it goes on after {self.text!r}"
            with suppress(OSError):  # the other end is closed
                self.type("\x04")
                while self._read(1):
                    pass


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """A conversation with a model that ends no reply to b, and repeats ab."""
    turns = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
    vocabulary = chat_vocabulary(turns + "<s>{{ messages[-1].content }}")

    def logits(token: int) -> np.ndarray:
        row = np.zeros(len(vocabulary.pieces), np.float32)
        row[{A: B, B: A}.get(token, EOS)] = 50
        return row

    path = engine_files.write_chain(tmp_path / "m.slm", logits, vocabulary, context=1 << 20)
    made = Terminal(path)
    yield made
    made.process.kill()
    made.process.wait()
    os.close(made.ours)


def test_ctrl_c_stops_a_reply_and_ctrl_d_ends(terminal: Terminal) -> None:
    terminal.read_to(PROMPT)
    terminal.type("é\n")
    assert terminal.read_to(PROMPT).strip() in ("", "é")
    terminal.type("b\n")  # the reply would take a million tokens
    terminal.read_to("ababab")
    terminal.press("\x03", PROMPT)
    terminal.read_to(PROMPT)
    terminal.type("é\n")
    terminal.read_to(PROMPT)
    terminal.press("\x03", PROMPT)
    terminal.end()
    assert terminal.process.returncode == 0
    assert "Traceback" not in terminal.text


def test_a_seed_for_generate(chat_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            cli.main(["generate", "--model", str(chat_file), "--seed", "random"])
        assert ended.value.code == 0
    errors = capsys.readouterr().err.splitlines()
    seeds = [int(line.removeprefix("seed ")) for line in errors if line.startswith("seed ")]
    assert len(set(seeds)) == 2


# ---- A real model --------------------------------------------------------------------------------


def test_the_conversation_in_the_docs_is_true(tmp_path: Path) -> None:
    """Set STORYLLAMAS_SMOLLM2 to the GGUF file of SmolLM2-135M-Instruct."""
    source = os.environ.get("STORYLLAMAS_SMOLLM2")
    if not source:
        pytest.skip("set STORYLLAMAS_SMOLLM2 to the GGUF file of SmolLM2-135M-Instruct")
    page = (ROOT / "docs" / "chat.md").read_text()
    shown = page.partition("```console\n")[2].partition("```")[0]
    lines = [line.removeprefix("> ") for line in shown.splitlines() if line.startswith("> ")]
    replies = [line for line in shown.splitlines() if not line.startswith("> ")]
    assert run("import", source, "--out", tmp_path / "m.slm", "--type", "q8").returncode == 0
    text = "".join(f"{line}\n" for line in lines).encode()
    done = run("chat", tmp_path / "m.slm", "--temperature", 0, text=text)
    assert (done.stdout.decode().splitlines(), done.stderr) == (replies, b"")
