"""Conversion by name: `export_model` for another runtime, `import_model` from one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from storyllamas.atomic import atomic_folder
from storyllamas.errors import UserError
from storyllamas.interop import gguf, huggingface, llama2c
from storyllamas.interop.model import Source
from storyllamas.slm import weight_file
from storyllamas.slm.encoding import F32, Storage
from storyllamas.slm.header import MAGIC

FORMATS: dict[str, Callable[[Source, Path], None]] = {
    "hf": huggingface.write,
    "gguf": partial(gguf.write, type_name="f32"),
    **{f"gguf-{name}": partial(gguf.write, type_name=name) for name in gguf.TYPES[1:]},
    "llama2c": partial(llama2c.write, version=0),
    "llama2c-q8": partial(llama2c.write, version=2),
}
"""What can be exported, each with its writer; without a type in the name it is float32."""


def export_model(source: Source, name: str, folder: Path) -> list[Path]:
    """Write a model in one of `FORMATS`; the folder gets all files of it or none.

    Files of the same names are replaced, others in the folder stay.

    Returns:
        The paths of the files.

    Raises:
        UserError: the format cannot hold the model, or the folder cannot be written.
    """
    try:
        with atomic_folder(folder) as temporary:
            FORMATS[name](source, temporary)
            files = sorted(path.name for path in temporary.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    return [folder / file for file in files]


def import_model(
    path: Path,
    out: Path,
    storage: Storage = F32,
    tokenizer: Path | None = None,
) -> None:
    """Write a model of another program as a weight file.

    Args:
        path: a llama2.c checkpoint, a GGUF file, or a Hugging Face folder.
        out: the weight file.
        storage: how it stores matrices.
        tokenizer: a llama2.c checkpoint's tokenizer.bin; None: the one beside it.

    Raises:
        UserError: the model is damaged or cannot be represented.
    """
    source = open_foreign(path, tokenizer)
    weight_file.write(out, source.config, source.vocabulary, source.tensor, storage)


def open_foreign(path: Path, tokenizer: Path | None = None) -> Source:
    """Open a model of another program, told by what it looks like.

    Raises:
        UserError: it is missing, damaged or cannot be represented.
    """
    if path.is_dir():
        return huggingface.read(path)
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if start == MAGIC:
        raise UserError(f"{path} is a weight file of StoryLlamas: it needs no import")
    return gguf.read(path) if start[:4] == b"GGUF" else llama2c.read(path, tokenizer)
