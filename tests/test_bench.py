"""Test the programs, limits and tables of `make bench`; speed is not tested."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from engine_files import BOS, random_tensors, small_config, write

from bench import __main__ as command
from bench import (
    build,
    engines,
    index,
    kernels,
    limits,
    measure,
    models,
    pages,
    processor,
    report,
    server,
)
from bench import worker as worker_module
from bench.engines import OURS, Engine
from bench.limits import Limit, Machine
from bench.measure import Cell, Task
from bench.models import Model
from bench.worker import Worker, WorkerError, exit_reason, run_limited
from storyllamas.errors import UserError
from storyllamas.model import Llama

CONFIG = small_config(dim=32, heads=4, kv_heads=4, head_dim=8, hidden=48, context=160)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Build the programs in a temporary folder; skip the tests if there is no compiler."""
    if not shutil.which("cc"):
        pytest.skip("there is no C compiler")
    before, build.BUILD = build.BUILD, tmp_path_factory.mktemp("bench")
    yield build.BUILD
    build.BUILD = before


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    for weight_type in ("f32", "q8"):
        write(
            folder / f"{weight_type}.slm", CONFIG, random_tensors(CONFIG), weight_type=weight_type
        )
    return Model("tiny", CONFIG, "random", folder)


@pytest.fixture(scope="module")
def found(folder: Path) -> list[Engine]:
    program = build.engine_worker()

    def engine(name: str, weights: str, bits: int, missing: str = "") -> Engine:
        return Engine(
            *(name, weights, weights, bits, (1, 2)),
            lambda path, threads: [str(program), f"{path!s}.slm", str(threads)],
            missing,
        )

    return [
        engine(OURS, "f32", 32),
        engine(OURS, "q8", 8),
        engine("llama.cpp", "f32", 32),
        engine("llama2.c", "int8", 8, "set LLAMA2C"),
    ]


FAKE = """
import json, os, sys, time
failures = dict(argument.split("=") for argument in sys.argv[1:])
for line in sys.stdin:
    request = line.split()[0]
    failure = failures.get(request)
    if failure == "hang":
        time.sleep(600)
    elif failure == "exit":
        print("the model | is bad", file=sys.stderr)
        sys.exit(3)
    elif failure == "noise":
        print("hello", flush=True)
    elif failure == "bytes":
        os.write(1, bytes([255, 254, 10]))
    elif failure == "words":
        print(json.dumps({"seconds": "soon"}), flush=True)
    elif failure == "closes":
        os.close(1)
        time.sleep(600)
    elif failure:
        os.kill(os.getpid(), int(failure))
    else:
        answer = {"seconds": 0.2, "ids": [5, 6, 7], "about": "fake"}
        print(json.dumps(answer), flush=True)
"""
"""A worker that answers at once, or fails as its arguments say: story=4 raises signal 4."""


def fake(weights: str, *failures: str, name: str = "llama.cpp") -> Engine:
    return Engine(
        *(name, weights, "f32", 8, (1,)),
        lambda path, threads: [sys.executable, "-c", FAKE, *failures],
    )


def speeds(cells: list[Cell]) -> dict[str, list[float]]:
    return {cell.task.name: cell.speeds for cell in cells}


def test_worker_generates_the_greedy_tokens_of_pytorch(model: Model, found: list[Engine]) -> None:
    llama = Llama(CONFIG).eval()
    tensors = {name: torch.tensor(values) for name, values in random_tensors(CONFIG).items()}
    llama.load_state_dict(tensors)
    ids, steps = [BOS], 12
    with torch.no_grad():
        for _ in range(steps):
            ids.append(int(llama(torch.tensor([ids]))[0, -1].argmax()))
    with Worker(found[0].command(model.folder / "f32", 1)) as worker:
        worker.pause()
        worker.resume()
        assert worker.ask(f"greedy {steps}") == {"ids": ids[1:]}
        assert worker.ask("story 8 7")["seconds"] > 0
        assert worker.ask("prompt 16 1")["seconds"] > 0
        assert isinstance(worker.ask("about")["about"], str)


def test_limits_of_this_machine() -> None:
    found = limits.measured()
    assert {row["threads"] for row in found["bandwidth"]} >= {1}
    assert all(1e8 < row["bytes"] < 1e13 for row in found["bandwidth"])
    assert all(1e8 < row["operations"] < 1e14 for row in found["peak"])
    assert Machine(found).bandwidth(3, 1) > 0


def test_start_and_peak_of_a_program() -> None:
    output = subprocess.run([build.start(), "/bin/sh", "-c", "echo a"], capture_output=True)
    found = json.loads(output.stdout)
    assert 0 < found["first_byte"] < 10
    assert 1e5 < found["peak_bytes"] < 1e8


def test_every_kernel_of_every_set(folder: Path) -> None:
    program = build.engine_kernels()
    sets = {run["set"] for run in kernels.measured(program, "vectors", 32, 48, 300)}
    assert "scalar" in sets
    table = kernels.matrix_table(program, MACHINE, small_config(), "q4")
    assert all(f"| {each} |" in table for each in sets)
    for weight_type in ("f32", "f16", "i8", "q8"):
        runs = kernels.measured(program, "matrix", weight_type, 48, 16, 8, 10_000)
        assert [run["n"] for run in runs] == [1, 8, 32] * len(sets)
    with pytest.raises(subprocess.CalledProcessError):
        kernels.measured(program, "matrix", "q3", 16, 16, 0, 0)


MACHINE = Machine(
    {
        "bandwidth": [
            {"threads": threads, "pages": pages, "megabytes": size, "bytes": threads * speed}
            for pages, speeds in (("4 KB", (100e9, 10e9)), ("2 MB", (80e9, 20e9)))
            for size, speed in zip((1, 100), speeds, strict=True)
            for threads in (1, 2)
        ],
        "peak": [
            {"threads": threads, "type": type, "operations": threads * speed}
            for type, speed in (("f32", 1e9), ("int8", 4e9))
            for threads in (1, 2)
        ],
    }
)


def test_bandwidth_is_interpolated_between_measured_sizes() -> None:
    assert MACHINE.bandwidth(1, 1) == MACHINE.bandwidth(0.1, 1) == 100e9
    assert MACHINE.bandwidth(10, 1) == pytest.approx(60e9)
    assert MACHINE.bandwidth(500, 2) == 40e9


def test_limits_count_every_weight_and_position() -> None:
    config = small_config(dim=2, layers=3, heads=2, kv_heads=1, head_dim=4, hidden=5, vocab_size=7)
    limit = Limit(MACHINE, config, "f32", weight_bytes=1000, threads=1)
    cached = 3 * 2 * 1 * 4 * 4  # bytes a position: layers, key and value, heads, width, float
    assert limit.sequence(9) == pytest.approx((1000 + 5 * cached) / 100e9)
    layer = 2 * (2 + 2 * 1) * 4 + 2 * 4 * 2 + 3 * 2 * 5
    pairs = 1 + 2 + 3
    operations = 2 * (3 * 3 * layer + 2 * 7) + pairs * 3 * 2 * 2 * 2 * 4
    assert limit.prompt(3) == pytest.approx(operations / 1e9)
    operations = 2 * 10 * (3 * layer + 2 * 7)
    assert limit.batch(10, 9) == pytest.approx(operations / 1e9 + 10 * 5 * cached / 100e9)


@pytest.mark.parametrize(
    ("failure", "reason", "detail"),
    [
        ("story=4", "SIGILL", ""),
        ("story=11", "SIGSEGV", ""),
        ("story=exit", "exit status 3", "the model | is bad"),
        ("story=noise", "invalid answer", "hello"),
        ("story=bytes", "invalid answer", "\ufffd\ufffd"),
        ("story=words", "invalid answer", '{"seconds": "soon"}'),
        ("story=closes", "timed out", ""),
    ],
)
def test_worker_error_names_the_reason(
    failure: str, reason: str, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "EXIT_SECONDS", 0.2)
    with (
        Worker([sys.executable, "-c", FAKE, failure]) as worker,
        pytest.raises(WorkerError, match=reason) as error,
    ):
        worker.ask("story 8 1")
    assert (error.value.reason, error.value.detail) == (reason, detail)


def test_worker_that_hangs_is_killed() -> None:
    with (
        Worker([sys.executable, "-c", FAKE, "story=hang"], timeout=0.5) as worker,
        pytest.raises(WorkerError, match="timed out"),
    ):
        worker.ask("story 8 1")


def test_engine_that_hangs_is_not_tried_again(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "Worker", partial(Worker, timeout=0.3))
    cells = measure.measure(model, [fake("q8_0", "story=hang", "prompt=4")], rounds=1)
    assert [(cell.failure, cell.detail[:9]) for cell in cells] == [
        ("timed out", ""),
        ("timed out", "not tried"),
        ("timed out", "not tried"),
    ]


def test_answer_to_another_request_is_invalid(model: Model) -> None:
    silent = fake("q8_0", "greedy=words", "about=words")
    assert [found.failure for found in measure.greedy(model, [silent])] == ["invalid answer"]


def test_programs_with_a_time_limit(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    assert run_limited(["/bin/sh", "-c", "echo a"], 9) == ("a\n", "")
    assert run_limited(["/bin/sh", "-c", "echo b >&2; exit 3"], 9) == ("", "exit status 3: b")
    assert run_limited(["/bin/sh", "-c", "kill -9 $$"], 9) == ("", "SIGKILL")
    assert run_limited(["/bin/sh", "-c", "sleep 60; true"], 0.2) == ("", "timed out")
    monkeypatch.setattr(measure, "START_SECONDS", 0.2)
    commands = {"a": ["/bin/sh", "-c", "sleep 60"], "b": ["/bin/sh", "-c", "kill -4 $$"]}
    monkeypatch.setattr(measure, "_start_commands", lambda folder: commands)
    assert [run.failure for run in measure.start(model, rounds=1)] == ["timed out", "failed"]


def test_formats_of_other_programs_are_converted_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = []

    def convert(command: list[str], timeout: float) -> tuple[str, str]:
        done.append(command[2])
        return "", "SIGSEGV"

    monkeypatch.setattr(models, "BUILD", tmp_path)
    monkeypatch.setattr(models, "ROOT", tmp_path)
    monkeypatch.setattr(models, "shape", lambda size: small_config(vocab_size=300))
    monkeypatch.setattr(models, "export_model", lambda source, name, path: done.append(name))
    monkeypatch.setattr(models, "run_limited", convert)
    converted = {"ct2-int8", "onnxruntime-int4", "openvino-q8_0"}
    prepared = models.prepare("2m", {"hf", "gguf-q8_0", *converted})
    assert done[:2] == ["gguf-q8_0", "hf"]
    assert len(done) == 5
    assert prepared.failures == dict.fromkeys(converted, "SIGSEGV")


def test_worker_that_cannot_start() -> None:
    with pytest.raises(WorkerError, match="cannot start"):
        Worker(["/nowhere/worker"])


def test_exit_reason() -> None:
    assert [exit_reason(status) for status in (-4, -6, 3, -200)] == [
        *("SIGILL", "SIGABRT", "exit status 3", "signal 200")
    ]


def test_engine_that_crashes_at_one_task_is_measured_at_the_others(model: Model) -> None:
    cells = measure.measure(model, [fake("q8_0", "prompt=4")], rounds=2)
    assert speeds(cells) == {
        "story": [pytest.approx(159 / 0.2)] * 2,
        "prompt": [],
        "batch": [pytest.approx(32 * 127 / 0.2)] * 2,
    }
    assert [cell.failure for cell in cells] == ["", "SIGILL", ""]


def test_engine_that_crashes_at_every_task_does_not_end_the_run(model: Model) -> None:
    broken = fake("q8_0", "story=4", "prompt=6", "batch=exit", "about=11")
    cells = measure.measure(model, [broken, fake("f32")], rounds=1)
    assert [cell.failure for cell in cells[:3]] == ["SIGILL", "SIGABRT", "exit status 3"]
    assert all(cell.speeds for cell in cells[3:])
    first, second = measure.greedy(model, [fake("f32"), broken])
    assert (first.equal, first.steps, first.failure) == (3, 3, "")
    assert second.failure == "SIGSEGV"


def test_engine_that_crashes_gets_its_fallback_once(model: Model) -> None:
    exits = fake("", "prompt=exit")

    def build_other() -> Engine:
        return fake("q8_0, built without AMX")

    crashing = replace(fake("q8_0", "prompt=4"), fallback=build_other)
    healthy = replace(fake("q4_0"), fallback=lambda: pytest.fail("no signal ends it"))
    found = [crashing, healthy, replace(healthy, weights="q4_1", command=exits.command)]
    for _ in range(2):
        command.add_fallbacks(found, model)
        assert [engine.weights for engine in found] == [
            *("q8_0", "q8_0, built without AMX", "q4_0", "q4_1")
        ]


def test_rows_that_may_run_amx_have_a_build_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def worker(packages: Path | None = None, repacks: bool = True) -> Path:
        return Path("worker" if repacks else "worker-as-stored")

    monkeypatch.setattr(processor, "flags", lambda: {"amx_int8"})
    monkeypatch.setattr(engines, "_missing_package", lambda module, distribution: "")
    monkeypatch.setattr(build, "llama_cpp_worker", worker)
    rows = {engine.weights: engine for engine in engines._llama_cpp()}
    assert [weights for weights, row in rows.items() if row.fallback] == ["q8_0", "q4_0"]
    programs = [row.command(Path("folder"), 1)[0] for row in rows.values()]
    assert programs == ["worker", "worker", "worker", "worker-as-stored"]


def test_failed_build_without_amx_is_a_missing_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise UserError("llama.cpp cannot be built without AMX: no network")

    monkeypatch.setattr(build, "llama_cpp_without_amx", fail)
    other = engines.without_amx(fake("q8_0"))
    assert other.label == "llama.cpp q8_0, built without AMX"
    assert other.missing.endswith("no network")


def test_options_of_a_build_without_amx() -> None:
    options = build.ggml_options({"avx2", "fma", "avx512f", "amx_int8", "amx_tile"})
    assert options[0] == "-DGGML_NATIVE=OFF"
    assert {"-DGGML_AVX2=ON", "-DGGML_AVX512=ON", "-DGGML_AVX512_VNNI=OFF"} <= {*options}
    assert not any("AMX" in option for option in options)


def cell(*speeds: float, seconds: float = 0.0) -> Cell:
    task = Task("story", "story 8", "story 8 0", 8)
    return Cell(fake("f32"), 1, task, list(speeds), seconds)


def test_rows_are_time_boxed_and_noisy_ones_are_longer() -> None:
    box = measure.ROW_SECONDS
    assert cell(seconds=9 * box).wants_round()
    assert cell(10.0, seconds=9 * box).wants_round()
    assert not cell(10.0, 10.0, seconds=box).wants_round()
    assert cell(10.0, 10.0, seconds=box).wants_round(measure.REPEAT_FACTOR)
    assert cell(10.0, 10.5).is_noisy is False
    assert cell(10.0, 12.0).is_noisy is True
    assert cell(10.0, 10.2, 9.9, 10.1, 30.0).is_noisy is False
    assert not replace(cell(10.0), failure="SIGILL").wants_round()


def test_noisy_rows_are_repeated(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cell, "is_noisy", property(lambda cell: cell.task.name == "prompt"))
    cells = measure.measure(model, [fake("f32")], rounds=2)
    assert {name: len(found) for name, found in speeds(cells).items()} == {
        "story": 2,
        "prompt": 2 * measure.REPEAT_FACTOR,
        "batch": 2,
    }


def test_models_are_time_boxed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MODEL_SECONDS", 0.0)
    cells = measure.measure(model, [fake("f32")], rounds=9)
    assert [len(cell.speeds) for cell in cells] == [measure.MIN_ROUNDS] * 3


def test_failed_export_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*arguments: object) -> None:
        raise UserError("exit status 1: no module")

    monkeypatch.setattr(models, "BUILD", tmp_path)
    monkeypatch.setattr(models, "ROOT", tmp_path)
    monkeypatch.setattr(models, "shape", lambda size: small_config(vocab_size=300))
    monkeypatch.setattr(models, "export_model", fail)
    prepared = models.prepare("2m", {"f32", "gguf"})
    assert prepared.failures == {"gguf": "exit status 1: no module"}
    assert prepared.weight_bytes("f32") > 0


def test_imported_model_is_exported_like_a_size(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(models, "BUILD", tmp_path)
    prepared = models.prepare_imported(model.folder / "f32.slm", {"q4", "q8"})
    assert (prepared.size, prepared.config.dim, prepared.is_trained) == ("f32", CONFIG.dim, True)
    assert prepared.weight_bytes("q4") < prepared.weight_bytes("q8")


@pytest.mark.parametrize(
    ("context", "steps", "prompt"), [(64, 63, 63), (256, 255, 128), (8192, 127, 512)]
)
def test_lengths_suit_the_context(model: Model, context: int, steps: int, prompt: int) -> None:
    changed = replace(model, config=replace(model.config, context=context))
    assert measure.sequence_steps(changed) == steps
    assert measure.prompt_tokens(changed) == prompt


def test_selected_engines_come_with_ours() -> None:
    found = [fake("f32", name=name) for name in (OURS, "llama.cpp", "llama2.c")]
    assert [e.name for e in command.select(found, ["llama2.c"])] == [OURS, "llama2.c"]
    assert command.select(found, []) == found
    with pytest.raises(UserError, match=r"--engines has llama\.cp: choose from StoryLlamas, "):
        command.select(found, ["llama.cp"])


def test_slow_probe_is_no_limit() -> None:
    rows = [*MACHINE.found["peak"], {"threads": 1, "type": "bf16", "operations": 0.5e9}]
    machine = Machine({**MACHINE.found, "peak": rows})
    assert machine.rejected == ["bf16"]
    assert machine.peak("bf16", 1) == machine.peak("f32", 1) == 1e9
    assert MACHINE.rejected == []


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("AMD EPYC (AVX2), 2 cores", "amd-epyc-avx2-2-cores"),
        (
            "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz (AMX), 2 cores",
            "intel-xeon-platinum-8481c-amx-2-cores",
        ),
        ("Apple M2, 8 cores", "apple-m2-8-cores"),
    ],
)
def test_file_name_of_a_machine(title: str, name: str) -> None:
    assert processor.slug(title) == name


def test_processor_is_read_from_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Fast CPU\nflags\t\t: avx2 avx512f amx_int8\n")
    monkeypatch.setattr("storyllamas.cpuinfo.CPUINFO", info)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    processor.name.cache_clear()
    processor.flags.cache_clear()
    try:
        assert processor.title() == "Fast CPU (AMX), 4 cores"
    finally:
        processor.name.cache_clear()
        processor.flags.cache_clear()


@pytest.fixture(scope="module")
def results(model: Model, found: list[Engine]) -> report.Results:
    """Results with an engine that crashes at prompts; llama.cpp is StoryLlamas' own worker."""
    there = [engine for engine in found if not engine.missing]
    there.append(fake("q8_0", "prompt=4", "batch=exit", "greedy=6"))
    return report.Results(
        MACHINE,
        [*there, *(engine for engine in found if engine.missing)],
        {"tiny": model},
        {"tiny": measure.measure(model, there, rounds=2)},
        {"tiny": measure.greedy(model, there)},
        start=[measure.Start("a", 0.001, 10**6), measure.Start("nothing", 0.001, 10**6)],
        memory=[measure.Start("a", 0.001, 10**6), measure.Start("b", 0.0, 0, "failed")],
        rounds=2,
    )


def test_tables_have_equal_rows_and_failures(results: report.Results) -> None:
    text = report.markdown(results, "figure.png")
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 8
    for table in tables:
        assert len({line.replace(r"\|", "").count("|") for line in table.splitlines()}) == 1
    assert "llama2.c int8 was not measured: set LLAMA2C" in text
    assert "| llama.cpp | q8_0 | SIGILL |" in text
    assert "| llama.cpp | q8_0 | SIGABRT |" in text
    row = "llama.cpp | q8_0 | tiny | 1 | 32 sequences (batched) | exit status 3"
    assert rf"| {row} | the model \| is bad |" in text
    assert "| b | failed |" in text
    assert report.errors(results) == []
    assert results.best("tiny", results.engines[0], "story") > 0


def test_failure_of_storyllamas_is_an_error(results: report.Results) -> None:
    ours = results.engines[0]
    broken = Cell(ours, 1, Task("story", "", "", 8), failure="SIGSEGV")
    trained = replace(results.models["tiny"], about="trained")
    other = measure.Greedy(results.engines[2], 1, 2, "")
    found = replace(
        results,
        models={"tiny": trained},
        cells={"tiny": [broken]},
        greedy={"tiny": [other]},
    )
    assert report.errors(found) == [
        "StoryLlamas f32 fails on tiny: SIGSEGV",
        "llama.cpp f32 generates a different greedy sequence on tiny",
    ]


def test_pages_are_read_as_written(results: report.Results, tmp_path: Path) -> None:
    report.write(results, tmp_path / "machine.md")
    page = pages.read(tmp_path / "machine.md")
    assert page.title == processor.title()
    assert page.sizes == ["tiny"]
    assert page.engines() == [
        *((OURS, "f32"), (OURS, "q8"), ("llama.cpp", "f32"), ("llama.cpp", "q8_0"))
    ]
    for engine in results.engines[:4]:
        for task in report.TASKS:
            speed = page.best(task, engine.name, engine.weights, "tiny")
            assert speed == pytest.approx(results.best("tiny", engine, task), rel=0.05)
    assert page.limit("q8", "tiny") == pytest.approx(results.limit("tiny", "q8", 2, "story"), 0.05)
    assert page.speed_up("story", "f32", "tiny").endswith(" ×")
    assert page.tables["Failures"][-1]["last line of output"] == r"the model \| is bad"


def test_value_of_a_figure() -> None:
    assert [pages.value(text) for text in ("36.6k", " 232 ", "1.2k~", "SIGILL", "")] == [
        *(36600, 232, 1200, 0, 0)
    ]


def test_page_without_a_title_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("# Something else\n")
    with pytest.raises(UserError, match=r"page\.md has no title or no date"):
        pages.read(tmp_path / "page.md")


def test_index_compares_machines(results: report.Results, tmp_path: Path) -> None:
    report.write(results, tmp_path / "a.md")
    text = (tmp_path / "a.md").read_text().replace(processor.title(), "Another, 8 cores")
    (tmp_path / "b.md").write_text(text)
    index.write(tmp_path)
    found = (tmp_path / "README.md").read_text()
    assert found.count(f"| [{processor.title()}](a.md) |") == 3
    assert found.count("| [Another, 8 cores](b.md) |") == 3
    for figure in ("a.png", "b.png", index.FIGURE):
        assert (tmp_path / figure).stat().st_size > 10_000
    again = found
    index.write(tmp_path)
    assert (tmp_path / "README.md").read_text() == again


def test_index_of_the_repository_is_current() -> None:
    engine_pages, training_pages = pages.read_all(index.RESULTS)
    text = (index.RESULTS / "README.md").read_text(encoding="utf-8")
    assert text == index.markdown(engine_pages, training_pages)


def test_run_with_a_crash_writes_the_page_and_the_index(
    model: Model, found: list[Engine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    available = [found[0], fake("q8_0", "prompt=4"), found[3]]
    monkeypatch.setattr(engines, "available", lambda: available)
    monkeypatch.setattr(limits, "measured", lambda: MACHINE.found)
    monkeypatch.setattr(models, "prepare", lambda size, formats: replace(model, size=size))
    started = [measure.Start("a", 0.001, 10**6), measure.Start("nothing", 0.001, 10**6)]
    monkeypatch.setattr(measure, "start", lambda model, rounds: started)
    arguments = ["--sizes", "2m", "--rounds", "1", "--out", str(tmp_path), "--name", "machine"]
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 0
    page = pages.read(tmp_path / "machine.md")
    assert page.tables["Prompt"][-1]["2m"] == "SIGILL"
    assert page.best("batch", "llama.cpp", "q8_0", "2m") > 0
    assert "](machine.md) |" in (tmp_path / "README.md").read_text()


def test_the_server_page_keeps_rows_of_other_sizes() -> None:
    page = "# Title\n\n| model | program |\n|---|---|\n| 2m | a |\n| 7m | b |\n| 7m | c |\n"
    assert server.rows_of_others(page, ["2m"]) == ["| 7m | b |", "| 7m | c |"]
