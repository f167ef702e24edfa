"""Estimate a run from measured steps and from the speeds of earlier runs.

The time of a step is that of its micro-batches, in proportion to their tokens, and of one step of
the optimizers. Compiling leaves the matrix products as they are, and takes `FUSED_SHARE` of the
time of everything else. Steps in C are measured as they are. If the same machine has trained with
the same settings before, the estimate is multiplied by what those runs reached relative to their
own estimates. Products were measured then and now, so that a machine that has become slower counts
as slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import geometric_mean, median
from typing import Any

from storyllamas.config import ModelConfig
from storyllamas.params import Params, Recipe
from storyllamas.plan.measure import Machine, Measured
from storyllamas.rounding import integer
from storyllamas.slm.encoding import SPECS
from storyllamas.training.checkpoints import MAX_CHECKPOINTS, MAX_TIME_SHARE
from storyllamas.training.distributed import micro_batch
from storyllamas.training.memory import FLOAT_BYTES
from storyllamas.training.speed_log import Speed

FUSED_SHARE = 0.6
"""Time of a compiled pass without its products, relative to an uncompiled one.

Measured with AVX2 and float32: 0.62 at 2m, 0.79 at 7m. The steps in bench/LOG.md, with AVX-512 and
bfloat16, are near 0.45 at 2m, 0.6 at 7m and 0.8 at 30m.
"""

KEPT_SHARE = 0.6
"""Activations that a compiled pass keeps, relative to an uncompiled one, on average of the sizes in
bench/results."""

COMPILER_BYTES = 120e6
"""Memory of the modules that compile."""

FRAGMENTATION = 1.15
"""Memory that a process takes, relative to the tensors in it."""

RUN_BYTES = 45e6
"""Memory of a run with steps in C, without its tensors and `Machine.base_bytes`: batches, the
optimizers' scratch, logs. It was 38 to 54 MB in the runs of bench/LOG.md."""

CHECKPOINT_BYTES_PER_SECOND = 250e6

IMPORT_SECONDS, COMPILE_SECONDS = 5.0, 35.0
"""Time before the first step; compiling takes 20 to 50 s the first time."""

MAX_CORRECTION = 2.0
"""Largest correction of a size by runs of other sizes, and its inverse the smallest."""

RECENT_RUNS = 5


@dataclass(frozen=True)
class Estimate:
    """What a run costs.

    Attributes:
        size: key of `sizes` in params.yaml.
        micro_batch: sequences in one forward pass.
        tokens_per_second: with validations and checkpoints, as in metrics/train.json.
        seconds: of the whole run, from its start.
        memory_bytes: peak.
        disk_bytes: checkpoints, model and weight files, without the corpus.
        watt_hours: of the processors; None: the system does not tell.
        runs: number of earlier runs that correct the estimate.
    """

    size: str
    micro_batch: int
    tokens_per_second: float
    seconds: float
    memory_bytes: float
    disk_bytes: float
    watt_hours: float | None
    runs: int


@dataclass(frozen=True)
class Case:
    """A run to estimate.

    Attributes:
        chosen: its parameters.
        measured: its size, measured on this machine.
        compiled: whether the run is compiled.
        teacher: the run of a teacher that is trained first; None: there is none.
    """

    chosen: Params
    measured: Measured
    compiled: bool
    teacher: Case | None = None


def estimate(case: Case, machine: Machine, factor: float = 1.0, runs: int = 0) -> Estimate:
    """Return the costs of a run.

    Args:
        case: the run.
        machine: where it runs.
        factor: correction of its speed, see `correction`.
        runs: number of runs that it is from.
    """
    chosen, measured = case.chosen, case.measured
    processes = chosen.compute.processes
    # Processes share the cores of a machine; each has a GPU of its own.
    share = processes if machine.device == "cuda" else 1
    config, recipe = chosen.model_config(), chosen.recipe
    speed = share * factor * model_speed(measured, config, recipe, _uses_torch_compile(case))
    seconds = recipe.steps * recipe.tokens_per_step / speed
    memory = memory_bytes(case, machine)
    if case.teacher:
        one = estimate(case.teacher, machine, factor)
        lessons = case.teacher.chosen.recipe
        tokens = recipe.teachers * lessons.steps * lessons.tokens_per_step
        seconds += tokens / one.tokens_per_second
        memory = max(memory, one.memory_bytes)
    seconds += IMPORT_SECONDS + (COMPILE_SECONDS if _uses_torch_compile(case) else 0.0)
    watts = measured.watts
    return Estimate(
        size=chosen.model,
        micro_batch=measured.micro_batch,
        tokens_per_second=speed,
        seconds=seconds,
        memory_bytes=memory,
        disk_bytes=disk_bytes(case),
        watt_hours=None if watts is None else watts * seconds / 3600,
        runs=runs,
    )


def _uses_torch_compile(case: Case) -> bool:
    return case.compiled and not case.measured.is_in_c


def model_speed(measured: Measured, config: ModelConfig, recipe: Recipe, compiled: bool) -> float:
    """Return tokens a second of one process, with validations and checkpoints."""
    products = min(measured.products_per_token, measured.pass_per_token)
    share = FUSED_SHARE if compiled and measured.products_per_token else 1.0
    per_token = products + share * (measured.pass_per_token - products)
    step = recipe.tokens_per_step * per_token + measured.optimizer
    validation = recipe.eval_sequences * config.context * measured.validation_per_token
    step += validation / min(recipe.eval_every, recipe.steps)
    return recipe.tokens_per_step / step * (1 - _checkpoint_share(measured))


def _checkpoint_share(measured: Measured, interval: float = 20.0) -> float:
    seconds = _checkpoint_bytes(measured) / CHECKPOINT_BYTES_PER_SECOND
    return min(MAX_TIME_SHARE, seconds / interval)


def _checkpoint_bytes(measured: Measured) -> int:
    """Return the bytes of the trained weights, the best ones, and the state of the optimizers."""
    gradients = measured.trained_bytes
    return 2 * measured.trained_bytes + measured.state_bytes - gradients


def memory_bytes(case: Case, machine: Machine) -> float:
    """Return the peak memory of a process: of its tensors on a GPU, else of all that it has.

    On a CPU the allocator keeps what a validation or a checkpoint needed. With a step in C that is
    nothing: the step keeps its memory, and a checkpoint is written from the tensors. The best
    weights are there after the first validation.
    """
    config, measured = case.chosen.model_config(), case.measured
    weights = FLOAT_BYTES * config.parameters
    if measured.c_bytes is not None:
        kept_bytes = 2 * weights + measured.state_bytes + measured.c_bytes
        return machine.base_bytes + kept_bytes + RUN_BYTES
    kept = KEPT_SHARE if case.compiled else 1.0
    tensors = weights + measured.state_bytes + kept * measured.micro_batch * measured.sequence_bytes
    if machine.device == "cuda":
        return tensors
    logits = FLOAT_BYTES * measured.micro_batch * config.context * config.vocab_size
    tensors += weights + 3 * logits + _checkpoint_bytes(measured)
    base = machine.base_bytes + (COMPILER_BYTES if case.compiled else 0)
    return FRAGMENTATION * (base + tensors)


def disk_bytes(case: Case) -> float:
    """Return the bytes of checkpoints, teachers, and the model and its files, also in the cache."""
    config, export = case.chosen.model_config(), case.chosen.export
    bits = 0.0
    for kind, spec in SPECS.items():
        if kind.label in export.types:
            group = export.group_size.get(kind.label, 0)
            bits += spec.bits + (32 / group if group else 0)
    files = config.parameters * (FLOAT_BYTES + bits / 8)
    teachers = 0
    if case.teacher:
        each = FLOAT_BYTES * case.teacher.chosen.model_config().parameters
        teachers = case.chosen.recipe.teachers * each
    return MAX_CHECKPOINTS * _checkpoint_bytes(case.measured) + teachers + 2 * files


def scaled(source: Case, chosen: Params) -> Measured:
    """Return what a size that was not measured would take, in proportion to one that was.

    Time grows with the operations, that of the optimizers and their state with the weights.
    """
    before, after = source.chosen.model_config(), chosen.model_config()
    measured, recipe = source.measured, chosen.recipe
    work = after.training_flops / before.training_flops
    weights = after.parameters / before.parameters
    values = _kept_values(after) / _kept_values(before)
    return Measured(
        size=chosen.model,
        micro_batch=micro_batch(recipe, after.context, 1, measured.micro_batch),
        pass_per_token=work * measured.pass_per_token,
        products_per_token=work * measured.products_per_token,
        optimizer=weights * measured.optimizer,
        validation_per_token=work * measured.validation_per_token,
        sequence_bytes=integer(values * measured.sequence_bytes),
        state_bytes=integer(weights * measured.state_bytes),
        trained_bytes=integer(weights * measured.trained_bytes),
        watts=measured.watts,
        c_bytes=None if measured.c_bytes is None else integer(values * measured.c_bytes),
    )


def _kept_values(config: ModelConfig) -> int:
    """Return about how many values of one sequence a forward pass keeps for the backward pass."""
    scores = 3 * config.heads * config.context // 4
    layer = 10 * config.dim + 4 * config.hidden + scores
    return config.context * (config.layers * layer + 3 * config.vocab_size)


def correction(
    case: Case, cases: Sequence[Case], machine: Machine, speeds: Sequence[Speed]
) -> tuple[float, int]:
    """Return the factor by which earlier runs correct the speed of a run, and their number.

    Runs of the same size count alone. Without any, those of the other sizes count, within
    `MAX_CORRECTION`. None count if weights are frozen, since the record does not tell which were,
    or if steps are in C: the measurement is of such steps, and a record adds the error of its peak.

    Args:
        case: the run.
        cases: this and other sizes, measured now.
        machine: where they were measured.
        speeds: earlier runs, oldest first.
    """
    fine_tuning = case.chosen.fine_tuning
    if fine_tuning.freeze or fine_tuning.lora or case.measured.is_in_c:
        return 1.0, 0
    own = _ratios(case, machine, speeds)
    if own:
        return median(own), len(own)
    others = [ratio for each in cases for ratio in _ratios(each, machine, speeds)]
    if not others:
        return 1.0, 0
    bounded = min(MAX_CORRECTION, max(1 / MAX_CORRECTION, geometric_mean(others)))
    return bounded, len(others)


def _ratios(case: Case, machine: Machine, speeds: Sequence[Speed]) -> list[float]:
    """Return the speed of recent runs of a size, each relative to its estimate."""
    config = case.chosen.model_config()
    settings = _settings(case, machine)
    found = []
    for speed in speeds:
        if (speed.machine, speed.settings) == (machine.name, settings) and (
            speed.config == asdict(config)
            and speed.recipe["optimizer"] == case.chosen.recipe.optimizer
        ):
            recipe = Recipe(**speed.recipe)
            expected = model_speed(case.measured, config, recipe, _uses_torch_compile(case))
            expected *= case.chosen.compute.processes if machine.device == "cuda" else 1
            change = machine.peak_flops_per_second / speed.peak_flops_per_second
            found.append(speed.tokens_per_second / expected * change)
    return found[-RECENT_RUNS:]


def _settings(case: Case, machine: Machine) -> dict[str, Any]:
    compute = case.chosen.compute
    threads = machine.threads
    if compute.processes > 1 and not compute.threads and machine.device == "cpu":
        threads = max(1, threads // compute.processes)
    return {
        "device": machine.device,
        "precision": machine.precision,
        "threads": threads,
        "compiled": case.compiled,
        "in_c": case.measured.is_in_c,
        "processes": compute.processes,
    }
