"""The tokenizer of a Hugging Face folder: tokenizer.model, or tokenizer.json if that is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from storyllamas.errors import UserError
from storyllamas.interop.sentencepiece import from_sentencepiece
from storyllamas.tokenizer import tokenizer_json
from storyllamas.vocabulary import PieceType, Vocabulary


def read(folder: Path, config: Mapping[str, Any], vocab_size: int) -> Vocabulary:
    """Read the tokenizer of a folder.

    Args:
        folder: the folder.
        config: its config.json.
        vocab_size: rows of the embedding; rows without a piece get a piece without text.

    Raises:
        UserError: there is no tokenizer, or one that cannot be represented.
    """
    path = folder / "tokenizer.model"
    if path.is_file():
        return from_sentencepiece(str(path), path.read_bytes())
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{folder} has neither tokenizer.model nor tokenizer.json: only models with a "
            "SentencePiece or BPE tokenizer can be imported"
        )
    data = tokenizer_json.load(path)
    vocabulary = padded(tokenizer_json.from_json(str(path), data), vocab_size)
    settings = _optional(folder / "special_tokens_map.json") | _optional(
        folder / "tokenizer_config.json"
    )
    ids: dict[str, Any] = _special_ids(vocabulary, settings, config)
    first = _first_special(data.get("post_processor"))
    adds_bos = bool(settings.get("add_bos_token", False)) if first is None else first == ids["bos"]
    return replace(
        vocabulary,
        bos_id=ids["bos"],
        eos_id=ids["eos"],
        pad_id=ids["pad"],
        adds_bos=adds_bos and ids["bos"] >= 0,
    )


def padded(vocabulary: Vocabulary, size: int) -> Vocabulary:
    """Return a vocabulary of at least `size` pieces; those that are added have no text."""
    count = len(vocabulary.pieces)
    holes = range(count, size)
    return replace(
        vocabulary,
        pieces=vocabulary.pieces + [tokenizer_json.hole_piece(index) for index in holes],
        scores=np.concatenate([vocabulary.scores, np.zeros(len(holes), np.float32)]),
        types=np.concatenate([vocabulary.types, np.full(len(holes), PieceType.CONTROL, np.uint8)]),
    )


def _optional(path: Path) -> dict[str, Any]:
    return tokenizer_json.load(path) if path.is_file() else {}


def _special_ids(
    vocabulary: Vocabulary, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, int]:
    """Return the ids of BOS, EOS and padding from the tokenizer's settings, else config.json."""
    added = {vocabulary.pieces[index]: int(index) for index in vocabulary.added[:, 0]}
    found = {}
    for role in ("bos", "eos", "pad"):
        token = settings.get(f"{role}_token")
        text = token.get("content") if isinstance(token, Mapping) else token
        index = config.get(f"{role}_token_id")
        index = index[0] if isinstance(index, list) and index else index
        if isinstance(text, str) and text.encode() in added:
            index = added[text.encode()]
        is_id = isinstance(index, int) and 0 <= index < len(vocabulary.pieces)
        found[role] = index if isinstance(index, int) and is_id else -1
    return found


def _templates(processor: Any) -> Iterator[Mapping[str, Any]]:
    """Find every template in a post-processor."""
    if isinstance(processor, Mapping):
        if processor.get("type") == "TemplateProcessing":
            yield processor
        for each in processor.get("processors") or []:
            yield from _templates(each)


def _first_special(processor: Any) -> int | None:
    """Return the id that a post-processor adds in front, -1 for none; None: it has no template."""
    for template in _templates(processor):
        first: Mapping[str, Any] = next(iter(template.get("single") or []), {})
        name = first.get("SpecialToken", {}).get("id")
        ids = template.get("special_tokens", {}).get(name, {}).get("ids") or [-1]
        return int(ids[0])
    return None
