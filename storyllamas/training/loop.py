"""The training loop.

Every step is a function of the state before it, the recipe and the step's number: batches and
dropout draw from generators seeded with that number. So a run that was killed goes on from its last
checkpoint to the same bits, and several processes share a step's work (see distributed.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from storyllamas import workdir
from storyllamas.bits_per_byte import framed_bits_per_byte
from storyllamas.config import ModelConfig
from storyllamas.errors import UserError
from storyllamas.model import Llama
from storyllamas.params import Recipe
from storyllamas.rounding import six_digits
from storyllamas.token_file import TokenFile
from storyllamas.training.checkpoints import Keeper, RunFolder, State
from storyllamas.training.compiled import loss_of
from storyllamas.training.csv_log import STEP_COLUMNS, VALIDATION_COLUMNS, Table
from storyllamas.training.device import Device
from storyllamas.training.distributed import Ranks, micro_batch
from storyllamas.training.interrupt import Interrupt
from storyllamas.training.metrics import costs, peak_memory_bytes
from storyllamas.training.optimizer import Optimizers
from storyllamas.training.progress import Progress
from storyllamas.training.schedule import learning_rate
from storyllamas.training.tensorboard import Scalars

# A row for every step, or in a long run for every few.
MOST_LOG_ROWS = 2000


@dataclass(frozen=True)
class Job:
    """Everything that decides the result of a training run.

    Attributes:
        config: shape of the model.
        recipe: how it is trained.
        seed: of the initial weights, the batches and dropout.
        train: tokens to learn from.
        valid: tokens to validate on, of the same tokenizer.
        device: where it runs.
    """

    config: ModelConfig
    recipe: Recipe
    seed: int
    train: TokenFile
    valid: TokenFile
    device: Device

    def key(self) -> str:
        """A digest of it all, the code and the libraries that compute it included.

        Without the number of threads, so that a run goes on with another number of processes.
        """
        room = Path(__file__).parent
        beside = ("config.py", "model.py", "rounding.py", "token_file.py", "bits_per_byte.py")
        code = [*sorted(room.glob("*.py")), *(room.parent / name for name in beside)]
        device = {k: v for k, v in dataclasses.asdict(self.device).items() if k != "threads"}
        deciding = {
            "config": dataclasses.asdict(self.config),
            "recipe": dataclasses.asdict(self.recipe),
            "seed": self.seed,
            "data": [_file_digest(self.train.path), _file_digest(self.valid.path)],
            "device": device,
            "machine": [platform.machine(), torch.backends.cpu.get_cpu_capability()],
            "libraries": [np.__version__, torch.__version__],
            "code": [_file_digest(path) for path in code],
        }
        text = json.dumps(deciding, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Result:
    """What a finished run gives.

    Attributes:
        tensors: the weights that were best on validation, on the CPU.
        metrics: what the run came to: plain numbers and names, the same for the same bits.
        costs: what it took, which no two runs have the same.
    """

    tensors: dict[str, Tensor]
    metrics: dict[str, Any]
    costs: dict[str, Any]


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
    """Train to the end, from the last checkpoint of the same run if there is one.

    Its checkpoints are removed when the block, which keeps the result somewhere, ends well.

    Args:
        job: what to train.
        logs: folder of the tables steps.csv and validation.csv, written while it goes on.
        checkpoint_seconds: time between two checkpoints, as `Keeper` takes it.
        parent: the process that waits for this one; where that is DVC or torchrun and it is gone,
            stop.
        ranks: the processes that train together; None: this one alone.
        name: of the run in TensorBoard; empty: it is not to be seen there.

    Raises:
        UserError: the loss is not finite, the disk refuses the result, or the ranks cannot share
            the work.
        SystemExit: interrupted; a checkpoint is kept.
    """
    ranks = ranks or Ranks()
    key = job.key()
    ranks.check_alike(f"{key} {job.device.threads}")
    folder = RunFolder(workdir.root() / "runs" / key)
    watched = workdir.root() / "tensorboard" / f"{name}-{key}" if name and ranks.first else None
    with folder.locked() if ranks.first else nullcontext():
        trainer = Trainer(job, logs, ranks.from_first(folder.latest), ranks)
        kept = trainer.step, trainer.seconds_in_checkpoints
        keeper = Keeper(folder, checkpoint_seconds, *kept)
        result = trainer.run(keeper, Interrupt(parent), Scalars(watched, trainer.step))
        try:
            trainer.close_logs()
            yield result
        except OSError as error:
            keeper.keep(trainer.state, last=True)
            raise UserError(
                f"{error.filename} cannot be written ({error.strerror}): once that is mended, the "
                f"same command {keeper.resumption}"
            ) from None
        if ranks.first:
            folder.remove()


class Trainer:
    """A run in progress: `training_run` takes it to its end, a benchmark step by step."""

    def __init__(
        self, job: Job, logs: Path, resumed: State | None, ranks: Ranks | None = None
    ) -> None:
        self.job = job
        self.ranks = ranks or Ranks()
        self.micro_batch = micro_batch(job.recipe, job.config.context, self.ranks.count)
        torch.manual_seed(job.seed)
        self.model = Llama(job.config, job.recipe.dropout, job.recipe.zero_init_residual).to(
            job.device.name
        )
        self.optimizers = Optimizers(self.model, job.recipe)
        windows = job.recipe.eval_sequences, job.config.context
        self.validation_set = job.valid.first_windows(*windows)
        self.step = 0
        self.seconds = 0.0
        self.seconds_in_checkpoints = 0.0
        self.peak_memory_bytes = 0
        self.best_loss = math.inf
        self.best_step = 0
        self.best: dict[str, Tensor] = {}
        rows: dict[str, Any] = {"steps": [], "validation": []}
        if resumed:
            rows = self._restore(resumed)
        loss = loss_of(self.model, job.device, self.micro_batch)
        self.loss = self.ranks.parallel(self.model, loss)
        steps, validation = map(self.ranks.file, (logs / "steps.csv", logs / "validation.csv"))
        self.steps_table = Table(steps, STEP_COLUMNS, rows["steps"])
        self.validation_table = Table(validation, VALIDATION_COLUMNS, rows["validation"])

    def run(self, keeper: Keeper, interrupt: Interrupt, scalars: Scalars) -> Result:
        """Take all steps that are left, with validations and checkpoints."""
        recipe = self.job.recipe
        log_every = math.ceil(recipe.steps / MOST_LOG_ROWS)
        begun = time.monotonic() - self.seconds
        shown = recipe.steps, self.step, recipe.tokens_per_step, self.job.device.name
        with interrupt, scalars, Progress(*shown) as progress:
            while self.step < recipe.steps:
                loss, norm = self.train_step(interrupt)
                if self.step % log_every == 0 or self.step == recipe.steps:
                    self._log_step(loss, norm)
                    scalars.log_step(self.steps_table.rows[-1])
                if self.step % recipe.eval_every == 0 or self.step == recipe.steps:
                    progress.validated(self._validate())
                    scalars.log_validation(self.validation_table.rows[-1])
                self.seconds = time.monotonic() - begun
                progress.advance(self.step, loss)
                asked = self.ranks.any(interrupt.asked)
                if self.ranks.first and (asked or keeper.due()):
                    keeper.keep(self.state, last=asked)
                    self.seconds_in_checkpoints = keeper.seconds
                if asked and self.step < recipe.steps:
                    self.ranks.leave(lambda: interrupt.leave(self.step, keeper.resumption))
        return Result(self.best, self._metrics(), self._costs())

    def close_logs(self) -> None:
        """Close the tables; `OSError` if they cannot be written whole."""
        self.steps_table.close()
        self.validation_table.close()

    def train_step(self, interrupt: Interrupt) -> tuple[float, float]:
        """Take the next step; returns its batch's mean loss and the norm of the gradient."""
        job, recipe, device = self.job, self.job.recipe, self.job.device
        sequences = recipe.tokens_per_step // job.config.context
        batch = job.train.batch(self.step, sequences, job.config.context, job.seed)
        self.model.train()
        total = torch.zeros((), device=device.name)
        for first in self.ranks.share(range(0, sequences, self.micro_batch)):
            interrupt.check_parent()
            torch.manual_seed(_dropout_seed(job.seed, self.step, first))
            tokens, targets = self._to_device(batch, first)
            with device.autocast():
                loss = self.loss(tokens, targets)
            share = loss * (self.micro_batch * self.ranks.count / sequences)
            share.backward()  # type: ignore[no-untyped-call]
            total += share.detach()
        limit = recipe.grad_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit).item()
        mean = self.ranks.mean(total.item())
        self._check_finite("loss", mean)
        self._check_finite("norm of the gradient", norm)
        self.optimizers.step(learning_rate(self.step, recipe))
        self.step += 1
        return mean, norm

    @torch.no_grad()
    def _validate(self) -> float:
        """Mean loss on the validation windows; the weights are kept if it is the lowest yet."""
        self.model.eval()
        tokens, _ = self.validation_set
        total = 0.0
        for first in self.ranks.share(range(0, len(tokens), self.micro_batch)):
            inputs, targets = self._to_device(self.validation_set, first)
            with self.job.device.autocast():
                total += self.model.loss(inputs, targets).item() * len(inputs)
        loss = self.ranks.sum(total) / len(tokens)
        self._check_finite("validation loss", loss)
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, self.step
            self.best = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
        self.validation_table.append(
            {"step": self.step, "tokens": self._tokens_seen(), "loss": loss}
        )
        return loss

    def _check_finite(self, name: str, value: float) -> None:
        if not math.isfinite(value):
            rate = self.job.recipe.learning_rate
            raise UserError(
                f"the {name} after {self.step} steps is {value}: lower train.learning_rate "
                f"(it is {rate:g}); the last checkpoint with finite losses is kept"
            )

    def _to_device(self, batch: tuple[Any, Any], first: int) -> tuple[Tensor, Tensor]:
        """The micro-batch that begins at row `first`: inputs and targets."""
        rows = slice(first, first + self.micro_batch)
        inputs, targets = (torch.from_numpy(part[rows]).to(self.job.device.name) for part in batch)
        return inputs, targets

    def _log_step(self, loss: float, norm: float) -> None:
        self.steps_table.append(
            {
                "step": self.step,
                "tokens": self._tokens_seen(),
                "loss": loss,
                "learning_rate": learning_rate(self.step - 1, self.job.recipe),
                "gradient_norm": norm,
            }
        )

    def _tokens_seen(self) -> int:
        return self.step * self.job.recipe.tokens_per_step

    def state(self) -> State:
        """All that the run needs to go on from here."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors |= {f"optimizer.{k}": v for k, v in self.optimizers.tensors().items()}
        self._take_note_of_memory()
        notes = {
            "seconds": self.seconds,
            "seconds_in_checkpoints": self.seconds_in_checkpoints,
            "peak_memory_bytes": self.peak_memory_bytes,
            "best_loss": self.best_loss if self.best else None,
            "best_step": self.best_step,
            "steps": self.steps_table.rows,
            "validation": self.validation_table.rows,
        }
        return State(self.step, {k: v.detach().cpu() for k, v in tensors.items()}, notes)

    def _restore(self, before: State) -> dict[str, Any]:
        """Take over a state; returns its notes, which hold the rows of the log."""

        def named(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): tensor
                for name, tensor in before.tensors.items()
                if name.startswith(prefix)
            }

        self.model.load_state_dict(named("model."))
        self.best = named("best.")
        self.optimizers.load(named("optimizer."))
        self.step = before.step
        self.seconds = before.notes["seconds"]
        self.seconds_in_checkpoints = before.notes["seconds_in_checkpoints"]
        self.peak_memory_bytes = before.notes["peak_memory_bytes"]
        self.best_step = before.notes["best_step"]
        if self.best:
            self.best_loss = before.notes["best_loss"]
        print(f"going on from step {self.step} of {self.job.recipe.steps}", flush=True)
        return before.notes

    def _metrics(self) -> dict[str, Any]:
        valid = self.job.valid
        return {
            "parameters": self.job.config.parameters,
            "steps": self.job.recipe.steps,
            "tokens": self._tokens_seen(),
            "flops": self._tokens_seen() * self.job.config.training_flops,
            "train_loss": self.steps_table.rows[-1]["loss"],
            "validation_loss": six_digits(self.best_loss),
            "framed_bits_per_byte": six_digits(
                framed_bits_per_byte(self.best_loss, len(valid.tokens), valid.text_bytes)
            ),
            "best_step": self.best_step,
            "device": self.job.device.name,
            "precision": self.job.device.precision,
            "threads": self.job.device.threads,
            "processes": self.ranks.count,
            "compiled": self.job.device.compiled,
        }

    def _costs(self) -> dict[str, Any]:
        self._take_note_of_memory()
        return {
            **costs(self.job.config, self._tokens_seen(), self.seconds),
            "seconds_in_checkpoints": round(self.seconds_in_checkpoints, 2),
            "peak_memory_bytes": self.peak_memory_bytes,
        }

    def _take_note_of_memory(self) -> None:
        here = peak_memory_bytes(self.job.device.name)
        self.peak_memory_bytes = max(self.peak_memory_bytes, here)


def _dropout_seed(seed: int, step: int, first: int) -> int:
    """Of the draws in the micro-batch that begins at row `first` of a step's batch.

    Torch's CPU generator takes 32 bits of a seed, so that all three are mixed into as many.
    """
    return int(np.random.SeedSequence([seed, step, first]).generate_state(1)[0])


def _file_digest(path: Path) -> str:
    """SHA-256 of a file, in bounded memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
