"""Checkpoints: the model that training gives, and the state that a killed run goes on from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from storyllamas.atomic import atomic_file, write_json
from storyllamas.config import ModelConfig
from storyllamas.errors import UserError
from storyllamas.model import Llama
from storyllamas.state import locked
from storyllamas.weights import tensor_shapes

KEPT = 2


def save_model(
    folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> None:
    """Write model.safetensors and, beside it, config.json: the shape and what else is known."""
    with atomic_file(folder / "model.safetensors") as file:
        file.write(safetensors.torch.save(dict(tensors)))
    write_json(folder / "config.json", {"model": dataclasses.asdict(config), **about})


def load_model(folder: Path) -> tuple[Llama, dict[str, Any]]:
    """The model of a folder that `save_model` wrote, on the CPU in eval mode, and its config.json.

    Raises:
        UserError: a file is missing or damaged, or the two do not fit.
    """
    again = "train it again with `dvc repro`"
    try:
        about: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = ModelConfig(**about["model"])
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or folder} does not exist: {again}") from None
    except (ValueError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(f"checkpoint {folder} is damaged ({error}): {again}") from None
    if {name: tuple(t.shape) for name, t in tensors.items()} != tensor_shapes(config):
        raise UserError(f"model.safetensors in {folder} does not fit its config.json: {again}")
    model = Llama(config)
    model.load_state_dict(tensors)
    return model.eval(), about


def digest(value: object) -> str:
    """A name for everything that decides a run's result, given as plain values."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class State:
    """A run after a step.

    Attributes:
        step: steps done.
        tensors: weights, optimizer state and the best weights, under names of the loop's choice.
        notes: what else the loop needs to go on; plain values.
    """

    step: int
    tensors: dict[str, Tensor]
    notes: dict[str, Any]


class RunFolder:
    """The states of one unfinished run; at most `KEPT` of them, the newest last."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes out; one that was killed lets go by itself."""
        return locked(self.path / "lock", "the process that trains this run")

    def save(self, state: State) -> None:
        """Add a state, then remove the oldest beyond `KEPT`.

        The file's name holds its CRC-32, so that a damaged one is noticed.
        """
        notes = {"step": str(state.step), "notes": json.dumps(state.notes)}
        data = safetensors.torch.save(state.tensors, notes)
        name = f"{state.step:09d}-{zlib.crc32(data):08x}.safetensors"
        with atomic_file(self.path / name) as file:
            file.write(data)
        for old in self._files()[:-KEPT]:
            old.unlink()

    def latest(self) -> State | None:
        """The newest state that is whole, or None."""
        for file in reversed(self._files()):
            data = file.read_bytes()
            if file.stem.rpartition("-")[2] == f"{zlib.crc32(data):08x}":
                return _parse_state(data)
            print(f"{file} is damaged: going back to the one before it", flush=True)
            file.unlink()
        return None

    def remove(self) -> None:
        """Forget the run: it is finished."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(self.path.glob("*-*.safetensors"))


def _parse_state(data: bytes) -> State:
    header_bytes = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + header_bytes])["__metadata__"]
    tensors = safetensors.torch.load(data)
    return State(int(metadata["step"]), tensors, json.loads(metadata["notes"]))
