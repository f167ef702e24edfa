"""`storyllamas plan`: measurements, estimates, the expected loss and the table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from training_job import make_job

from storyllamas import params
from storyllamas.commands import plan as command
from storyllamas.errors import UserError
from storyllamas.model import Llama
from storyllamas.params import FineTuning, Params
from storyllamas.plan import energy, loss, make, measure, table
from storyllamas.plan.estimate import (
    Case,
    correction,
    estimate,
    model_speed,
    scaled,
)
from storyllamas.plan.loss import Range, Run, expected
from storyllamas.plan.measure import Machine, Measured, measure_machine, measure_size
from storyllamas.training import speed_log
from storyllamas.training.device import Device
from storyllamas.training.interrupt import Interrupt
from storyllamas.training.loop import Trainer
from storyllamas.training.speed_log import Speed

MACHINE = Machine("a processor", "cpu", "float32", 2, 200_000_000, 100e9)
MEASURED = Measured("2m", 8, 100e-6, 60e-6, 0.02, 30e-6, 25_000_000, 15_000_000, 6_296_064, None)
SETTINGS = speed_log.settings("cpu", "float32", 2, compiled=True, in_c=False)

RAW = params.read(ROOT / "params.yaml")


def chosen(**changes: Any) -> Params:
    return params.parse({**RAW, **changes})


def case(measured: Measured = MEASURED, compiled: bool = True, **changes: Any) -> Case:
    return Case(chosen(model=measured.size, **changes), measured, compiled)


def speed_of(one: Case, factor: float, **changes: Any) -> Speed:
    """Return a run whose speed is `factor` times its estimate."""
    config, recipe = one.chosen.model_config(), one.chosen.recipe
    tokens = model_speed(one.measured, config, recipe, one.compiled) * factor
    values: dict[str, Any] = {
        "machine": MACHINE.name,
        "settings": SETTINGS,
        "config": dataclasses.asdict(config),
        "recipe": dataclasses.asdict(recipe),
        "steps": 100,
        "seconds": 100.0,
        "tokens_per_second": tokens,
        "peak_memory_bytes": 1,
        "peak_flops_per_second": MACHINE.peak_flops_per_second,
    }
    return Speed(**{**values, **changes})


# ---- Measurements --------------------------------------------------------------------------------


@pytest.fixture
def tiny() -> Params:
    shape = {"dim": 16, "layers": 1, "heads": 2, "kv_heads": 2, "head_dim": 8, "hidden": 16}
    raw = {**RAW, "shape": {**RAW["shape"], **shape, "context": 32}}
    raw["tokenizer"] = {**RAW["tokenizer"], "vocab_size": 300}
    raw["train"] = {"tokens_per_step": 128, "micro_batch": "auto"}
    raw["evaluation"] = {**RAW["evaluation"], "speed_tokens": 16}
    return params.parse(raw)


def test_a_size_is_measured_on_random_tokens(tiny: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "matmul_peak", lambda *_: 1e9)
    where = Device("cpu", False, 1, compiled=True)
    measured = measure_size(tiny, where, 0.0)
    assert (measured.size, measured.micro_batch) == ("2m", 4)
    assert measured.validation_per_token > 0
    assert measured.pass_per_token > 0
    assert measured.products_per_token > 0
    assert 0 < measured.optimizer < 60
    assert measured.sequence_bytes > 4 * 32 * 300
    machine = measure_machine(where)
    assert machine.base_bytes > 0
    assert machine.threads == 1


@pytest.mark.parametrize(("threads", "sequences"), [(1, 1), (2, 2), (8, 4)])
def test_measured_steps_have_a_sequence_for_each_thread(
    tiny: Params, monkeypatch: pytest.MonkeyPatch, threads: int, sequences: int
) -> None:
    """But not more than the micro-batch, 4, even if there is no time for more."""
    taken: list[int] = []

    def take_for(_: object, seconds: float, windows: int) -> tuple[float, float]:
        taken.append(windows)
        return 1.0, 1.0

    monkeypatch.setattr("storyllamas.plan.measure._Steps.take_for", take_for)
    measured = measure_size(tiny, Device("cpu", False, threads), 0.0)
    assert taken == [sequences]
    assert measured.pass_per_token == 1 / (sequences * tiny.size.context)


@pytest.mark.parametrize(("share", "length"), [(0.0, 32), (0.4, 32), (0.85, 16)])
def test_measured_steps_have_the_sequences_of_most_steps(
    tiny: Params, monkeypatch: pytest.MonkeyPatch, share: float, length: int
) -> None:
    lengths: set[int] = set()
    take = Trainer._accumulate

    def record(trainer: Trainer, batch: tuple[Any, Any], *rest: Any) -> float:
        if len(rest) == 2:  # in a step
            lengths.add(batch[0].shape[1])
        return take(trainer, batch, *rest)

    monkeypatch.setattr(Trainer, "_accumulate", record)
    recipe = dataclasses.replace(tiny.recipe, half_context=share)
    measure_size(dataclasses.replace(tiny, recipe=recipe), Device("cpu", False, 1), 0.0)
    assert lengths == {length}


def test_what_is_frozen_needs_less(tiny: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[Llama] = []

    def record(model: Llama, *_: object) -> float:
        products.append(model)
        return 0.0

    monkeypatch.setattr(measure, "_products", record)
    where = Device("cpu", False, 1, compiled=False)
    full = measure_size(tiny, where, 0.0)
    start = FineTuning(start="model", lora_rank=2, lora_targets=("attention.output",))
    lora = measure_size(dataclasses.replace(tiny, fine_tuning=start), where, 0.0)
    assert lora.trained_bytes == 4 * 2 * (16 + 16)
    assert lora.state_bytes == 3 * lora.trained_bytes
    assert full.trained_bytes == 4 * tiny.model_config().parameters
    # Rows, columns, whether the inputs have a gradient, and whether the matrix has one.
    assert measure._matrices(products[1]) == {
        (48, 16, False, False): 1,
        (16, 16, False, False): 1,
        (2, 16, False, True): 1,
        (16, 2, True, True): 1,
        (32, 16, True, False): 1,
        (16, 16, True, False): 1,
        (300, 16, True, False): 1,
    }
    assert all(below and trained for _, _, below, trained in measure._matrices(products[0]))


def test_power_is_that_of_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text("900")
        (tmp_path / name / "max_energy_range_uj").write_text("999")
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(energy.time, "monotonic", lambda: next(clock))
    with energy.measured() as meter:
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text("950")
        (tmp_path / "intel-rapl:1" / "energy_uj").write_text("50")  # began again at 0
    assert meter.watts == pytest.approx((50 + 150) / 1e6 / 2)


def test_power_is_unknown_without_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    with energy.measured() as meter:
        pass
    assert meter.watts is None


# ---- Estimates -----------------------------------------------------------------------------------


def test_a_step_is_passes_and_one_update() -> None:
    one = case(compiled=False)
    config = one.chosen.model_config()
    recipe = dataclasses.replace(one.chosen.recipe, eval_sequences=1, eval_every=1000)
    speed = model_speed(MEASURED, config, recipe, compiled=False)
    assert speed == pytest.approx(2048 / (2048 * 100e-6 + 0.02), rel=0.02)
    # Compiling leaves the products, 60 of 100 microseconds.
    compiled = model_speed(MEASURED, config, recipe, compiled=True)
    assert compiled == pytest.approx(2048 / (2048 * 84e-6 + 0.02), rel=0.02)
    often = dataclasses.replace(recipe, eval_sequences=64, eval_every=1)
    slower = 2048 * 100e-6 + 0.02 + 64 * 256 * 30e-6
    assert model_speed(MEASURED, config, often, False) == pytest.approx(2048 / slower, rel=0.02)


def test_costs_of_a_run() -> None:
    found = estimate(case(), MACHINE)
    recipe = case().chosen.recipe
    tokens = recipe.steps * recipe.tokens_per_step
    assert found.seconds == pytest.approx(tokens / found.tokens_per_second + 40)
    weights = 4 * case().chosen.model_config().parameters
    assert found.disk_bytes > 2 * weights
    assert 0.5e9 < found.memory_bytes < 1e9
    assert found.watt_hours is None
    powered = dataclasses.replace(MEASURED, watts=90.0)
    hours = estimate(case(powered), MACHINE).watt_hours
    assert hours == pytest.approx(found.seconds / 3600 * 90)


def test_teachers_are_a_part_of_the_costs() -> None:
    alone = estimate(case(), MACHINE)
    taught = case()
    folds = {"teacher_folds": 4, "teachers_per_fold": 2}
    recipe = dataclasses.replace(taught.chosen.recipe, **folds)
    chosen = dataclasses.replace(taught.chosen, recipe=recipe)
    # Of the same size, and of one that takes half of the time.
    twice = dataclasses.replace(
        MEASURED,
        pass_per_token=MEASURED.pass_per_token / 2,
        products_per_token=MEASURED.products_per_token / 2,
        optimizer=MEASURED.optimizer / 2,
        validation_per_token=MEASURED.validation_per_token / 2,
    )
    lessons = dataclasses.replace(taught.chosen.recipe, steps=1000)
    tokens = 8 * 1000 * recipe.tokens_per_step
    for measured, share in ((MEASURED, 1), (twice, 2)):
        one = dataclasses.replace(taught.chosen, recipe=lessons)
        teacher = dataclasses.replace(taught, chosen=one, measured=measured)
        found = estimate(dataclasses.replace(taught, chosen=chosen, teacher=teacher), MACHINE)
        expected = tokens / (share * alone.tokens_per_second)
        assert found.seconds - alone.seconds == pytest.approx(expected, rel=0.02)
        assert found.memory_bytes == alone.memory_bytes
        weights = 4 * taught.chosen.model_config().parameters
        assert found.disk_bytes - alone.disk_bytes == pytest.approx(8 * weights)


def test_steps_in_c_are_as_measured() -> None:
    in_c = dataclasses.replace(MEASURED, c_bytes=50_000_000)
    found, without = estimate(case(in_c), MACHINE), estimate(case(compiled=False), MACHINE)
    assert found.tokens_per_second == without.tokens_per_second
    assert found.seconds == without.seconds
    run = speed_of(case(in_c), 0.7, settings={**SETTINGS, "in_c": True})
    assert correction(case(in_c), [case(in_c)], MACHINE, [run]) == (1.0, 0)
    more = dataclasses.replace(MEASURED, c_bytes=150_000_000)
    grown = estimate(case(more), MACHINE).memory_bytes - found.memory_bytes
    assert grown == pytest.approx(100_000_000)


def test_the_step_that_gets_memory_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([(9.0, 3.0), (0.5, 0.2)])
    monkeypatch.setattr(measure._Steps, "take", lambda steps, windows: next(seconds))
    steps = measure._Steps.__new__(measure._Steps)
    assert steps.take_for(0.0, 4) == (0.5, 0.2)


def test_a_size_that_is_not_measured_is_scaled() -> None:
    small, large = case(), chosen(model="30m", train={"micro_batch": "auto"})
    found = scaled(small, large)
    work = large.model_config().training_flops / small.chosen.model_config().training_flops
    assert found.pass_per_token == pytest.approx(work * MEASURED.pass_per_token)
    assert found.micro_batch == 8
    assert found.sequence_bytes == pytest.approx(4.0 * MEASURED.sequence_bytes, rel=0.1)
    assert scaled(small, small.chosen) == MEASURED


def test_gpus_of_several_processes_add_up() -> None:
    compute = {"compute": {**RAW["compute"], "processes": 4}}
    gpu = dataclasses.replace(MACHINE, device="cuda")
    one, four = estimate(case(), gpu), estimate(case(**compute), gpu)
    assert four.tokens_per_second == pytest.approx(4 * one.tokens_per_second)
    assert estimate(case(**compute), MACHINE).tokens_per_second == one.tokens_per_second
    assert one.memory_bytes < estimate(case(), MACHINE).memory_bytes


def test_runs_of_the_same_size_correct_an_estimate() -> None:
    one = case()
    speeds = [speed_of(one, factor) for factor in (0.7, 0.8, 3.0)]
    assert correction(one, [one], MACHINE, speeds) == (pytest.approx(0.8), 3)
    factor, runs = correction(one, [one], MACHINE, speeds)
    found = estimate(one, MACHINE, factor, runs)
    assert found.tokens_per_second == pytest.approx(speeds[1].tokens_per_second)
    assert found.runs == 3
    # The machine has become half as fast.
    slow = dataclasses.replace(MACHINE, peak_flops_per_second=50e9)
    assert correction(one, [one], slow, speeds[:1])[0] == pytest.approx(0.35)


def test_runs_of_other_sizes_correct_an_estimate_within_bounds() -> None:
    one = case()
    other = case(dataclasses.replace(MEASURED, size="7m"))
    cases = [one, other]
    assert correction(one, cases, MACHINE, [speed_of(other, 0.9)]) == (pytest.approx(0.9), 1)
    assert correction(one, cases, MACHINE, [speed_of(other, 9.0)]) == (2.0, 1)
    assert correction(one, cases, MACHINE, []) == (1.0, 0)
    start = FineTuning(start="model", freeze=("norms",))
    frozen = dataclasses.replace(one, chosen=dataclasses.replace(one.chosen, fine_tuning=start))
    assert correction(frozen, cases, MACHINE, [speed_of(one, 0.9)]) == (1.0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"machine": "another"},
        {"settings": {**SETTINGS, "compiled": False}},
        {"settings": {**SETTINGS, "in_c": True}},
        {"config": {}},
        {"recipe": {"optimizer": "adamw"}},
    ],
)
def test_runs_that_differ_do_not_count(changes: dict[str, Any]) -> None:
    one = case()
    assert correction(one, [one], MACHINE, [speed_of(one, 2.0, **changes)]) == (1.0, 0)


def test_a_run_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORYLLAMAS_STATE", str(tmp_path / "state"))
    trainer = Trainer(make_job(tmp_path), tmp_path / "logs", None)
    with speed_log.recorded(trainer):
        trainer.train_step(Interrupt())
    assert speed_log.read(speed_log.path()) == []  # too short
    monkeypatch.setattr(speed_log, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(speed_log, "matmul_peak", lambda *_: 1e9)
    with suppress(SystemExit), speed_log.recorded(trainer):
        trainer.train_step(Interrupt())
        raise SystemExit(143)  # as after a signal
    with speed_log.path().open("a") as file:
        file.write("another version\n{}\n")
    (speed,) = speed_log.read(speed_log.path())
    assert speed.steps == 1
    assert speed.recipe["micro_batch"] == 4
    assert speed.settings == speed_log.settings("cpu", "float32", 1, compiled=False, in_c=False)
    assert speed.machine == speed_log.machine("cpu")


# ---- The expected loss ---------------------------------------------------------------------------


def power_law(parameters: int, tokens: int, noise: float = 0.0) -> Run:
    return Run("2m", parameters, tokens, 9 * parameters**-0.1 * tokens**-0.05 * math.exp(noise))


def test_a_power_law_is_found_again() -> None:
    runs = [
        power_law(n, d) for n, d in ((1e6, 1e6), (1e6, 4e6), (7e6, 2e6), (7e6, 8e6), (3e7, 4e6))
    ]
    found = expected(runs, int(3e7), int(1.6e7))
    assert isinstance(found, Range)
    assert found.loss == pytest.approx(power_law(int(3e7), int(1.6e7)).loss, rel=1e-6)
    assert found.low == pytest.approx(found.high, rel=1e-3)


def test_the_range_grows_with_the_scatter() -> None:
    noises = (0.02, -0.02, 0.01, -0.01)
    runs = [power_law(10**6, 10**6 * 2**i, noise) for i, noise in enumerate(noises)]
    found = expected(runs, 10**6, 3 * 10**6)
    assert isinstance(found, Range)
    assert 0.02 < math.log(found.high / found.low) < 0.2
    assert found.low < power_law(10**6, 3 * 10**6).loss < found.high


def test_no_loss_from_too_few_runs_or_far_from_them() -> None:
    runs = [power_law(10**6, 10**6 * 2**i) for i in range(4)]
    assert expected([], 10**6, 10**6) == "too few runs"
    assert expected(runs[:3], 10**6, 10**6) == "too few runs"
    assert expected(runs, 10**6, 10**8) == "too far from your runs"
    assert expected(runs, 2 * 10**6, 10**6) == "too far from your runs"


def test_runs_with_another_corpus_or_rate_do_not_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = {"size": "2m", "parameters": 5, "tokens": 7, "validation_loss": 1.5}
    versions = {
        "": RAW,
        "steps": {**RAW, "train": {"steps": 10}},
        "rate": {**RAW, "train": {"learning_rate": 0.001}},
        "start": {**RAW, "train": {"start": "model", "start_lr_scale": 1.0}},
        "corpus": {**RAW, "corpus": {**RAW["corpus"], "stories": 10}},
        "size": {**RAW, "model": "7m"},
        "broken": {},
    }
    tokens = {name: index for index, name in enumerate(versions)}

    def read_at(revision: str, path: str) -> str:
        if path == "params.yaml":
            return yaml.safe_dump(versions[revision], allow_unicode=True)
        return json.dumps({**metrics, "tokens": tokens[revision]})

    monkeypatch.setattr(loss, "read_at", read_at)
    monkeypatch.setattr(loss.losses, "revisions", lambda: iter(list(versions)[1:]))
    found = loss.comparable_runs({"2m": chosen()})
    assert [run.tokens for run in found] == [tokens[""], tokens["steps"]]


# ---- The command ---------------------------------------------------------------------------------


def test_overrides_are_those_of_dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    raw = make.read_params(["model=7m", "params.yaml:train.steps=12", "train.micro_batch=auto"])
    assert (raw["model"], raw["train"]["steps"]) == ("7m", 12)
    assert params.parse(raw).recipe.micro_batch == "auto"
    assert (tmp_path / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()
    assert list(make.sizes_of(raw)) == ["7m", "2m", "30m"]
    for bad, message in (
        ("model", "-S model is not KEY=VALUE with a key of params.yaml"),
        ("nokey=3", "-S nokey=…: params.yaml has no such key"),
        ("other.yaml:a=3", "-S changes other.yaml: give a key of params.yaml"),
    ):
        with pytest.raises(UserError) as caught:
            make.read_params([bad])
        assert str(caught.value).startswith(message)


def test_the_table_shows_all_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Measurement:
        def __init__(self, sizes: list[dict[str, Any]], until: float) -> None:
            assert [raw["model"] for raw in sizes] == ["2m", "7m", "30m"]

        def results(self) -> tuple[Machine, list[Measured]]:
            slower = dataclasses.replace(MEASURED, size="7m", pass_per_token=400e-6, watts=50.0)
            return MACHINE, [MEASURED, slower]

        def stop(self) -> None:
            pass

    runs = [power_law(case().chosen.model_config().parameters, 10**6 * 2**i) for i in range(4)]
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("STORYLLAMAS_STATE", str(tmp_path))
    monkeypatch.setattr(make, "Measurement", Measurement)
    monkeypatch.setattr(loss, "comparable_runs", lambda sizes: runs)
    command.run(argparse.Namespace(set_param=[], json=False))
    text = capsys.readouterr().out
    assert "2m *  3,400  6.96 M" in text
    assert "kWh" in text
    assert "30m is scaled from 7m: there was no time to measure it." in text
    assert "too far from your runs" in text
    assert "No earlier run on this machine corrects the speed yet." in text
    command.run(argparse.Namespace(set_param=[], json=True))
    values = json.loads(capsys.readouterr().out)
    assert [row["size"] for row in values["rows"]] == ["2m", "7m", "30m"]
    assert values["rows"][0]["estimate"]["tokens_per_second"] > 0


def test_a_busy_machine_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    measurement = make.Measurement([RAW], 0.0)  # expires at once
    with pytest.raises(UserError, match="too busy to be measured within 20 s: try later"):
        measurement.results()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(60, "60 s"), (600, "10.0 min"), (7200, "2.0 h"), (259_200, "3.0 days")],
)
def test_durations(seconds: float, text: str) -> None:
    assert table.duration(seconds) == text
