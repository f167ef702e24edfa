"""The training loop.

Every step is a function of the state before it, the recipe and the step's number: batches and
dropout use generators seeded with that number. So a run that was killed resumes from its last
checkpoint to bit-identical weights, and several processes can split a step (see distributed.py).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from storyllamas import workdir
from storyllamas.errors import UserError
from storyllamas.model import Llama, SoftTargets
from storyllamas.record_rows import IGNORED
from storyllamas.token_file import Ids
from storyllamas.training import metrics, speed_log
from storyllamas.training.checkpoints import Checkpoint, CheckpointFolder, CheckpointSaver
from storyllamas.training.compiled import CompilationError, Loss, training_loss
from storyllamas.training.csv_log import CsvLog
from storyllamas.training.distributed import Ranks
from storyllamas.training.fused import FusedLoss
from storyllamas.training.interrupt import Interrupt, is_run_by_dvc
from storyllamas.training.job import Job, Result
from storyllamas.training.micro_batch import MicroBatch
from storyllamas.training.optimizer import Optimizers
from storyllamas.training.progress import Progress
from storyllamas.training.schedule import learning_rate, sequence_lengths, sequence_tokens
from storyllamas.training.start import trained_tensors
from storyllamas.training.teacher import TOP, Probabilities
from storyllamas.training.tensorboard import TensorBoardLog

MAX_LOG_ROWS = 2000
"""Rows of steps.csv; a longer run logs every second step, or fewer."""


@contextmanager
def training_run(
    job: Job,
    logs: Path,
    checkpoint_seconds: float,
    parent: int | None = None,
    *,
    ranks: Ranks | None = None,
    name: str = "",
) -> Iterator[Result]:
    """Train to the end, from the last checkpoint of the same job if there is one.

    The body stores the result; when it ends without an exception, the checkpoints are removed. If
    DVC runs the process, they stay until `workdir.remove_finished_runs`: DVC notes the result only
    later, and trains again if it is killed before.

    Args:
        job: what to train.
        logs: folder of steps.csv and validation.csv, which grow during the run.
        checkpoint_seconds: minimum time between two checkpoints, in seconds; 0: one after each
            step.
        parent: id of the process that waits for this one; if that is DVC or torchrun and it ends,
            stop.
        ranks: the processes that train together; None: only this one.
        name: name of the run in TensorBoard; empty: no TensorBoard log.

    Raises:
        UserError: the loss is not finite, the disk refuses the result, or the ranks cannot split
            a step evenly.
        SystemExit: the run was interrupted; a checkpoint is saved.
    """
    ranks = ranks or Ranks()
    with _open(job, logs, ranks) as (trainer, folder):
        saver = CheckpointSaver(
            folder, checkpoint_seconds, trainer.step, trainer.seconds_in_checkpoints
        )
        label = f"{name}-{folder.path.name}"
        tensorboard = workdir.root() / "tensorboard" / label if name and ranks.first else None
        with speed_log.recorded(trainer):
            result = trainer.run(
                saver, Interrupt(parent), TensorBoardLog(tensorboard, trainer.step)
            )
        if ranks.first and is_run_by_dvc() and saver.step < trainer.step:
            saver.save(trainer.checkpoint, last=True)
        try:
            trainer.close_logs()
            yield result
        except OSError as error:
            saver.save(trainer.checkpoint, last=True)
            raise UserError(
                f"{error.filename} cannot be written ({error.strerror}): solve that, then the same "
                f"command {saver.resumption}"
            ) from None
        if ranks.first and is_run_by_dvc():
            folder.mark_finished()
        elif ranks.first:
            folder.remove()


@contextmanager
def _open(job: Job, logs: Path, ranks: Ranks) -> Iterator[tuple[Trainer, CheckpointFolder]]:
    """Yield a trainer, at the last checkpoint of the job, and the folder, locked.

    If the training step cannot be compiled, train uncompiled, which is another job: its results
    are not bit-identical.

    Raises:
        UserError: `compute.compile` is always, and the training step cannot be compiled.
    """
    key = job.key()
    ranks.check_equal(f"{key} {job.device.threads}")
    folder = CheckpointFolder(workdir.runs() / key)
    with ExitStack() as stack:
        if ranks.first:
            stack.enter_context(folder.locked())
            workdir.remove_finished_runs()
        resumed = ranks.broadcast(folder.latest)
        try:
            trainer = Trainer(job, logs, resumed, ranks)
        except CompilationError as error:
            if ranks.first and not resumed:
                folder.remove()
            if job.device.must_compile:
                raise UserError(
                    f"compute.compile is always, but the training step cannot be compiled ({error})"
                    ": solve that, or use auto or never"
                ) from None
            print(
                f"the training step cannot be compiled ({error}): training runs uncompiled, slower",
                flush=True,
            )
        else:
            yield trainer, folder
            return
    uncompiled = dataclasses.replace(job.device, compiled=False)
    with _open(dataclasses.replace(job, device=uncompiled), logs, ranks) as opened:
        yield opened


class Trainer:
    """A run in progress, which `training_run` takes to its end and a benchmark step by step.

    Attributes:
        job: what to train.
        ranks: the processes that train together.
        model: the weights.
        micro_batch: the sequences of the whole context in one forward pass.
        lengths: tokens of sequences, in the order in which the steps have them.
        step: steps taken.
        seconds: time since the run began, earlier processes included.
        seconds_in_checkpoints: the part of it that writing checkpoints took.
        peak_memory_bytes: largest memory in use, earlier processes included.
        best_loss: lowest validation loss, in nats a token; infinite before the first validation.
        best_step: steps taken when it was measured.
        probabilities: of the next tokens, from the job's teacher; None: it has none.
        loss: to train with.
        is_in_c: whether it is C code.
        in_c: the C code of a process that trains alone, which takes all sequences of a step at
            once; else None.
        step_log: steps.csv.
        validation_log: validation.csv.
    """

    def __init__(
        self, job: Job, logs: Path, resumed: Checkpoint | None, ranks: Ranks | None = None
    ) -> None:
        """Begin a run, or resume one from a checkpoint.

        Args:
            job: what to train.
            logs: folder of the logs.
            resumed: the checkpoint; None: start from the beginning.
            ranks: the processes that train together; None: only this one.

        Raises:
            CompilationError: the training step cannot be compiled.
        """
        self.job = job
        self.ranks = ranks or Ranks()
        torch.manual_seed(job.seed)
        self.model = Llama(job.config, job.recipe.dropout, job.recipe.zero_init_residual).to(
            job.device.name
        )
        if job.start:
            job.start.apply(self.model)
        size = resumed.metadata["micro_batch"] if resumed else None
        self.micro_batch = MicroBatch(self.model, job.recipe, job.device, self.ranks, size)
        self.optimizers = Optimizers(self.model, job.recipe)
        context = job.config.context
        self.lengths = sequence_lengths(job.recipe, context)
        tokens = job.recipe.eval_sequences * context
        self._validation_sets = {
            length: job.valid.first_windows(tokens // length, length) for length in self.lengths
        }
        if len(self.lengths) > 1:
            # Raise the error of a text that is too short for the last steps before the first one.
            job.train.batch(0, 1, context, job.seed)
        self.step = 0
        self.seconds = 0.0
        self.seconds_in_checkpoints = 0.0
        self.peak_memory_bytes = 0
        self.best_loss = math.inf
        self.best_step = 0
        self.best: dict[str, Tensor] = {}
        step = resumed.step if resumed else 0
        self.probabilities: Probabilities | None = None
        if job.teacher and step < job.recipe.steps:
            self.probabilities = job.teacher.probabilities(job.train, job.device)
        loss = self.micro_batch.halving(lambda: self._loss(step))
        rows: dict[str, Any] = {"steps": [], "validation": []}
        if resumed:
            rows = self._restore(resumed)
        self.use(loss)
        steps, validation = map(self.ranks.log_path, (logs / "steps.csv", logs / "validation.csv"))
        self.step_log = CsvLog(steps, metrics.STEP_COLUMNS, rows["steps"])
        self.validation_log = CsvLog(validation, metrics.VALIDATION_COLUMNS, rows["validation"])

    def use(self, loss: Loss) -> None:
        """Train with a loss of the model, and with the optimizer that comes with it."""
        self.loss = self.ranks.average_gradients(self.model, loss)
        self.in_c = loss if isinstance(loss, FusedLoss) and self.ranks.world_size == 1 else None
        self.is_in_c = isinstance(loss, FusedLoss)
        if isinstance(loss, FusedLoss):
            self.optimizers.update_by(loss.update)

    def _loss(self, step: int) -> Loss:
        """Return the loss to train with after `step`, compiled on all ranks or on none."""
        loss: Loss = self.model.loss
        if step == self.job.recipe.steps:
            return loss
        failure: CompilationError | None = None
        try:
            likely = TOP + 1 if self.job.teacher else 0
            now = self._length(step)
            lengths = [now, *(length for length in self.lengths if length != now)]
            loss = training_loss(
                self.model, self.job.device, self.micro_batch.size, likely, lengths
            )
        except CompilationError as error:
            failure = error
        if self.ranks.any(failure is not None):
            raise failure or CompilationError("it fails on another rank")
        return loss

    def _length(self, step: int) -> int:
        """Return the tokens of a sequence after `step` steps, also after the last one."""
        return sequence_tokens(step, self.job.recipe, self.job.config.context)

    @property
    def validation_set(self) -> tuple[Ids, Ids]:
        """The windows to validate on now, as long as the sequences of training."""
        return self._validation_sets[self._length(self.step)]

    @property
    def tokens_seen(self) -> int:
        """Tokens learned from so far."""
        return self.step * self.job.recipe.tokens_per_step

    def run(
        self, saver: CheckpointSaver, interrupt: Interrupt, tensorboard: TensorBoardLog
    ) -> Result:
        """Take the remaining steps, with validations and checkpoints."""
        recipe = self.job.recipe
        log_every = math.ceil(recipe.steps / MAX_LOG_ROWS)
        started = time.monotonic() - self.seconds
        shown = recipe.steps, self.step, recipe.tokens_per_step, self.job.device.name
        with interrupt, tensorboard, Progress(*shown, recipe.eval_every) as progress:
            if self.job.start and not self.step:
                progress.set_validation_loss(self._validate())
                tensorboard.log_validation(self.validation_log.rows[-1])
            while self.step < recipe.steps:
                loss, norm = self.train_step(interrupt)
                if self.step % log_every == 0 or self.step == recipe.steps:
                    self.step_log.append(metrics.step_row(self, loss, norm))
                    tensorboard.log_step(self.step_log.rows[-1])
                if self.step % recipe.eval_every == 0 or self.step == recipe.steps:
                    progress.set_validation_loss(self._validate())
                    tensorboard.log_validation(self.validation_log.rows[-1])
                self.seconds = time.monotonic() - started
                progress.advance(self.step, loss)
                stop = self.ranks.any(interrupt.requested)
                if self.ranks.first and (stop or saver.is_due()):
                    saver.save(self.checkpoint, last=stop)
                    self.seconds_in_checkpoints = saver.seconds
                if stop and self.step < recipe.steps:
                    message = f"stopped after step {self.step}: the same command {saver.resumption}"
                    self.ranks.exit_together(message, interrupt.status)
        self._update_peak_memory()
        start = self.job.start
        return Result(
            tensors=start.complete(self.best) if start else self.best,
            metrics=metrics.final_metrics(self),
            costs=metrics.final_costs(self),
            adapter=start.adapter(self.best) if start else None,
            stop_status=interrupt.status if interrupt.requested else 0,
        )

    def close_logs(self) -> None:
        """Close the logs.

        Raises:
            OSError: one cannot be written whole.
        """
        self.step_log.close()
        self.validation_log.close()

    def train_step(self, interrupt: Interrupt) -> tuple[float, float]:
        """Take the next step; return its batch's mean loss and the gradient's norm."""
        job, recipe = self.job, self.job.recipe
        length = self._length(self.step)
        at = self.step, recipe.tokens_per_step // length, length, job.seed
        batch = job.train.batch(*at)
        soft = None
        if self.probabilities:
            soft = self.probabilities.soften(batch[1], job.train.places(*at))
        self.model.train()
        total = self.micro_batch.halving(lambda: self._accumulate(batch, interrupt, soft))
        norm = self._clip_gradients(recipe.grad_clip or math.inf)
        mean = self.ranks.mean(total)
        self._check_finite("loss", mean)
        self._check_finite("norm of the gradient", norm)
        try:
            self.optimizers.step(learning_rate(self.step, recipe))
        except torch.OutOfMemoryError:
            raise UserError(
                "the memory of the GPU is too small for the optimizer of this model: use a smaller "
                "model or compute.device=cpu; the last checkpoint stays"
            ) from None
        self.step += 1
        return mean, norm

    def _clip_gradients(self, limit: float) -> float:
        """Scale the gradients to a norm of at most `limit`; return their norm before that.

        `torch.nn.utils.clip_grad_norm_` does the same, but multiplies smaller gradients by 1.
        """
        parameters = list(self.model.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not norm + 1e-6 <= limit:
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm.item()

    def _accumulate(
        self, batch: tuple[Any, Any], interrupt: Interrupt, soft: SoftTargets | None = None
    ) -> float:
        """Add up the gradients of a step's micro-batches; return their mean loss on this rank.

        It changes nothing but the gradients, so that a step can begin again.

        Args:
            batch: inputs and targets.
            interrupt: tells whether the parent process has ended.
            soft: targets to learn in place of the batch's.
        """
        job, device, sequences = self.job, self.job.device, len(batch[0])
        predicted = _predicted(batch[1])
        total = torch.zeros((), device=device.name)
        # In C, the memory that a step needs does not depend on the number of its sequences.
        size = sequences if self.in_c else self._rows_in_pass(batch)
        for first in self.ranks.split(range(0, sequences, size)):
            interrupt.check_parent()
            torch.manual_seed(_dropout_seed(job.seed, self.step, first))
            rows = slice(first, first + size)
            tokens, targets = self._to_device(batch, rows)
            with device.autocast():
                loss = self.loss(tokens, soft.rows(rows).to(device.name) if soft else targets)
            share = _predicted(batch[1][first : first + size]) / predicted
            scaled = loss * (share * self.ranks.world_size)
            scaled.backward()  # type: ignore[no-untyped-call]
            total += scaled.detach()
        return total.item()

    def _validate(self) -> float:
        """Return the mean loss on the validation windows; copy the weights if it is the lowest.

        Losses on shorter windows do not count.
        """
        self.model.eval()
        total = self.micro_batch.halving(self._validation_total)
        loss = self.ranks.sum(total) / _predicted(self.validation_set[1])
        self._check_finite("validation loss", loss)
        if loss < self.best_loss or self._length(self.best_step) < self._length(self.step):
            self.best_loss, self.best_step = loss, self.step
            self.best = {k: v.cpu().clone() for k, v in trained_tensors(self.model).items()}
        self.validation_log.append(metrics.validation_row(self, loss))
        return loss

    @torch.no_grad()
    def _validation_total(self) -> float:
        """Return the sum of the losses of this rank's validation windows."""
        windows, total = self.validation_set, 0.0
        size = self._rows_in_pass(windows)
        loss_of = self.in_c or self.model.loss
        for first in self.ranks.split(range(0, len(windows[0]), size)):
            rows = slice(first, first + size)
            inputs, targets = self._to_device(windows, rows)
            with self.job.device.autocast():
                loss = loss_of(inputs, targets).item()
            total += loss * _predicted(windows[1][rows])
        return total

    def _rows_in_pass(self, batch: tuple[Any, Any]) -> int:
        """Return how many sequences of a batch have the tokens of a micro-batch."""
        return self.micro_batch.size * self.job.config.context // int(batch[0].shape[1])

    def _check_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            rate = self.job.recipe.learning_rate
            raise UserError(
                f"the {name} after {self.step} steps is {value}: lower train.learning_rate "
                f"(it is {rate:g}); the last checkpoint with finite losses stays"
            )

    def _to_device(self, batch: tuple[Any, Any], rows: slice) -> tuple[Tensor, Tensor]:
        """Return inputs and targets [micro_batch, context], some rows of a batch."""
        inputs, targets = (torch.from_numpy(part[rows]).to(self.job.device.name) for part in batch)
        return inputs, targets

    def checkpoint(self) -> Checkpoint:
        """Return everything that a run needs to resume from here."""
        tensors = {f"model.{k}": v for k, v in trained_tensors(self.model).items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors |= {f"optimizer.{k}": v for k, v in self.optimizers.tensors().items()}
        self._update_peak_memory()
        metadata = {
            "seconds": self.seconds,
            "seconds_in_checkpoints": self.seconds_in_checkpoints,
            "peak_memory_bytes": self.peak_memory_bytes,
            "best_loss": self.best_loss if self.best else None,
            "best_step": self.best_step,
            "micro_batch": self.micro_batch.size,
            "steps": self.step_log.rows,
            "validation": self.validation_log.rows,
        }
        return Checkpoint(self.step, {k: v.detach().cpu() for k, v in tensors.items()}, metadata)

    def _restore(self, resumed: Checkpoint) -> dict[str, Any]:
        """Load a checkpoint; return its metadata, which holds the rows of the logs."""

        def named(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): tensor
                for name, tensor in resumed.tensors.items()
                if name.startswith(prefix)
            }

        self.model.load_state_dict(self.model.state_dict() | named("model."))
        self.best = named("best.")
        self.optimizers.load(named("optimizer."))
        self.step = resumed.step
        self.seconds = resumed.metadata["seconds"]
        self.seconds_in_checkpoints = resumed.metadata["seconds_in_checkpoints"]
        self.peak_memory_bytes = resumed.metadata["peak_memory_bytes"]
        self.best_step = resumed.metadata["best_step"]
        if self.best:
            self.best_loss = resumed.metadata["best_loss"]
        print(f"resuming from step {self.step} of {self.job.recipe.steps}", flush=True)
        return resumed.metadata

    def _update_peak_memory(self) -> None:
        peak = metrics.peak_memory_bytes(self.job.device.name)
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak)


def _predicted(targets: Any) -> float:
    """Return the number of predicted tokens in targets [n, context], in sequences of context."""
    return np.count_nonzero(targets != IGNORED) / int(targets.shape[1])


def _dropout_seed(seed: int, step: int, first: int) -> int:
    """Return the seed of dropout in the micro-batch from row `first` of a step's batch on.

    PyTorch's CPU generator uses 32 bits of a seed: mix all three values into 32 bits.
    """
    return int(np.random.SeedSequence([seed, step, first]).generate_state(1)[0])
