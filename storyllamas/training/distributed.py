"""Training in several processes, ranks, that torchrun starts on one machine or on many.

Each rank computes its share of a step's micro-batches, DistributedDataParallel averages their
gradients (Li et al. 2020, arXiv:2006.15704), and every rank takes the same optimizer step. The
step's batch is the same whatever their number, so the result is too, within rounding.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from storyllamas.errors import UserError
from storyllamas.params import Compute, Recipe
from storyllamas.training.compiled import Loss
from storyllamas.training.launch import GO_ON, LOST, launched

T = TypeVar("T")

# How long a rank waits for the others: longer than compiling or writing a checkpoint takes.
PATIENCE = timedelta(minutes=10)


class Ranks:
    """The processes that train together, seen by one of them; by default it is alone.

    Alone, every method gives back what it is given and costs nothing.

    Attributes:
        number: which one this is, 0 … count - 1.
        count: how many there are.
        first: whether this is the one that prints and writes files.
    """

    def __init__(self, number: int = 0, count: int = 1) -> None:
        self.number = number
        self.count = count
        self.first = number == 0
        self._parallel: DistributedDataParallel | None = None

    def parallel(self, model: nn.Module, loss: Loss) -> Loss:
        """`loss`, a function of the model, such that its backward averages gradients over ranks.

        All ranks take over the first one's weights.

        Raises:
            UserError: the model is on a device on which ranks cannot average.
        """
        if self.count == 1:
            return loss
        if any(parameter.device.type == "mps" for parameter in model.parameters()):
            raise UserError("several processes cannot share an MPS device: use compute.device=cpu")
        self._parallel = DistributedDataParallel(_LossModule(model, loss))
        return self._parallel

    def share(self, starts: range) -> Iterator[int]:
        """This rank's part of `starts`; gradients are averaged in the backward of the last."""
        own = starts[self.number :: self.count]
        apart = self._parallel.no_sync if self._parallel else nullcontext
        for start in own:
            with apart() if start != own[-1] else nullcontext():
                yield start

    def sum(self, value: float) -> float:
        """The sum of all ranks' values, to the bit the same on all."""
        if self.count == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return total.item()

    def mean(self, value: float) -> float:
        """The mean of all ranks' values, to the bit the same on all."""
        return self.sum(value) / self.count

    def any(self, value: bool) -> bool:
        """Whether the value is true on any rank."""
        return self.sum(value) > 0

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the first rank, on all; the others do not call it."""
        if self.count == 1:
            return make()
        box = [make() if self.first else None]
        dist.broadcast_object_list(box)
        made: T = box[0]  # type: ignore[assignment]
        return made

    def file(self, path: Path) -> Path:
        """The path on the first rank; on the others, where what is written is gone."""
        return path if self.first else Path(os.devnull)

    def check_alike(self, what: str) -> None:
        """Check that all ranks are about to do the same, described by `what`.

        Raises:
            UserError: some rank is not.
        """
        if self.count == 1:
            return
        all_of_them: list[str] = [""] * self.count
        dist.all_gather_object(all_of_them, what)
        for number, other in enumerate(all_of_them):
            if other != all_of_them[0]:
                raise UserError(
                    f"rank {number} differs from rank 0: give all machines the same params.yaml, "
                    f"data, code, packages, kind of processor and compute.threads"
                )

    def leave(self, leave: Callable[[], NoReturn]) -> None:
        """Call `leave`, which exits, on all ranks.

        They go when the first has said why, since torchrun kills those that are left.
        """
        try:
            leave()
        except SystemExit as leaving:
            if self.count == 1:
                raise
            if self.first:
                print(leaving.code, file=sys.stderr, flush=True)
            dist.barrier()
            raise SystemExit(1) from None


def micro_batch(recipe: Recipe, context: int, ranks: int) -> int:
    """Windows in a micro-batch such that each rank computes as many of them as any other.

    It is the recipe's, or a smaller one that gives the same result. With dropout, whose draws
    belong to a micro-batch, none does.

    Raises:
        UserError: the ranks cannot share a step evenly.
    """
    sequences = recipe.tokens_per_step // context
    if sequences % ranks:
        raise UserError(
            f"tokens_per_step is {recipe.tokens_per_step}, {sequences} windows of {context}, which "
            f"{ranks} processes cannot share evenly: use a number of processes that divides "
            f"{sequences}, or a multiple of {ranks * context} tokens"
        )
    own = sequences // ranks
    fits = next(size for size in range(min(recipe.micro_batch, own), 0, -1) if own % size == 0)
    if recipe.dropout and fits != recipe.micro_batch:
        raise UserError(
            f"micro_batch is {recipe.micro_batch}, of which a step has "
            f"{sequences // recipe.micro_batch}, and {ranks} processes cannot share them evenly: "
            f"use train.micro_batch={fits}, whose dropout draws differently, or another number of "
            f"processes"
        )
    return fits


@contextmanager
def joined(compute: Compute) -> Iterator[Ranks]:
    """The ranks that torchrun started together with this one; without torchrun, this one alone.

    Each gets its GPU, or its share of the CPU's threads. Only the first rank's standard output is
    seen, and of each machine only one rank tells of a user's error.

    Raises:
        UserError: there are fewer GPUs than ranks.
        SystemExit: another rank is gone.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or not dist.is_torchelastic_launched():
        yield Ranks()
        return
    number, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if number:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    try:
        _take_share(compute, local, int(os.environ["LOCAL_WORLD_SIZE"]))
        dist.init_process_group(timeout=PATIENCE)
        yield Ranks(number, dist.get_world_size())
    except UserError:
        if local:
            time.sleep(2)  # torchrun ends the others with the first to go: let that one speak
            raise SystemExit(1) from None
        raise
    except Exception as error:
        if _is_lost(error):
            if local == 0 and not launched():
                print(f"error: another rank is gone: {GO_ON}", file=sys.stderr, flush=True)
            raise SystemExit(LOST) from None
        print(f"rank {number} failed; once that is mended, {GO_ON}", file=sys.stderr, flush=True)
        raise
    dist.destroy_process_group()


def _take_share(compute: Compute, local: int, count: int) -> None:
    """Take what belongs to the rank of number `local` of the `count` on this machine."""
    if compute.device in ("auto", "cuda") and torch.cuda.is_available():
        if count > torch.cuda.device_count():
            raise UserError(
                f"{count} processes are to train on a machine with {torch.cuda.device_count()} "
                f"GPUs: use one process for each, or compute.device=cpu"
            )
        torch.cuda.set_device(local)
    if not compute.threads and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))


def _is_lost(error: Exception) -> bool:
    """Whether the connection to another rank broke or was silent for too long."""
    # gloo throws plain RuntimeErrors, which name its source files.
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


class _LossModule(nn.Module):
    """A loss as the module that DistributedDataParallel asks for.

    It has the model's parameters, but not its buffers: they never change, and would be sent around
    in every step.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.weights = nn.ParameterList(model.parameters())
        self.loss = (loss,)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return self.loss[0](tokens, targets)
