"""Parts of a model whose weights training leaves as they are."""

from __future__ import annotations

import re
from collections.abc import Iterable

from storyllamas.config import ModelConfig, tensor_shapes
from storyllamas.errors import UserError

ALLOWED = "embedding, norms, attention, feed_forward, layers.N or layers.N-M"
"""The parts: the embedding with the classifier, all RMSNorm weights, the matrices of attention or
feed-forward in all layers, and everything in layer N or in layers N to M."""

_PATTERNS = {
    "embedding": r"(embedding|classifier)\.weight",
    "norms": r"(.*_)?norm\.weight",
    "attention": r"layers\.\d+\.attention\..*",
    "feed_forward": r"layers\.\d+\.feed_forward\..*",
}

_LAYERS = re.compile(r"layers\.(\d{1,4})(?:-(\d{1,4}))?")


def is_part(name: str) -> bool:
    """Return whether a name is one of a part; its layers may be beyond those of the model."""
    return name in _PATTERNS or _LAYERS.fullmatch(name) is not None


def frozen_tensors(parts: Iterable[str], config: ModelConfig) -> set[str]:
    """Return the names of the tensors in some parts.

    Args:
        parts: names that `is_part` accepts.
        config: shape of the model.

    Raises:
        UserError: a layer does not exist, or the parts are the whole model.
    """
    parts = list(parts)
    patterns = [_pattern(part, config.layers) for part in parts]
    names = tensor_shapes(config)
    frozen = {name for name in names if any(re.fullmatch(each, name) for each in patterns)}
    if len(frozen) == len(names):
        raise UserError(
            f"train.freeze is {', '.join(parts)}, which leaves nothing to train: remove a part"
        )
    return frozen


def _pattern(part: str, layers: int) -> str:
    """Return the regular expression of the names of a part's tensors."""
    found = _LAYERS.fullmatch(part)
    if not found:
        return _PATTERNS[part]
    first, last = int(found[1]), int(found[2] or found[1])
    if not first <= last < layers:
        raise UserError(
            f"train.freeze has {part}: use layers from 0 to {layers - 1}, the first before the last"
        )
    return rf"layers\.({'|'.join(map(str, range(first, last + 1)))})\..*"
