"""Training that starts from a model: what it reads, its first loss, and its embedding."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from interop.random_models import make_config, make_source
from training_job import CONFIG, make_job

from stages.tokenizer import is_model, read_of_model
from storyllamas import tokenizer
from storyllamas.config import ModelConfig, tensor_shapes
from storyllamas.errors import UserError
from storyllamas.interop.formats import export_model
from storyllamas.interop.model import InteropModel
from storyllamas.model import Llama
from storyllamas.slm import weight_file
from storyllamas.training import loop, start_reader
from storyllamas.training.interrupt import Interrupt
from storyllamas.training.job import Job
from storyllamas.training.loop import training_run
from storyllamas.training.shared_pieces import piece_map
from storyllamas.training.start import Start
from storyllamas.training.trained_model import save_model
from storyllamas.vocabulary import PieceType, PreTokenizer, TokenizerKind

pytestmark = pytest.mark.usefixtures("state_root")

STORIES = [
    "Lily saw a big red ball in the park.",
    "Tom and the little dragon ate a cake, and then they were sad.",
    "One day the sun was hot, so the dog ran home to drink water.",
]
SMALL = make_config(vocab_size=320, context=32)


def random_tensors(config: ModelConfig, seed: int = 5) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: tensor.detach() for name, tensor in Llama(config).state_dict().items()}


def started_job(folder: Path, **changes: object) -> Job:
    job = make_job(folder, **{"dropout": 0.0, "steps": 6, **changes})
    return dataclasses.replace(job, start=Start(random_tensors(CONFIG)))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the files of two SentencePiece tokenizers and a byte-level one."""
    folder = tmp_path_factory.mktemp("tokenizers")
    made = {
        "one": tokenizer.train(STORIES, 320),
        "other": tokenizer.train(STORIES[1:], 310),
        "byte_level": tokenizer.train(STORIES, 300, kind="byte_level"),
    }
    for name, model in made.items():
        (folder / name).write_bytes(model)
    return {name: folder / name for name in made}


def make_model(path: Path, config: ModelConfig = SMALL) -> InteropModel:
    """Return a model with random weights and the tokenizer of a file."""
    vocabulary = tokenizer.load(path).vocabulary()
    config = dataclasses.replace(config, vocab_size=len(vocabulary.pieces))
    return InteropModel(config, vocabulary, make_source(config).tensor)


def save_as(kind: str, model: InteropModel, pieces: Path, folder: Path) -> Path:
    """Write a model in a format; return the path that `train.start` takes."""
    if kind == "slm":
        weight_file.write(folder / "model.slm", model.config, model.vocabulary, model.tensor)
        return folder / "model.slm"
    if kind == "trained":
        tensors = {n: torch.from_numpy(model.tensor(n)[:]) for n in tensor_shapes(model.config)}
        digest = tokenizer.load(pieces).digest.hex()
        save_model(folder / "trained", model.config, tensors, {"tokenizer_sha256": digest})
        return folder / "trained"
    if kind == "gguf":
        pytest.importorskip("gguf")
    files = export_model(model, kind, folder / kind)
    return folder / kind if kind == "hf" else next(f for f in files if f.name.startswith("model."))


@pytest.mark.parametrize("kind", ["trained", "slm", "hf", "gguf", "llama2c"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_format_is_a_start(
    kind: str, tied: bool, tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    model = make_model(tokenizers["one"], dataclasses.replace(SMALL, tied=tied))
    path = save_as(kind, model, tokenizers["one"], tmp_path)
    wanted = dataclasses.replace(model.config, tied=True, context=16)
    config, tensors = start_reader.read(path, wanted, tokenizers["one"], 1)
    assert config == dataclasses.replace(model.config, context=16)
    assert list(tensors) == list(tensor_shapes(config))
    for name, tensor in tensors.items():
        assert np.array_equal(tensor, model.tensor(name)[:]), name


@pytest.mark.parametrize("kind", ["trained", "slm", "hf", "gguf"])
@pytest.mark.parametrize("pieces", ["one", "byte_level"])
def test_the_tokenizer_of_a_model_is_one_to_train_with(
    kind: str, pieces: str, tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    path = save_as(kind, make_model(tokenizers[pieces]), tokenizers[pieces], tmp_path)
    if kind == "trained":
        shutil.copy(tokenizers[pieces], path / "tokenizer.model")
    assert is_model(path)
    found = tokenizer.from_bytes(read_of_model(path))
    wanted = tokenizer.load(tokenizers[pieces])
    text = " ".join(STORIES) + " Ünknown <s> ☃"
    assert found.encode(text) == wanted.encode(text)
    assert found.vocabulary().pieces == wanted.vocabulary().pieces
    assert (found.bos_id, found.eos_id) == (wanted.bos_id, wanted.eos_id)


def test_a_tokenizer_that_the_workflow_cannot_train_with(
    tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    model = make_model(tokenizers["byte_level"])
    other = dataclasses.replace(model.vocabulary, pre_tokenizer=PreTokenizer.GPT2)
    path = tmp_path / "other.slm"
    weight_file.write(path, model.config, other, model.tensor)
    tokenizer_of_it = tokenizer.from_bytes(read_of_model(path))  # of another regular expression
    assert tokenizer_of_it.vocabulary().pre_tokenizer == PreTokenizer.GPT2
    ranked = dataclasses.replace(
        model.vocabulary,
        kind=TokenizerKind.BPE,
        pre_tokenizer=PreTokenizer.NONE,
        ignore_merges=False,
    )
    weight_file.write(path, model.config, ranked, model.tensor)
    with pytest.raises(UserError, match=r"tokenizer\.path is .*other\.slm: its tokenizer is not"):
        read_of_model(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"tokenizer\.path cannot be used: .*other\.slm"):
        read_of_model(path)


def test_the_first_loss_is_that_of_the_start(tmp_path: Path) -> None:
    job = started_job(tmp_path)
    with training_run(job, tmp_path / "logs", 1e9) as result:
        assert result.metrics["steps"] == 6
    assert job.start is not None
    model = Llama(CONFIG)
    model.load_state_dict(dict(job.start.tensors))
    inputs, targets = map(torch.from_numpy, job.valid.first_windows(6, 32))
    header, first, *_ = (tmp_path / "logs/validation.csv").read_text().splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=True))
    assert row["step"] == "0"
    assert float(row["loss"]) == pytest.approx(model.loss(inputs, targets).item(), abs=1e-3)


def test_a_run_resumes_without_the_weights_of_its_start(tmp_path: Path) -> None:
    job = started_job(tmp_path, dropout=0.1)
    trainer = loop.Trainer(job, tmp_path / "logs", None)
    with Interrupt() as interrupt:
        for _ in range(3):
            trainer.train_step(interrupt)
        # A checkpoint shares its memory with the model until it is saved.
        checkpoint = copy.deepcopy(trainer.checkpoint())
        for _ in range(3):
            trainer.train_step(interrupt)
        resumed = loop.Trainer(job, tmp_path / "logs", checkpoint)
        for _ in range(3):
            resumed.train_step(interrupt)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_another_start_is_another_job(tmp_path: Path) -> None:
    job = started_job(tmp_path)
    other = dataclasses.replace(job, start=Start(random_tensors(CONFIG, seed=6)))
    plain = dataclasses.replace(job, start=None)
    assert len({job.key(), other.key(), plain.key()}) == 3
    assert started_job(tmp_path).key() == job.key()


def test_another_shape_is_rejected_with_the_options_that_fit(
    tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    path = save_as("slm", make_model(tokenizers["one"]), tokenizers["one"], tmp_path)
    wanted = dataclasses.replace(SMALL, dim=48, layers=3, norm_eps=1e-6)
    with pytest.raises(UserError, match=r"add -S shape\.dim=32 -S shape\.layers=2 -S shape\.norm"):
        start_reader.read(path, wanted, tokenizers["one"], 1)
    wanted = dataclasses.replace(SMALL, dim=16, layers=3)
    message = r"cannot grow to it, since its dim is 32, above 16: add -S shape\.dim=32 -S shape\."
    with pytest.raises(UserError, match=message):
        start_reader.read(path, wanted, tokenizers["one"], 1)


def test_a_smaller_start_grows(
    tokenizers: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tokenizers["one"])
    path = save_as("slm", model, tokenizers["one"], tmp_path)
    wanted = dataclasses.replace(SMALL, dim=48, layers=3, vocab_size=320)
    config, tensors = start_reader.read(path, wanted, tokenizers["one"], 1)
    assert config == wanted
    assert "it grows to the chosen size: dim 32 to 48, layers 2 to 3" in capsys.readouterr().out
    start, grown = Llama(model.config), Llama(config)
    start.load_state_dict({n: torch.from_numpy(model.tensor(n)[:]) for n in start.state_dict()})
    grown.load_state_dict(tensors)
    tokens = torch.randint(300, (8, 33), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        losses = [m.loss(tokens[:, :-1], tokens[:, 1:]).item() for m in (start, grown)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    with pytest.raises(
        UserError,
        match=r"since an adapter belongs .*: add -S shape\.dim=32 .* or -S train\.lora_rank=0",
    ):
        start_reader.read(path, wanted, tokenizers["one"], 1, has_lora=True)


def test_what_is_no_model_is_named(tokenizers: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.start is .*nothing, which does not exist"):
        start_reader.read(tmp_path / "nothing", SMALL, tokenizers["one"], 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"train\.start cannot be used: .*config\.json"):
        start_reader.read(tmp_path / "empty", SMALL, tokenizers["one"], 1)
    folder = save_as("trained", make_model(tokenizers["one"]), tokenizers["one"], tmp_path)
    with pytest.raises(UserError, match="another tokenizer"):
        start_reader.read(folder, SMALL, tokenizers["other"], 1)
    shutil.copy(tokenizers["one"], folder / "tokenizer.model")
    config = dataclasses.replace(SMALL, vocab_size=310)
    _, tensors = start_reader.read(folder, config, tokenizers["other"], 1)
    assert tensors["embedding.weight"].shape == (310, SMALL.dim)
    about = json.loads((folder / "config.json").read_text())
    assert about["tokenizer_sha256"] == tokenizer.load(folder / "tokenizer.model").digest.hex()


@pytest.mark.parametrize("name", ["one", "byte_level"])
def test_the_same_tokenizer_keeps_every_row(name: str, tokenizers: dict[str, Path]) -> None:
    vocabulary = tokenizer.load(tokenizers[name]).vocabulary()
    pieces = piece_map(vocabulary, vocabulary)
    assert pieces.sources == [[index] for index in range(len(vocabulary.pieces))]
    matrix = np.random.default_rng(0).standard_normal((len(pieces.sources), 8), np.float32)
    assert np.array_equal(pieces.rows(matrix), matrix)


@pytest.mark.parametrize(("start", "target"), [("one", "byte_level"), ("byte_level", "one")])
def test_rows_follow_the_text_of_pieces(
    start: str, target: str, tokenizers: dict[str, Path]
) -> None:
    old, new = (tokenizer.load(tokenizers[name]) for name in (start, target))
    before, after = old.vocabulary(), new.vocabulary()
    pieces = piece_map(before, after)
    assert pieces.sources[after.bos_id] == [before.bos_id]
    assert pieces.sources[after.eos_id] == [before.eos_id]
    spelled = 0
    for index, ids in enumerate(pieces.sources):
        if after.types[index] == PieceType.NORMAL and after.pieces[index].isascii():
            assert old.decode(ids).strip(" ") == new.decode([index]).strip(" ")
            spelled += len(ids) > 1
    assert pieces.copied > 250
    assert spelled <= pieces.spelled
    matrix = np.random.default_rng(0).standard_normal((len(before.pieces), 8), np.float32)
    rows = pieces.rows(matrix)
    for row, ids in zip(rows, pieces.sources, strict=True):
        expected = matrix[ids] if ids else matrix
        assert np.allclose(row, expected.mean(0), atol=1e-6)
    assert f"{pieces.copied:,} of the tokenizer's {len(rows):,} pieces" in pieces.describe()
