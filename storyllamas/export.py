"""From a training checkpoint to files that run: here, and in other programs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from storyllamas.interop.formats import export_model
from storyllamas.interop.model import open_model
from storyllamas.slm import weight_file
from storyllamas.slm.calibration import input_moments
from storyllamas.slm.encoding import storage
from storyllamas.token_file import TokenFile


def export(
    checkpoint: Path,
    folder: Path,
    types: Iterable[str],
    group_sizes: Mapping[str, int],
    formats: Iterable[str],
    text: TokenFile | None = None,
    windows: int = 32,
) -> list[Path]:
    """Write a checkpoint as folder/TYPE.slm for each type and folder/FORMAT/… for each format.

    Args:
        checkpoint: folder that training wrote; the tokenizer lies in it or in the one above.
        folder: where the files go.
        types: names of `WeightType` in lower case.
        group_sizes: weights that share a scale, for each type that has scales.
        formats: names in `interop.convert.FORMATS`.
        text: what q4 is fitted to; None: to the weights alone.
        windows: how many windows of the text.

    Returns:
        The paths of the files.

    Raises:
        UserError: the checkpoint is damaged or belongs to another tokenizer, or a format cannot
            hold the model.
    """
    source = open_model(checkpoint)
    paths: list[Path] = []
    for name in types:
        path = folder / f"{name}.slm"
        moments = {}
        if name == "q4" and text:
            ids, _ = text.first_windows(windows, source.config.context)
            moments = input_moments(source.config, source.tensor, ids)
        how = storage(name, group_sizes)
        weight_file.write(path, source.config, source.vocabulary, source.tensor, how, moments)
        paths.append(path)
    for name in formats:
        paths += export_model(source, name, folder / name)
    return paths
