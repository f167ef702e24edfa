"""Quantization of imported models: group sizes that suit the widths, and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from storyllamas.config import ModelConfig, tensor_shapes
from storyllamas.corpus import formats, storybook
from storyllamas.engine.tokenizer import FastTokenizer
from storyllamas.errors import UserError
from storyllamas.interop.model import InteropModel
from storyllamas.slm.encoding import Encoding, Storage, WeightType
from storyllamas.slm.tiles import tensor_bytes

WINDOWS, MAX_WINDOW_TOKENS = 32, 512
"""The calibration text: number of windows, and upper limit of their length."""

SMALL_MODEL, SMALL_MODEL_ALLOWANCE = 1 << 20, 0.2
"""Parameters below which 4-bit groups may be smaller, and the share of bytes that they may add."""

_STORYBOOK_SEED = 1


def suited_storage(config: ModelConfig, name: str, group_size: int = 0) -> Storage:
    """Choose the group sizes of a weight type for the widths of a model.

    A row is padded to whole groups, so that a group size that suits other models can double the
    file. The choice is the power of two that takes the fewest bytes. A small model loses most to
    rounding to 4 bits, and its file is small: it gets the smallest groups that add at most a fifth.

    Args:
        config: the model's shape.
        name: the label of the weight type.
        group_size: columns that share a scale; 0: choose.
    """
    kind = WeightType[name.upper()]
    if group_size or not kind.spec.group_size:
        return Storage(Encoding(kind, group_size), Encoding(kind, group_size))
    is_small = config.parameters < SMALL_MODEL and kind.spec.bits < 8
    allowance = SMALL_MODEL_ALLOWANCE if is_small else 0.0
    in_layers: list[tuple[int, ...]] = []
    others: list[tuple[int, ...]] = []
    for tensor, shape in tensor_shapes(config).items():
        if len(shape) == 2:
            (in_layers if tensor.startswith("layers.") else others).append(shape)
    return Storage(_suited(kind, in_layers, allowance), _suited(kind, others, allowance))


def _suited(kind: WeightType, shapes: Sequence[tuple[int, ...]], allowance: float) -> Encoding:
    """Return the encoding of matrices with the fewest bytes, or with smaller groups.

    Args:
        kind: the weight type.
        shapes: the shapes of the matrices.
        allowance: share of the fewest bytes that smaller groups may add; at 0, the largest groups
            of those with the fewest bytes are chosen.
    """
    bytes_of: dict[int, int] = {}
    size = kind.spec.group_size
    while size >= kind.spec.group_multiple:
        bytes_of[size] = sum(tensor_bytes(shape, Encoding(kind, size)) for shape in shapes)
        size //= 2
    fewest = min(bytes_of.values())
    suited = [size for size, count in bytes_of.items() if count <= (1 + allowance) * fewest]
    return Encoding(kind, min(suited) if allowance else max(suited))


def calibration_windows(model: InteropModel, text: Path | None) -> npt.NDArray[np.int64]:
    """Encode the first stories of a text, each between BOS and EOS if the model has them.

    Args:
        model: the model, whose tokenizer encodes the text.
        text: a file of stories; None: the bundled storybook.

    Returns:
        Ids, [windows, tokens].

    Raises:
        UserError: the file cannot be read, or is shorter than a window.
    """
    vocabulary = model.vocabulary
    tokens = min(model.config.context, MAX_WINDOW_TOKENS)
    tokenizer = FastTokenizer.of(vocabulary)
    before = [vocabulary.bos_id] * (vocabulary.bos_id >= 0)
    after = [vocabulary.eos_id] * (vocabulary.eos_id >= 0)
    stories = formats.read(text) if text else storybook.stories(WINDOWS * tokens, _STORYBOOK_SEED)
    ids: list[int] = []
    for story in stories:
        ids += [*before, *tokenizer.encode(story), *after]
        if len(ids) >= WINDOWS * tokens:
            break
    count = min(WINDOWS, len(ids) // tokens)
    if count == 0:
        raise UserError(
            f"{text} has {len(ids)} tokens, fewer than the {tokens} of one window: calibrate with "
            "a longer text"
        )
    return np.array(ids[: count * tokens], np.int64).reshape(count, tokens)
