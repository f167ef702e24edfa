"""The formats of other programs: `export_model` writes one, `import_model` reads one.

To add an export format, add a line to `FORMATS`. Importing this module loads no format's module,
so that `params` can read the names.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from storyllamas.atomic import atomic_folder
from storyllamas.errors import UserError
from storyllamas.regular_file import open_regular
from storyllamas.slm.header import MAGIC

if TYPE_CHECKING:
    from storyllamas.interop.model import InteropModel
    from storyllamas.slm.quantize import Float32


ZIP = b"PK\3\4"
"""The start of a file that torch.save wrote."""


class ExportFormat(NamedTuple):
    """How to write a format.

    Attributes:
        module: a module of this package; its `write(model, folder, **options)` writes the files.
        options: keyword arguments of that `write`.
    """

    module: str
    options: Mapping[str, Any] = {}


FORMATS = {
    "hf": ExportFormat("huggingface"),
    "gguf": ExportFormat("gguf", {"type_name": "f32"}),
    "gguf-f16": ExportFormat("gguf", {"type_name": "f16"}),
    "gguf-bf16": ExportFormat("gguf", {"type_name": "bf16"}),
    "gguf-q8_0": ExportFormat("gguf", {"type_name": "q8_0"}),
    "gguf-q4_0": ExportFormat("gguf", {"type_name": "q4_0"}),
    "llama2c": ExportFormat("llama2c", {"version": 0}),
    "llama2c-q8": ExportFormat("llama2c", {"version": 2}),
}
"""Every export format by name; a name without a weight type means float32."""


def export_model(model: InteropModel, name: str, folder: Path) -> list[Path]:
    """Write a model in one of `FORMATS`; the folder gets either all of the files or none.

    Files with the same names are replaced; other files in the folder stay.

    Args:
        model: the model to write.
        name: a key of `FORMATS`.
        folder: the target folder; it is created if it does not exist.

    Returns:
        The paths of the files, sorted by name.

    Raises:
        UserError: the format cannot represent the model, or the folder cannot be written.
    """
    form = FORMATS[name]
    try:
        with atomic_folder(folder) as temporary:
            _module(form.module).write(model, temporary, **form.options)
            files = sorted(path.name for path in temporary.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
    return [folder / file for file in files]


def import_model(
    path: Path,
    out: Path,
    type_name: str = "f32",
    group_size: int = 0,
    tokenizer: Path | None = None,
    calibration: Path | None = None,
) -> None:
    """Write a model of another program as a weight file.

    Args:
        path: a llama2.c checkpoint, a GGUF file, or a Hugging Face folder.
        out: the weight file.
        type_name: the label of the weight type.
        group_size: columns that share a scale; 0: the size that suits the model's widths.
        tokenizer: tokenizer.bin of a llama2.c checkpoint; None: the one in the same folder.
        calibration: a file of stories, for types that are calibrated; None: the bundled storybook.

    Raises:
        UserError: the model is damaged or cannot be represented.
    """
    from storyllamas.engine.tokenizer import FastTokenizer
    from storyllamas.interop import quantization
    from storyllamas.slm import weight_file

    with _naming(path):
        model = open_external(path, tokenizer)
        # The engine has the last word on a tokenizer, before a file is written that it rejects.
        FastTokenizer.of(model.vocabulary)
    storage = quantization.suited_storage(model.config, type_name, group_size)
    storage.check()
    moments: Iterable[tuple[str, Float32]] = ()
    if storage.layers.type.spec.calibrated:
        from storyllamas.slm.calibration import input_moments

        windows = quantization.calibration_windows(model, calibration)
        moments = input_moments(model.config, model.tensor, windows)
    with _naming(path):
        weight_file.write(out, model.config, model.vocabulary, model.tensor, storage, moments)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the imported file in a `UserError` that does not name it; NumPy prints no warnings."""
    import numpy as np

    try:
        # A number that overflows becomes infinite, which the weight file rejects by name.
        with np.errstate(all="ignore"):
            yield
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{path} cannot be imported: {error}") from None


def open_external(path: Path, tokenizer: Path | None = None) -> InteropModel:
    """Open a model of another program; its format is detected from its content.

    Args:
        path: a llama2.c checkpoint, a GGUF file, or a Hugging Face folder.
        tokenizer: tokenizer.bin of a llama2.c checkpoint; None: the one in the same folder.

    Raises:
        UserError: the model is missing, damaged or cannot be represented, or has its own tokenizer
            and another one is given.
    """
    if path.is_dir():
        _check_has_no_other(tokenizer, path)
        return _read("huggingface", path)
    try:
        with open_regular(path) as file:
            start = file.read(len(MAGIC))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give a file or folder of a model") from None
    if start == MAGIC:
        raise UserError(f"{path} is a weight file of StoryLlamas: it needs no import")
    if start[:4] == b"GGUF":
        _check_has_no_other(tokenizer, path)
        return _read("gguf", path)
    if path.suffix.lower() == ".gguf":
        raise UserError(f"{path} is not a GGUF file: it does not begin with GGUF")
    if start[:4] == ZIP:
        return _read("llama2c_training", path, tokenizer)
    return _read("llama2c", path, tokenizer)


def _check_has_no_other(tokenizer: Path | None, path: Path) -> None:
    if tokenizer:
        raise UserError(
            f"{path} has its own tokenizer and {tokenizer} is given: leave out --tokenizer, which "
            "is for checkpoints of llama2.c"
        )


def _module(name: str) -> Any:
    return importlib.import_module(f"{__package__}.{name}")


def _read(module: str, *arguments: Path | None) -> InteropModel:
    model: InteropModel = _module(module).read(*arguments)
    return model
