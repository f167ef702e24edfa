"""Export a trained model: weight files for the C engine, and files for other programs.

To add an export format, see interop/formats.py; to add a weight type, see slm/encoding.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from storyllamas.interop.formats import export_model
from storyllamas.interop.model import open_model
from storyllamas.slm import weight_file
from storyllamas.slm.calibration import input_moments
from storyllamas.slm.encoding import storage
from storyllamas.slm.quantize import Float32
from storyllamas.token_file import TokenFile


def export(
    model: Path,
    folder: Path,
    types: Iterable[str],
    group_sizes: Mapping[str, int],
    formats: Iterable[str],
    text: TokenFile | None = None,
    windows: int = 32,
) -> list[Path]:
    """Write a model to folder/TYPE.slm for each type and folder/FORMAT/… for each format.

    Args:
        model: the folder that training wrote; the tokenizer is in it or in its parent folder.
        folder: the folder for the files.
        types: labels of `WeightType`.
        group_sizes: the number of weights that share a scale, for each type that has scales.
        formats: keys of `interop.formats.FORMATS`.
        text: the calibration text for types that are calibrated; None: round the weights alone.
        windows: the number of windows of the text.

    Returns:
        The paths of the files.

    Raises:
        UserError: the model is damaged or belongs to another tokenizer, or a format cannot
            represent it.
    """
    source = open_model(model)
    paths: list[Path] = []
    for name in types:
        path = folder / f"{name}.slm"
        moments: Iterable[tuple[str, Float32]] = ()
        stored = storage(name, group_sizes)
        if text and stored.layers.type.spec.calibrated:
            ids, _ = text.first_windows(windows, source.config.context)
            moments = input_moments(source.config, source.tensor, ids)
        weight_file.write(path, source.config, source.vocabulary, source.tensor, stored, moments)
        paths.append(path)
    for name in formats:
        paths += export_model(source, name, folder / name)
    return paths
