r"""Measure bits per byte of held-out stories by weight type and group size.

Each row is a weight file that the C engine scores, so that the rounding of activations counts too.
Each q4 row appears twice: rounded from the weights alone, and calibrated on a text.

    python -m bench.quality --model models/2m --stories data/corpus/valid.txt \
        --text data/corpus/train.txt --count 200
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from storyllamas import evaluation, params
from storyllamas.corpus import files
from storyllamas.engine.engine import Engine
from storyllamas.engine.tokenizer import FastTokenizer
from storyllamas.errors import exit_on_user_error
from storyllamas.interop.model import InteropModel, open_model
from storyllamas.slm import calibration, weight_file
from storyllamas.slm.encoding import F32, Encoding, Storage, WeightType
from storyllamas.slm.quantize import Float32

Q8_GROUPS = (32, 64, 128, 256)
Q4_GROUPS = (16, 32, 64)


def storages() -> Iterator[Storage]:
    """Return the storages to compare, float32 first."""
    yield F32
    for size in Q8_GROUPS:
        encoding = Encoding(WeightType.Q8, size)
        yield Storage(encoding, encoding)
    for size in Q4_GROUPS:
        encoding = Encoding(WeightType.Q4, size)
        for embedding in (Encoding(WeightType.Q8, 64), encoding):
            yield Storage(encoding, embedding)


def calibration_windows(source: InteropModel, text: Path, count: int) -> npt.NDArray[np.int64]:
    """Return calibration windows: the first [count, context] ids of stories between BOS and EOS."""
    tokenizer, context = FastTokenizer.of(source.vocabulary), source.config.context
    ids: list[int] = []
    for story in files.read(text):
        ids += [source.vocabulary.bos_id, *tokenizer.encode(story), source.vocabulary.eos_id]
        if len(ids) >= count * context:
            break
    return np.array(ids[: len(ids) // context * context][: count * context]).reshape(-1, context)


def rows(
    source: InteropModel, stories: Sequence[str], windows: npt.NDArray[np.int64], folder: Path
) -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| layers | embedding | calibrated | bits a weight | bits per byte | over float32 |"
    yield "|---|---|---|---|---|---|"
    calibrated = dict(calibration.input_moments(source.config, source.tensor, windows))
    float32 = 0.0
    for storage in storages():
        variants: tuple[Mapping[str, Float32], ...] = ({},)
        if storage.layers.type == WeightType.Q4:
            variants = ({}, calibrated)
        for moments in variants:
            path = folder / "model.slm"
            config, vocabulary = source.config, source.vocabulary
            weight_file.write(path, config, vocabulary, source.tensor, storage, moments.items())
            score = evaluation.score(Engine(path), stories).bits_per_byte
            float32 = float32 or score
            bits = 8 * weight_file.read(path).tensors_bytes / source.config.parameters
            names = " | ".join([*map(_name, storage), "yes" if moments else "no"])
            yield f"| {names} | {bits:.2f} | {score:.5f} | {100 * (score / float32 - 1):+.2f} % |"


def _name(encoding: Encoding) -> str:
    name = encoding.type.label
    return f"{name}, {encoding.group_size}" if encoding.group_size else name


@exit_on_user_error
def main(arguments: Iterable[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--model", type=Path, help="checkpoint or weight file in float32")
    parser.add_argument(
        "--stories", type=Path, default=Path("data/corpus/valid.txt"), help="stories to score"
    )
    parser.add_argument(
        "--text", type=Path, default=Path("data/corpus/train.txt"), help="calibration text"
    )
    parser.add_argument(
        "--windows", type=int, default=32, help="calibration windows, the first of the text"
    )
    parser.add_argument(
        "--count", type=int, default=200, help="stories to score, the first of the file"
    )
    given = parser.parse_args(None if arguments is None else list(arguments))
    source = open_model(given.model or Path("models") / params.load().model)
    stories = list(islice(files.read(given.stories), given.count))
    windows = calibration_windows(source, given.text, given.windows)
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(source, stories, windows, Path(folder)):
            print(row, flush=True)


if __name__ == "__main__":
    main()
