"""Training in several processes (ranks), which torchrun starts on one machine or several.

Each rank computes a part of a step's micro-batches, DistributedDataParallel averages the gradients
(Li et al. 2020, arXiv:2006.15704), and every rank takes the same optimizer step. A step's batch
does not depend on the number of ranks, so the result depends on it only by rounding.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from storyllamas.errors import UserError
from storyllamas.params import AUTO, Compute, Recipe
from storyllamas.training.compiled import Loss
from storyllamas.training.launch import EXIT_RANK_LOST, RESUME_HINT, is_launched

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others; compiling or writing a checkpoint takes less."""


class Ranks:
    """The processes that train together, as one of them sees them; by default there is only one.

    With one rank every method returns its argument, without communication.

    Attributes:
        rank: index of this process, 0 … world_size - 1.
        world_size: number of processes.
        first: whether this is rank 0, which prints and writes files.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank = rank
        self.world_size = world_size
        self.first = rank == 0
        self._parallel: DistributedDataParallel | None = None

    def average_gradients(self, model: nn.Module, loss: Loss) -> Loss:
        """Return `loss`, a function of `model`, with a backward that averages over ranks.

        Copy the weights of rank 0 to all ranks.

        Raises:
            UserError: the model is on a device that cannot average over ranks.
        """
        if self.world_size == 1:
            return loss
        if any(parameter.device.type == "mps" for parameter in model.parameters()):
            raise UserError("several processes cannot share an MPS device: use compute.device=cpu")
        self._parallel = DistributedDataParallel(_LossModule(model, loss))
        return self._parallel

    def split(self, starts: range) -> Iterator[int]:
        """Yield this rank's part of `starts`; the backward of its last one averages gradients."""
        own = starts[self.rank :: self.world_size]
        no_sync = self._parallel.no_sync if self._parallel else nullcontext
        for start in own:
            with no_sync() if start != own[-1] else nullcontext():
                yield start

    def sum(self, value: float) -> float:
        """Return the sum of all ranks' values, bit-identical on all ranks."""
        if self.world_size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return total.item()

    def mean(self, value: float) -> float:
        """Return the mean of all ranks' values, bit-identical on all ranks."""
        return self.sum(value) / self.world_size

    def min(self, value: int) -> int:
        """Return the smallest value of all ranks."""
        if self.world_size == 1:
            return value
        smallest = torch.tensor(value)
        dist.all_reduce(smallest, dist.ReduceOp.MIN)
        return int(smallest.item())

    def any(self, value: bool) -> bool:
        """Return whether the value is true on any rank."""
        return self.sum(value) > 0

    def broadcast(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0 only; return its result on all ranks."""
        if self.world_size == 1:
            return make()
        box = [make() if self.first else None]
        dist.broadcast_object_list(box)
        made: T = box[0]  # type: ignore[assignment]
        return made

    def log_path(self, path: Path) -> Path:
        """Return `path` on rank 0 and /dev/null on the others."""
        return path if self.first else Path(os.devnull)

    def check_equal(self, value: str) -> None:
        """Check that `value` is equal on all ranks.

        Raises:
            UserError: it differs on one.
        """
        if self.world_size == 1:
            return
        values: list[str] = [""] * self.world_size
        dist.all_gather_object(values, value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise UserError(
                    f"rank {rank} differs from rank 0: give all machines the same params.yaml, "
                    f"data, code, packages, kind of processor and compute.threads"
                )

    def exit_together(self, message: str, status: int) -> NoReturn:
        """Print `message` to standard error on rank 0, then exit on all ranks.

        All wait for the message: torchrun kills the rest once one has exited.
        """
        if self.first:
            with suppress(OSError):  # of a closed terminal
                print(message, file=sys.stderr, flush=True)
        if self.world_size > 1:
            dist.barrier()
        raise SystemExit(status)


def micro_batch(recipe: Recipe, context: int, ranks: int, limit: int | None = None) -> int:
    """Return the size of a micro-batch, in sequences, with which all ranks take equally many.

    It is the largest size up to the recipe's that divides a rank's share of a step. With dropout,
    whose mask depends on the micro-batch, it has to be the size of a single rank. With `auto`, it
    is the largest size within `limit`.

    Args:
        recipe: hyperparameters.
        context: tokens of a sequence.
        ranks: number of processes.
        limit: with `auto`, the largest size that fits the memory; None: any.

    Raises:
        UserError: the ranks cannot split a step evenly.
    """
    sequences = recipe.tokens_per_step // context
    if sequences % ranks:
        raise UserError(
            f"tokens_per_step is {recipe.tokens_per_step}, {sequences} sequences of {context} "
            f"tokens, which {ranks} processes cannot split evenly: use a number of processes that "
            f"divides {sequences}, or a multiple of {ranks * context} tokens"
        )
    own = sequences // ranks
    wanted = limit or own if recipe.micro_batch == AUTO else recipe.micro_batch
    fits, alone = largest_divisor(own, wanted), largest_divisor(sequences, wanted)
    if recipe.dropout and recipe.micro_batch != AUTO and fits != alone:
        raise UserError(
            f"micro_batch is {alone}: a step has {sequences // alone} "
            f"micro-batches, which {ranks} processes cannot split evenly; use "
            f"train.micro_batch={fits}, which changes the dropout masks, or another number of "
            f"processes"
        )
    return fits


def largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of `number` up to `limit`; both are at least 1."""
    return next(divisor for divisor in range(min(number, limit), 0, -1) if number % divisor == 0)


@contextmanager
def joined(compute: Compute) -> Iterator[Ranks]:
    """Yield the ranks that torchrun started together with this one; without torchrun, only this.

    Each rank uses a GPU of its own, or its part of the CPU's threads. Only rank 0 writes to
    standard output, and only one rank of each machine prints a `UserError`.

    Raises:
        UserError: there are fewer GPUs than ranks.
        SystemExit: another rank has ended.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or not dist.is_torchelastic_launched():
        yield Ranks()
        return
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if rank:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    try:
        _assign_device(compute, local, int(os.environ["LOCAL_WORLD_SIZE"]))
        dist.init_process_group(timeout=TIMEOUT)
        yield Ranks(rank, dist.get_world_size())
    except UserError:
        if local:
            time.sleep(2)  # torchrun ends the others with the first: let that one print its error
            raise SystemExit(1) from None
        raise
    except Exception as error:
        if _is_rank_lost(error):
            if local == 0 and not is_launched():
                print(f"error: another rank has ended: {RESUME_HINT}", file=sys.stderr, flush=True)
            raise SystemExit(EXIT_RANK_LOST) from None
        print(f"rank {rank} failed: solve that, then {RESUME_HINT}", file=sys.stderr, flush=True)
        raise
    dist.destroy_process_group()


def _assign_device(compute: Compute, local: int, count: int) -> None:
    """Set the GPU, or the number of threads, of local rank `local` of `count` on this machine."""
    if compute.device in ("auto", "cuda") and torch.cuda.is_available():
        if count > torch.cuda.device_count():
            raise UserError(
                f"compute.processes is {count} on a machine with {torch.cuda.device_count()} GPUs: "
                f"use at most one process for each GPU, or compute.device=cpu"
            )
        torch.cuda.set_device(local)
    if not compute.threads and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // count))


def _is_rank_lost(error: Exception) -> bool:
    """Return whether the connection to another rank broke or timed out."""
    # gloo raises plain RuntimeErrors, which name its source files.
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


class _LossModule(nn.Module):
    """A loss as the module that DistributedDataParallel needs.

    It has the parameters of the model, but not its buffers, which never change and would be sent
    to all ranks in every step.
    """

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.weights = nn.ParameterList(model.parameters())
        self.loss = (loss,)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return self.loss[0](tokens, targets)
