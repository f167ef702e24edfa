"""Records of prompts and responses: reading, training on responses only, generation."""

from __future__ import annotations

import dataclasses
import io
import json
from itertools import pairwise
from pathlib import Path

import engine_files
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import training_job
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from storyllamas import cli, evaluation, instruct, pretokenize, token_file, tokenizer
from storyllamas.chat.conversation import special_tokens
from storyllamas.chat.renderer import Renderer
from storyllamas.corpus import files, formats, sources
from storyllamas.corpus.storybook import records
from storyllamas.engine.engine import Engine
from storyllamas.errors import UserError
from storyllamas.interop.model import open_model
from storyllamas.model import Llama
from storyllamas.params import Clean, Corpus
from storyllamas.record_rows import IGNORED, pack
from storyllamas.training.interrupt import Interrupt
from storyllamas.training.loop import Trainer, training_run
from storyllamas.training.trained_model import save_model

PUBLISHED = """\
Random sentence: The leaf fell.
Summary: Sara wanted to go home.
Words: quit, oak, gloomy
Features: Dialogue, BadEnding
Story:\x20

Sara and Ben climbed the oak.

"Do not quit!" said Ben.
"""

LINE = st.text(st.characters(blacklist_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1).map(
    str.strip
)
TEXT = st.lists(LINE.filter(bool), min_size=1, max_size=4).map("\n".join)


# ---- Reading -------------------------------------------------------------------------------------


def test_published_format_has_one_order_of_lines() -> None:
    record = instruct.parse(PUBLISHED)
    assert record
    assert record.prompt == (
        "Features: Dialogue, BadEnding\nWords: quit, oak, gloomy\n"
        "Summary: Sara wanted to go home.\nRandom sentence: The leaf fell."
    )
    assert record.response == 'Sara and Ben climbed the oak.\n\n"Do not quit!" said Ben.'


@settings(max_examples=40)
@given(
    st.permutations(["Features: Twist", "Words: a, b", "Summary: s: t", "Random sentence: r."]),
    st.integers(0, 4),
    TEXT,
)
def test_lines_of_a_prompt_may_have_any_order(lines: list[str], count: int, story: str) -> None:
    kept = lines[:count]
    record = instruct.parse("\n".join([*kept, "Story:", story]))
    order = ["Features", "Words", "Summary", "Random sentence"]
    expected = sorted(kept, key=lambda line: order.index(line.partition(":")[0]))
    assert record == instruct.Record("\n".join(expected), story.strip())


@settings(max_examples=40)
@given(TEXT, TEXT)
def test_pairs_survive_a_corpus_file(prompt: str, response: str) -> None:
    try:
        record = instruct.pair(prompt, response)
    except ValueError:
        assume(False)
        raise
    file = io.BytesIO()
    files.write(file, [record.text])
    raw = file.getvalue().split(files.SEPARATOR)
    (text,) = files.stories(raw[:-1], files.ReadCounts())
    read = instruct.parse(text)
    assert read == instruct.parse(record.text)
    assert read
    assert read.response == record.response.strip()
    if not record.prompt.startswith(("Features", "Words", "Summary", "Random", "\ufeff")):
        assert read.prompt == record.prompt


@settings(max_examples=40)
@given(st.text(max_size=60))
def test_any_text_is_a_record_or_none(text: str) -> None:
    record = instruct.parse(text)
    assert record is None or instruct.parse(record.text) == record


def test_json_lines_of_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    lines = [
        {"prompt": "Why?\nTell me.", "response": "Because.\n\nIt is so."},
        {"text": PUBLISHED},
    ]
    path.write_text("\n\n".join(map(json.dumps, lines)))
    first, second = formats.read(path, kind="instruct")
    assert first == "Why?\nTell me.\nStory:\nBecause.\n\nIt is so."
    assert instruct.parse(second) == instruct.parse(PUBLISHED)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "is not JSON in line 2"),
        ('{"prompt": "a"}', 'has no string "response" in line 2'),
        ("[1]", 'has no string "prompt" in line 2'),
        ('{"prompt": 1, "response": "b"}', 'has no string "prompt" in line 2'),
        ('{"prompt": " ", "response": "b"}', 'has an empty "prompt", in line 2'),
        ('{"prompt": "a", "response": ""}', 'has an empty "response", in line 2'),
        (
            '{"prompt": "a", "response": "<|endoftext|>"}',
            'has <.endoftext.> in "response".*in line 2',
        ),
        (
            '{"prompt": "a\\nStory: b", "response": "c"}',
            'has a line of "prompt" that begins with Story:.*in line 2',
        ),
    ],
)
def test_bad_pair_names_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(f'{{"prompt": "a", "response": "b"}}\n{line}\n')
    with pytest.raises(UserError, match=rf"pairs\.jsonl {message}"):
        list(formats.read(path, kind="instruct"))


def test_stories_without_prompts_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "stories.txt"
    path.write_text("A cat.<|endoftext|>A dog.")
    with pytest.raises(UserError, match=r"stories\.txt has no record"):
        list(formats.read(path, kind="instruct"))
    counts = files.ReadCounts()
    path.write_text(f"{PUBLISHED}<|endoftext|>A dog.")
    (text,) = formats.read(path, counts, kind="instruct")
    assert (counts.stories, counts.empty, counts.text_bytes) == (1, 1, len(text.encode()))


def corpus(source: object, valid_share: float = 0.5) -> Corpus:
    clean = Clean(False, 0, False, False)
    return Corpus(str(source), "v1", "", 60, 6, valid_share, "auto", clean, "instruct")


def test_sources_of_records(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="TinyStories-Instruct-train"):
        sources.split(corpus("tinystories"), 1)
    for part in ("train", "valid"):
        (tmp_path / f"TinyStories-Instruct-{part}.txt").write_text(f"Words: {part}\nStory: A.")
    train, valid, _ = sources.split(corpus(tmp_path), 1)
    assert [*train, *valid] == ["Words: train\nStory:\nA.", "Words: valid\nStory:\nA."]
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"{i}", "response": "b"}) + "\n" for i in range(9))
    )
    split = sources.split(corpus(path), 1)
    assert len([*split.train, *split.valid]) == 9


def test_storybook_prompts_are_true_of_their_stories() -> None:
    train, valid = (list(part) for part in sources.split(corpus("storybook"), 1)[:2])
    assert len(train) == 60
    assert len(set(train) | set(valid)) == 66
    found = [instruct.parse(text) for text in train]
    assert [record and record.text for record in found] == train
    for record in found:
        assert record
        assert not instruct.missing_words(record.prompt, record.response)
        assert "Dialogue" not in record.prompt or '"' in record.response
    assert 5 < sum("BadEnding" in text for text in train) < 30
    assert records.record(1, 7) == records.record(1, 7)


# ---- Tokens and loss -----------------------------------------------------------------------------

BOS, EOS = 1, 2


def write_records(path: Path, found: list[tuple[list[int], list[int]]]) -> token_file.TokenFile:
    """Write a token file of prompts and responses."""
    with token_file.write(path, 300, training_job.DIGEST, records=True) as writer:
        for prompt, response in found:
            ids = np.array([BOS, *prompt, BOS, *response, EOS], np.uint16)
            writer.append(ids, 1, len(response))
    return token_file.read(path)


IDS = st.lists(st.integers(3, 299), max_size=14)


@settings(max_examples=40)
@given(st.lists(st.tuples(IDS, IDS.filter(bool)), min_size=1, max_size=9), st.integers(4, 24))
def test_windows_predict_each_response_once(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[list[int], list[int]]], context: int
) -> None:
    file = write_records(tmp_path_factory.mktemp("rows") / "a.bin", found)
    expected = []  # every pair of input and target that is to be learned
    cut = dropped = 0
    for prompt, response in found:
        framed = [BOS, *prompt, BOS, *response, EOS][: context + 1]
        pairs = [*pairwise(framed)][len(prompt) + 1 :]
        expected += pairs
        dropped += not pairs
        cut += bool(pairs) and len(prompt) + len(response) + 3 > context + 1
    rows = pack(file.tokens, context)
    assert (rows.records, rows.cut, rows.dropped) == (len(found), cut, dropped)
    assert bool(rows.describe("a", context)) == bool(cut + dropped)
    assert file.predicted_tokens == sum(len(response) + 1 for _, response in found)
    if dropped == len(found):
        with pytest.raises(UserError, match="no record whose response begins"):
            file.batch(0, 2, context, 1)
        return
    count = len(rows.starts)
    for inputs, targets in (file.first_windows(99, context), file.batch(3, count, context, 1)):
        assert inputs.shape == targets.shape == (count, context)
        assert (inputs[:, 0] == BOS).all()
        is_predicted = targets != IGNORED
        assert is_predicted.any(axis=1).all()
        seen = zip(inputs[is_predicted].tolist(), targets[is_predicted].tolist(), strict=True)
        assert sorted(seen) == sorted(expected)


def test_files_of_stories_have_no_mark(tmp_path: Path) -> None:
    training_job.make_tokens(tmp_path / "a.bin", 1)
    header = (tmp_path / "a.bin").read_bytes()[: token_file.HEADER_BYTES]
    assert header[80:] == bytes(48)
    assert not token_file.read(tmp_path / "a.bin").records


@pytest.mark.parametrize("kind", ["sentencepiece", "byte_level"])
def test_pretokenized_records(tmp_path: Path, kind: tokenizer.TrainableKind) -> None:
    record = instruct.Record("Words: oak", "The oak fell.")
    bare = instruct.Record("", "Again. The oak fell.")
    path, model = tmp_path / "train.txt", tmp_path / "tokenizer.model"
    with path.open("wb") as file:
        files.write(file, [record.text, bare.text])
    model.write_bytes(
        tokenizer.train(
            [record.text, bare.text] * 9, 284 if kind == "sentencepiece" else 270, kind=kind
        )
    )
    counts = pretokenize.pretokenize(path, model, tmp_path / "t.bin", records=True)
    assert counts.text_bytes == len(record.response) + len(bare.response)
    trained = tokenizer.load(model)
    encode, bos, eos = trained.encode, trained.bos_id, trained.eos_id
    expected = [bos, *encode("Words: oak"), bos, *encode("The oak fell."), eos]
    expected += [bos, bos, *encode("Again. The oak fell."), eos]
    assert token_file.read(tmp_path / "t.bin").tokens.tolist() == expected


def make_job(folder: Path, **changes: object) -> training_job.Job:
    """Return a job on counting records, whose responses continue their prompts."""
    job = training_job.make_job(folder, steps=6, dropout=0.0, eval_every=3, **changes)
    random = np.random.default_rng(5)
    parts = {}
    for part in ("train", "valid"):
        found = []
        for _ in range(60):
            start, length, given = random.integers(3, 200), random.integers(6, 40), 4
            ids = (start + np.arange(length)).tolist()
            found.append((ids[:given], ids[given:]))
        parts[part] = write_records(folder / f"{part}.bin", found)
    return dataclasses.replace(job, **parts)


def reference_loss(model: Llama, inputs: np.ndarray, targets: np.ndarray) -> torch.Tensor:
    """Return the mean cross-entropy of the predicted tokens, picked one by one."""
    logs = F.log_softmax(model(torch.from_numpy(inputs)).double(), -1)
    picked = [logs[i, j, targets[i, j]] for i, j in zip(*np.nonzero(targets >= 0), strict=True)]
    return -torch.stack(picked).mean()


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_loss_and_gradient_are_of_responses(
    tmp_path: Path, state_root: Path, micro_batch: int
) -> None:
    job = make_job(tmp_path, micro_batch=micro_batch)
    trainer = Trainer(job, tmp_path / "logs", None)
    context = job.config.context
    batch = job.train.batch(0, job.recipe.tokens_per_step // context, context, job.seed)
    expected = reference_loss(trainer.model, *batch)
    expected.backward()
    wanted = trainer.model.embedding.weight.grad
    trainer.model.zero_grad()
    trainer.model.train()
    mean = trainer._accumulate(batch, Interrupt(None))
    assert mean == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(trainer.model.embedding.weight.grad, wanted, rtol=1e-4, atol=1e-7)
    with torch.no_grad():
        valid = reference_loss(trainer.model, *job.valid.first_windows(6, context)).item()
    assert trainer._validate() == pytest.approx(valid, rel=1e-6)
    trainer.close_logs()


def test_run_learns_and_its_model_says_so(tmp_path: Path, state_root: Path) -> None:
    job = make_job(tmp_path)
    with training_run(job, tmp_path / "logs", checkpoint_seconds=99) as result:
        assert result.metrics["train_loss"] < np.log(300)
        digest = {"tokenizer_sha256": tokenizer_digest(tmp_path), "corpus_kind": "instruct"}
        save_model(tmp_path / "model", job.config, result.tensors, digest)
    assert open_model(tmp_path / "model").vocabulary.chat_template == instruct.CHAT_TEMPLATE


def tokenizer_digest(folder: Path) -> str:
    (folder / "tokenizer.model").write_bytes(tokenizer.train(["a b c"] * 9, 258, kind="byte_level"))
    return tokenizer.load(folder / "tokenizer.model").digest.hex()


# ---- Generation ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the weight files of a random model that was trained on records, and of another."""
    config = engine_files.small_config()
    tensors = engine_files.random_tensors(config)
    vocabulary = engine_files.make_vocabulary()
    folder = tmp_path_factory.mktemp("models")
    paths = {"instruct": folder / "i.slm", "stories": folder / "s.slm"}
    for name, template in (("instruct", instruct.CHAT_TEMPLATE), ("stories", "")):
        chosen = dataclasses.replace(vocabulary, chat_template=template)
        engine_files.write(paths[name], config, tensors, chosen)
    return paths


def test_words_and_ending_make_the_prompt_of_training(
    models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine(models["instruct"])
    prompt = "Features: BadEnding\nWords: a b, c"
    ids = [engine.bos_id, *engine.encode(prompt), engine.bos_id]
    expected = "".join(engine.generate(ids, seed=3, max_tokens=9)).removeprefix(" ")
    options = ["--model", str(models["instruct"]), "--seed", "3", "--max-tokens", "9"]
    asked = ["--words", " a  b ,, c", "--ending", "sad"]
    with pytest.raises(SystemExit):
        cli.main(["generate", *options, *asked])
    assert capsys.readouterr().out == f"{expected}\n"
    with pytest.raises(SystemExit):
        cli.main(["generate", *options, *asked, "--count", "2"])
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (first["text"], first["prompt"]) == (expected, "")


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("stories", ["--words", "cake"], "was not trained to follow --words and --ending"),
        ("stories", ["--ending", "happy"], "corpus.kind=instruct"),
        ("instruct", ["--words", ", ,"], "the words are ', ,'"),
        ("instruct", ["--words", "a", "--prompt", "Once"], "leave out --prompt"),
    ],
)
def test_wrong_request_is_one_sentence(
    models: dict[str, Path], model: str, arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["generate", "--model", str(models[model]), *arguments])
    assert message in str(stopped.value)


def test_chat_template_makes_the_prompt_of_training(models: dict[str, Path]) -> None:
    engine = Engine(models["instruct"])
    renderer = Renderer("m.slm", engine.chat_template, special_tokens(engine))
    with renderer:
        text = renderer.render([{"role": "user", "content": "Words: a b"}])
    ids = engine.tokenizer.encode(text, special=True)
    assert ids == instruct.prompt_ids("Words: a b", engine.encode, engine.bos_id)


def test_missing_words() -> None:
    prompt = "Features: Dialogue\nWords: cake, ice cream, Oak"
    assert instruct.missing_words(prompt, "The oak ate ice cream, and cakes.") == ["cake"]
    assert instruct.missing_words("Features: Dialogue", "x") == []
    assert instruct.asked(None, "happy") == ""


def test_score_of_records_is_of_their_responses(models: dict[str, Path]) -> None:
    engine = Engine(models["instruct"])
    record = instruct.Record("a b", "b a ab")
    ids, given = record.ids(engine.encode, engine.bos_id, engine.eos_id)
    logs = torch.from_numpy(engine.logits(ids[:-1])).double()
    nats = F.cross_entropy(logs, torch.tensor(ids[1:]), reduction="none")[given - 1 :]
    score = evaluation.score(engine, [record])
    assert score.loss == pytest.approx(nats.mean().item(), abs=1e-5)
    assert score.bits_per_byte == pytest.approx(nats[:-1].sum().item() / np.log(2) / 6, abs=1e-5)
