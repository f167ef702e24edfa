"""Speculative decoding: a draft model changes the speed, and nothing that is generated."""

from __future__ import annotations

import gc
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import engine_files
import numpy as np
import psutil
import pytest
from engine_files import BOS, small_config
from hypothesis import given, settings
from hypothesis import strategies as st

from storyllamas.cli import main
from storyllamas.config import ModelConfig
from storyllamas.engine.engine import Engine, kernel_sets
from storyllamas.engine.ffi import check, ffi, lib
from storyllamas.engine.sequence import CachedSequence
from storyllamas.errors import UserError

CONFIG = small_config(context=60)


def write(path: Path, config: ModelConfig = CONFIG, seed: int = 1, noise: float = 0.0) -> Path:
    """Write random weights; with noise, the model agrees with that without in some tokens."""
    tensors = engine_files.random_tensors(config, seed)
    random = np.random.default_rng(9)
    for name, values in tensors.items():
        tensors[name] = values * (1 + noise * random.standard_normal(values.shape, np.float32))
    return engine_files.write(path, config, tensors)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model, and drafts that agree with it always, often and hardly ever."""
    folder = tmp_path_factory.mktemp("draft")
    write(folder / "model.slm")
    write(folder / "same.slm")
    write(folder / "near.slm", noise=0.1)
    write(folder / "other.slm", small_config(dim=8, layers=1, hidden=8, context=60), seed=4)
    write(folder / "short.slm", small_config(context=13))
    return folder


def generate(engine: Engine, prompt: Sequence[int], **options: Any) -> tuple[object, ...]:
    """Return all that a story has."""
    story = engine.generate(prompt, **options)
    return "".join(story), story.ids, story.stop, story.logprobs


@settings(max_examples=60)
@given(
    draft=st.sampled_from(["same", "near", "other", "short"]),
    tokens=st.integers(1, 64),
    prompt=st.lists(st.integers(3, CONFIG.vocab_size - 1), min_size=1, max_size=59),
    temperature=st.sampled_from([0.0, 0.3, 1.0]),
    kernels=st.sampled_from(kernel_sets()),
    options=st.fixed_dictionaries(
        {
            "top_p": st.sampled_from([0.5, 1.0]),
            "top_k": st.sampled_from([0, 9]),
            "min_p": st.sampled_from([0.0, 0.1]),
            "repetition_penalty": st.sampled_from([1.0, 1.3]),
            "repetition_window": st.sampled_from([3, 64]),
            "seed": st.integers(0, 99),
            "max_tokens": st.integers(1, 80),
            "ignore_eos": st.booleans(),
            "logprobs": st.sampled_from([0, 3]),
        }
    ),
)
def test_a_draft_changes_nothing(
    folder: Path,
    draft: str,
    tokens: int,
    prompt: list[int],
    temperature: float,
    kernels: str,
    options: dict[str, Any],
) -> None:
    """Any draft, within and beyond its context, up to any limit of the sequence."""
    options["temperature"] = temperature
    plain = Engine(folder / "model.slm", kernels=kernels)
    small = Engine(folder / f"{draft}.slm", threads=1)
    drafted = Engine(folder / "model.slm", kernels=kernels, draft=small, draft_tokens=tokens)
    for seed in (options["seed"], options["seed"] + 1):  # the second session is the first again
        chosen = options | {"seed": seed}
        assert generate(drafted, prompt, **chosen) == generate(plain, prompt, **chosen)


def test_what_is_accepted(folder: Path) -> None:
    """Of a draft with the same weights, all that is not beyond the end; of another one, less."""
    shares = []
    for name in ("same", "near", "other"):
        engine = Engine(folder / "model.slm", draft=Engine(folder / f"{name}.slm"), draft_tokens=4)
        story = engine.generate([BOS, 40], seed=3, max_tokens=41, ignore_eos=True)
        assert (story.drafted, story.accepted) == (0, 0)
        list(story)
        assert story.tokens == 41
        shares.append(story.accepted / story.drafted)
        if name == "same":
            # The prompt has its own pass. After it, one in five tokens is not drafted.
            assert (story.drafted, story.accepted) == (32, 32)
    assert shares[0] == 1 > shares[1] > shares[2]
    plain = Engine(folder / "model.slm").generate([BOS], seed=3)
    list(plain)
    assert (plain.drafted, plain.accepted) == (0, 0)


def test_quantized_models_and_types_of_the_cache(tmp_path: Path) -> None:
    paths = engine_files.write_types(tmp_path, small_config(context=90))
    for name in paths:
        for cache in ("f32", "f16", "q8"):
            draft = Engine(paths["q4"], cache="q8", threads=1)
            drafted = Engine(paths[name], draft=draft, cache=cache, threads=2)
            plain = Engine(paths[name], cache=cache, threads=1)
            for seed in range(5):
                found = generate(drafted, [BOS, 70], seed=seed, ignore_eos=True)
                assert found == generate(plain, [BOS, 70], seed=seed, ignore_eos=True)


def test_a_conversation_keeps_its_cache(folder: Path) -> None:
    """Turns that end early, with drafted tokens in the cache, and turns that go back."""
    plain = Engine(folder / "model.slm")
    drafted = Engine(folder / "model.slm", draft=Engine(folder / "near.slm"), draft_tokens=5)
    cached = CachedSequence(drafted)
    prompt = [BOS, 60, 61, 62]
    for turn in range(8):
        for index, _ in enumerate(cached.generate(prompt, seed=turn, max_tokens=9)):
            if index == turn:
                break
        story = plain.generate(prompt, seed=turn, max_tokens=9)
        assert "".join(cached.generate(prompt, seed=turn, max_tokens=9)) == "".join(story)
        assert cached.ids == [*prompt, *story.ids]
        prompt = [*prompt[: 4 if turn == 5 else None], *story.ids[:3], 70 + turn]


def test_batches_do_without_a_draft_and_get_the_same_stories(folder: Path) -> None:
    plain = Engine(folder / "model.slm")
    drafted = Engine(folder / "model.slm", draft=Engine(folder / "near.slm"))
    for prompts in (["a", "b", "ab"], ["a"]):
        assert list(drafted.generate_many(prompts, seed=5)) == list(
            plain.generate_many(prompts, seed=5)
        )


def test_a_draft_that_is_damaged_is_ignored(folder: Path, tmp_path: Path) -> None:
    """Its logits are not finite; those of the model are."""
    tensors = engine_files.random_tensors(CONFIG, 1)
    tensors["norm.weight"] = np.full_like(tensors["norm.weight"], 3e38)
    draft = Engine(engine_files.write(tmp_path / "m.slm", CONFIG, tensors))
    with pytest.raises(UserError, match="logits are not finite"):
        draft.generate("a")
    engine = Engine(folder / "model.slm", draft=draft)
    story = engine.generate("a", seed=1)
    assert "".join(story) == "".join(Engine(folder / "model.slm").generate("a", seed=1))
    assert story.drafted == 0
    with pytest.raises(UserError, match="top_k is -1"):
        engine.generate("a", top_k=-1)
    list(engine.generate("a", seed=1))
    assert ffi.string(lib.sl_error()).startswith(b"top_k is -1")  # of the last call that failed


def test_a_model_in_memory_and_a_draft_with_a_draft(folder: Path) -> None:
    data = (folder / "model.slm").read_bytes()
    draft = Engine.from_bytes(data, draft=Engine(folder / "near.slm"))
    drafted = Engine.from_bytes(data, draft=draft, draft_tokens=2)
    expected = generate(Engine(folder / "model.slm"), [BOS], seed=1)
    assert generate(drafted, [BOS], seed=1) == expected


def test_a_draft_whose_session_cannot_be_made_leaves_no_threads(folder: Path) -> None:
    draft = Engine(folder / "near.slm")
    engine = Engine(folder / "model.slm", threads=3, draft=draft)
    engine._idle.clear()
    gc.collect()
    threads = psutil.Process().num_threads()
    draft._session_options["cache"] = 99
    for _ in range(3):
        with pytest.raises(UserError, match="cache is 99"):
            engine.generate("a")
    gc.collect()
    assert psutil.Process().num_threads() == threads


# ---- The interface of C --------------------------------------------------------------------------


@pytest.fixture
def sessions(folder: Path) -> Iterator[Any]:
    """Return a function that makes sessions of models."""
    kept = []

    def make(name: str, **options: int) -> Any:
        engine = Engine(folder / f"{name}.slm")
        handle = ffi.new("sl_session **")
        given = ffi.new("sl_session_options *", {"slots": 1, **options})
        check(lib.sl_session_new(handle, engine._model, given))
        kept.append((handle[0], engine))
        return handle[0]

    yield make
    for session, _ in kept:
        lib.sl_session_free(session)


def ids_of(session: Any, count: int) -> list[int]:
    """Generate so many tokens of the started sequence."""
    piece = ffi.new("sl_piece *")
    found = []
    for _ in range(count):
        check(lib.sl_next(session, piece))
        found.append(piece.id)
    return found


def counts(session: Any) -> tuple[int, int]:
    drafted, accepted = ffi.new("size_t *"), ffi.new("size_t *")
    lib.sl_draft_counts(session, drafted, accepted)
    return drafted[0], accepted[0]


def start(session: Any) -> None:
    options = lib.sl_defaults()
    options.ignore_eos = 1
    check(lib.sl_start_ids(session, [BOS, 40], 2, ffi.addressof(options)))


def test_a_pass_holds_no_more_tokens_than_a_chunk(sessions: Any) -> None:
    plain, small, draft = sessions("model"), sessions("model", chunk=3), sessions("same", chunk=1)
    check(lib.sl_set_draft(small, draft, 64))
    start(plain)
    start(small)
    assert ids_of(small, 30) == ids_of(plain, 30)
    assert counts(small) == (20, 20)  # two in each pass of three


def test_a_draft_may_be_set_and_removed_at_any_time(sessions: Any) -> None:
    plain, session, draft = sessions("model"), sessions("model"), sessions("near")
    start(plain)
    start(session)
    expected = ids_of(plain, 50)
    found = []
    for tokens in (0, 3, 0, 7, 2):
        check(lib.sl_set_draft(session, draft if tokens else ffi.NULL, tokens))
        found += ids_of(session, 10)
        # The draft session is used for something else, which is against the rules but no danger.
        check(lib.sl_logits(draft, [5, 6], 2, ffi.new("float[]", 2 * CONFIG.vocab_size)))
    assert found == expected


def test_a_draft_that_is_removed_is_a_session_without_a_sequence(sessions: Any) -> None:
    session, draft, another = sessions("model"), sessions("near"), sessions("same")
    for other in (ffi.NULL, another):
        check(lib.sl_set_draft(session, draft, 3))
        start(session)
        ids_of(session, 9)
        check(lib.sl_set_draft(session, other, 3))
        assert lib.sl_next(draft, ffi.new("sl_piece *")) == lib.SL_ERROR_ARGUMENT
        assert ffi.string(lib.sl_error()).startswith(b"no sequence has been started")
        assert lib.sl_sequence_tokens(draft) == 0


def test_drafts_that_are_rejected(sessions: Any, folder: Path, tmp_path: Path) -> None:
    session, draft, two = sessions("model"), sessions("near"), sessions("model", slots=2)

    def refuse(sentence: str, *arguments: Any) -> None:
        assert lib.sl_set_draft(*arguments) == lib.SL_ERROR_ARGUMENT
        assert re.search(sentence, ffi.string(lib.sl_error()).decode())

    refuse("draft tokens is 0 and must be 1 to 64", session, draft, 0)
    refuse("draft tokens is 65 and must be 1 to 64", session, draft, 65)
    refuse("the session has 2 slots and a draft is for one", two, draft, 1)
    refuse("a session cannot draft for itself", session, session, 1)
    check(lib.sl_set_draft(session, ffi.NULL, 0))

    larger = small_config(vocab_size=CONFIG.vocab_size + 1)
    words = engine_files.make_vocabulary([*engine_files.WORDS[:-1], b"c"])
    engine_files.write(tmp_path / "large.slm", larger, engine_files.random_tensors(larger))
    engine_files.write(tmp_path / "c.slm", CONFIG, engine_files.random_tensors(CONFIG), words)
    for name, sentence in (
        ("large", "the draft model has 266 pieces and the model 265: use one with the same tok"),
        ("c", "piece 264 of the draft model is not that of the model: use one with the same tok"),
    ):
        with pytest.raises(UserError, match=sentence):
            Engine(folder / "model.slm", draft=Engine(tmp_path / f"{name}.slm"))
    for tokens in (0, 65, 1.5):
        with pytest.raises(UserError, match=f"draft_tokens is {tokens} and must be 1 to 64"):
            Engine(folder / "model.slm", draft=Engine(folder / "near.slm"), draft_tokens=tokens)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"draft is 'near\.slm' and must be an Engine"):
        Engine(folder / "model.slm", draft="near.slm")  # type: ignore[arg-type]


# ---- Programs ------------------------------------------------------------------------------------


def test_the_program(sanitized: Path, folder: Path) -> None:
    story = Engine(folder / "model.slm").generate("ab", seed=3, max_tokens=50)
    text = "".join(story)
    command = [sanitized / "run", folder / "model.slm", "-s", "3", "-n", "50", "--threads", "3"]
    command += ["--draft", folder / "near.slm", "--draft-tokens", "5", "ab"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"ab{text}\n"), done.stderr
    assert re.fullmatch(r".*\n\d+ of \d+ drafted tokens accepted\n", done.stderr), done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--draft", "none.slm"], "none.slm does not exist"),
        (
            ["--draft-tokens", "2"],
            "--draft-tokens is 2 and there is no draft: name one with --draf",
        ),
        (["--draft-tokens", "0"], '--draft-tokens is "0" and must be a whole number from 1 to 64'),
        (["--draft-tokens", "65"], '--draft-tokens is "65" and must be a whole number from 1 to'),
    ],
)
def test_the_program_rejects(
    sanitized: Path, folder: Path, arguments: list[str], sentence: str
) -> None:
    command = [sanitized / "run", folder / "model.slm", *arguments, "a"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert sentence in done.stderr


def test_the_help_names_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert f"1 to {lib.SL_MAX_DRAFT_TOKENS} (default: {lib.SL_DEFAULT_DRAFT_TOKENS})" in words


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story = Engine(folder / "model.slm").generate("ab", seed=3, max_tokens=50)
    text = "".join(story)
    command = ["generate", "--model", str(folder / "model.slm"), "--prompt", "ab", "--seed", "3"]
    command += ["--max-tokens", "50", "--draft", str(folder / "near.slm")]
    for tokens in ([], ["--draft-tokens", "1"]):
        with pytest.raises(SystemExit) as ended:
            main([*command, *tokens])
        assert ended.value.code == 0
        out, err = capsys.readouterr()
        assert out == f"ab{text}\n"
        assert re.search(r"\d+ of \d+ drafted tokens accepted\n$", err)
    for arguments, sentence in (
        (["--draft-tokens", "2"], "draft_tokens is 2 and there is no draft: name one with --draft"),
        (["--draft", "near.slm", "--draft-tokens", "65"], "near.slm does not exist"),
        (["--draft", str(folder / "near.slm"), "--draft-tokens", "65"], "draft_tokens is 65 and m"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["generate", "--model", str(folder / "model.slm"), *arguments])
        assert sentence in str(ended.value.code)
