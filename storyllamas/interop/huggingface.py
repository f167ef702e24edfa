"""Hugging Face: a folder that transformers' `LlamaForCausalLM` and `AutoTokenizer` load.

The files are plain JSON and safetensors, so that transformers is not needed. transformers rotates
each channel of the first half of a head with one of the second half; Meta and StoryLlamas rotate
neighbouring channels. For this reason the rows of query and key matrices are permuted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from storyllamas.atomic import write_json, write_text
from storyllamas.errors import UserError
from storyllamas.interop import chat_folder, model_card, rope, safetensors_file, tokenizer_folder
from storyllamas.interop.model import (
    InteropModel,
    RowReader,
    check_tensors,
    external_name,
    make_config,
    parts,
    stack,
)
from storyllamas.interop.sentencepiece import to_sentencepiece
from storyllamas.interop.vocabulary_check import MERGEABLE
from storyllamas.rounding import shortest_float32
from storyllamas.slm.quantize import Float32
from storyllamas.slm.weight_file import Rows
from storyllamas.tokenizer import tokenizer_json as tj
from storyllamas.vocabulary import SPACE, Added, PieceType, TokenizerKind, Vocabulary

PARTS = {
    "embedding.weight": "model.embed_tokens.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "attention.query.weight": "self_attn.q_proj.weight",
    "attention.key.weight": "self_attn.k_proj.weight",
    "attention.value.weight": "self_attn.v_proj.weight",
    "attention.output.weight": "self_attn.o_proj.weight",
    "feed_forward_norm.weight": "post_attention_layernorm.weight",
    "feed_forward.gate.weight": "mlp.gate_proj.weight",
    "feed_forward.up.weight": "mlp.up_proj.weight",
    "feed_forward.down.weight": "mlp.down_proj.weight",
    "norm.weight": "model.norm.weight",
    "classifier.weight": "lm_head.weight",
}
LAYERS = "model.layers"
EMBEDDING, CLASSIFIER = PARTS["embedding.weight"], PARTS["classifier.weight"]

KEYS = {
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "hidden": "intermediate_size",
    "context": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
}

DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False}
"""The values that transformers uses if config.json has none."""

REQUIRED = {
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
}
"""The only value that each of these keys of config.json may have, if it is there."""

DERIVED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""Tables in old checkpoints that are ignored, since they follow from rope_theta."""

ROTATED = ("attention.query.weight", "attention.key.weight")
"""The ends of the names of parts whose rows transformers stores in another order."""


def to_halves(matrix: Float32, head_dim: int) -> Float32:
    """Reorder the rows of each head so that rotary pairs are half a head apart.

    Args:
        matrix: [heads * head_dim, dim], the two rows of a pair next to each other.
        head_dim: rows per head.

    Returns:
        A matrix of the same shape.
    """
    pairs = matrix.reshape(-1, head_dim // 2, 2, matrix.shape[1])
    halves: Float32 = pairs.swapaxes(1, 2).reshape(matrix.shape)
    return halves


def to_neighbours(matrix: Float32, head_dim: int) -> Float32:
    """Reorder the rows of each head so that rotary pairs are neighbours; inverts `to_halves`."""
    halves = matrix.reshape(-1, 2, head_dim // 2, matrix.shape[1])
    pairs: Float32 = halves.swapaxes(1, 2).reshape(matrix.shape)
    return pairs


# ---- Export --------------------------------------------------------------------------------------


def write(model: InteropModel, folder: Path) -> None:
    """Write model, tokenizer and model card into an existing folder.

    Args:
        model: the model to write.
        folder: the target folder, which exists.

    Raises:
        UserError: transformers cannot represent the shape or the tokenizer.
    """
    config, vocabulary = model.config, model.vocabulary
    if config.dim % config.heads:
        raise UserError(
            f"transformers cannot represent this model: heads is {config.heads} and must divide "
            f"dim ({config.dim})"
        )
    write_json(folder / "config.json", _config(model))
    write_json(folder / "generation_config.json", _generation(model))
    write_json(folder / "tokenizer.json", tokenizer_json(vocabulary))
    if vocabulary.kind == TokenizerKind.SENTENCEPIECE:
        (folder / "tokenizer.model").write_bytes(to_sentencepiece(vocabulary))
    write_json(folder / "tokenizer_config.json", _tokenizer_config(vocabulary, config.context))
    write_text(folder / "README.md", model_card.text(model))
    names = {external_name(name, PARTS, LAYERS): name for name in parts(config)}
    shapes = {theirs: parts(config)[ours].shape for theirs, ours in names.items()}

    def read(name: str) -> Float32:
        part = model.part(names[name])
        return to_halves(part, config.head_dim) if names[name].endswith(ROTATED) else part

    with (folder / "model.safetensors").open("wb") as file:
        for block in safetensors_file.blocks(shapes, read):
            file.write(block)


def _config(model: InteropModel) -> dict[str, Any]:
    config, vocabulary = model.config, model.vocabulary
    shape = {theirs: getattr(config, ours) for ours, theirs in KEYS.items()}
    theta = shortest_float32(config.rope_theta)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **shape,
        "rms_norm_eps": shortest_float32(config.norm_eps),
        "rope_theta": theta,
        "rope_parameters": {**rope.to_huggingface(config), "rope_theta": theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        **_special_ids(vocabulary),
        "torch_dtype": "float32",
    }


def _generation(model: InteropModel) -> dict[str, Any]:
    return {
        **_special_ids(model.vocabulary),
        "do_sample": True,
        "temperature": 0.8,
        "top_p": 0.9,
        "top_k": 0,
        "max_length": model.config.context,
    }


def _special_ids(vocabulary: Vocabulary) -> dict[str, int | list[int]]:
    names = ("bos", "eos", "pad")
    ids = {f"{name}_token_id": getattr(vocabulary, f"{name}_id") for name in names}
    found: dict[str, int | list[int]] = {name: id_ for name, id_ in ids.items() if id_ >= 0}
    if vocabulary.extra_eos_ids:
        first = [vocabulary.eos_id] * (vocabulary.eos_id >= 0)
        found["eos_token_id"] = [*first, *vocabulary.extra_eos_ids]
    return found


def _special_tokens(vocabulary: Vocabulary) -> dict[str, str]:
    names = ("unk", "bos", "eos", "pad")
    ids = {f"{name}_token": getattr(vocabulary, f"{name}_id") for name in names}
    return {name: vocabulary.pieces[index].decode() for name, index in ids.items() if index >= 0}


def _tokenizer_config(vocabulary: Vocabulary, context: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **_special_tokens(vocabulary),
        **({"chat_template": vocabulary.chat_template} if vocabulary.chat_template else {}),
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "split_special_tokens": _is_special_text_plain(vocabulary),
    }


def _is_special_text_plain(vocabulary: Vocabulary) -> bool:
    """Return whether transformers should encode the name of a special piece as plain text.

    It should if no prompt needs such a name: SentencePiece never reads names, and the programs that
    run a model put BOS in front themselves.
    """
    if vocabulary.kind == TokenizerKind.SENTENCEPIECE:
        return True
    special = {int(index) for index, flags in vocabulary.added if flags & Added.SPECIAL}
    return special <= {vocabulary.bos_id, vocabulary.eos_id, vocabulary.unk_id, vocabulary.pad_id}


def tokenizer_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the content of tokenizer.json, which the `tokenizers` package reads.

    Raises:
        UserError: the tokenizer is SentencePiece's and has user-defined or unused pieces.
    """
    if vocabulary.kind != TokenizerKind.SENTENCEPIECE:
        return ranked_json(vocabulary)
    if set(vocabulary.types) & {PieceType.USER_DEFINED, PieceType.UNUSED}:
        raise UserError(
            "the tokenizer has user-defined or unused pieces, which a Hugging Face tokenizer "
            "cannot represent: export to gguf instead"
        )
    pieces = [piece.decode() for piece in vocabulary.pieces]
    replace: Any = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    spaces: Any = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    normalizers = [{"type": "Prepend", "prepend": SPACE}] * vocabulary.dummy_prefix + [replace]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * vocabulary.dummy_prefix
    decoders = [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    special = (PieceType.UNKNOWN, PieceType.CONTROL)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added_token(index, piece)
            for index, piece in enumerate(pieces)
            if vocabulary.types[index] in special
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": _begin_with(pieces, vocabulary.bos_id),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": pieces[vocabulary.unk_id] if vocabulary.unk_id >= 0 else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": vocabulary.byte_fallback,
            "ignore_merges": False,
            "vocab": {piece: index for index, piece in enumerate(pieces)},
            "merges": merges(vocabulary),
        },
    }


def ranked_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the content of tokenizer.json of a tokenizer whose merges are ranked."""
    found = tj.to_json(vocabulary)
    texts = {
        index: tj.piece_text(vocabulary, index) for index in (vocabulary.bos_id,) if index >= 0
    }
    bos_id = vocabulary.bos_id if vocabulary.adds_bos else -1
    begin = _begin_with(texts, bos_id)
    return {"version": "1.0", "truncation": None, "padding": None, **found, "post_processor": begin}


def _added_token(index: int, piece: str) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": piece, **plain, "special": True}


def _begin_with(pieces: Sequence[str] | Mapping[int, str], bos_id: int) -> dict[str, Any] | None:
    """Return a post-processor that puts BOS before a text; None if there is no BOS."""
    if bos_id < 0:
        return None
    piece = pieces[bos_id]
    bos = {"SpecialToken": {"id": piece, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    second_bos = {"SpecialToken": {"id": piece, "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, second_bos, second],
        "special_tokens": {piece: {"id": piece, "ids": [bos_id], "tokens": [piece]}},
    }


def merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Return SentencePiece's merges as pairs of pieces, highest priority first.

    SentencePiece ranks the merged piece, wherever it is split; a list of pairs has to rank the
    splits of a piece, too. Two splits compete if they overlap in the text, as s1 s2 and s2 s3 do
    in s1 s2 s3 with s1 s2 = s2 s3. SentencePiece then merges the leftmost pair, s1 s2: the split
    whose right half is a prefix of the piece.
    """
    scores = {
        piece.decode(): (-vocabulary.scores[index], index)
        for index, piece in enumerate(vocabulary.pieces)
        if vocabulary.types[index] in MERGEABLE
    }
    pairs = []
    for piece in sorted(scores, key=scores.__getitem__):
        splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        known = [split for split in splits if split[0] in scores and split[1] in scores]
        pairs += sorted(known, key=lambda split: not piece.startswith(split[1]))
    return pairs


# ---- Import --------------------------------------------------------------------------------------


def read(folder: Path) -> InteropModel:
    """Open a folder with config.json, safetensors files, and tokenizer.model or tokenizer.json.

    Raises:
        UserError: a file is missing or damaged, or the model is not a plain Llama.
    """
    values = _read_config(folder / "config.json")
    where = str(folder / "config.json")
    config = make_config(where, KEYS, values)
    config = rope.from_huggingface(where, config, values["rope"])
    tensors = _open_tensors(folder)
    expected = {
        external_name(name, PARTS, LAYERS): each.shape for name, each in parts(config).items()
    }
    found = {name: shape for name, shape in tensors.shapes.items() if not DERIVED.fullmatch(name)}
    aliases = {}
    if config.tied and EMBEDDING not in found and CLASSIFIER in found:
        # Tied weights are one tensor, which is stored under either name.
        aliases[EMBEDDING] = CLASSIFIER
        found[EMBEDDING] = found.pop(CLASSIFIER)
    if config.tied and (classifier := found.pop(CLASSIFIER, None)):
        is_equal = classifier == found.get(EMBEDDING) and np.array_equal(
            tensors.read(CLASSIFIER), tensors.read(EMBEDDING)
        )
        if not is_equal:
            raise UserError(
                f"config.json in {folder} ties lm_head.weight to the embedding, but the two "
                "differ: set tie_word_embeddings to false"
            )
    check_tensors(str(folder), expected, found)

    def part(name: str) -> Rows:
        theirs = external_name(name, PARTS, LAYERS)
        stored = aliases.get(theirs, theirs)
        if name.endswith(ROTATED):
            return to_neighbours(tensors.read(stored), config.head_dim)
        return RowReader(parts(config)[name].shape, partial(tensors.read, stored))

    vocabulary = tokenizer_folder.read(folder, values, config.vocab_size)
    vocabulary = chat_folder.read(folder, values, vocabulary)
    return InteropModel(config, vocabulary, stack(config, part))


def _read_config(path: Path) -> dict[str, Any]:
    """Read config.json and add the defaults of transformers."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give a folder that transformers loads") from None
    except RecursionError:
        raise UserError(f"{path} cannot be read: its values are nested too deeply") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object")
    values = DEFAULTS | {name: value for name, value in values.items() if value is not None}
    scaling = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise UserError(f"rope_scaling in {path} is {scaling!r} and must be a JSON object")
    values["rope"] = scaling
    values["rope_theta"] = scaling.get("rope_theta", values["rope_theta"])
    for name, value in REQUIRED.items():
        if values.get(name, value) != value:
            raise UserError(
                f"{name} in {path} is {values[name]!r}: StoryLlamas can only represent {value!r}"
            )
    heads, dim = values.get(KEYS["heads"]), values.get(KEYS["dim"])
    if isinstance(heads, int) and isinstance(dim, int) and heads > 0:
        values.setdefault(KEYS["kv_heads"], heads)
        values.setdefault(KEYS["head_dim"], dim // heads)
    return values


def _open_tensors(folder: Path) -> safetensors_file.TensorFiles:
    paths = sorted(folder.glob("model-*-of-*.safetensors"))
    if (single := folder / "model.safetensors").exists():
        paths = [single]
    elif (index := folder / "model.safetensors.index.json").exists():
        paths = _shards(index)
    if not paths:
        raise UserError(f"{folder} has no model.safetensors: save the model as safetensors")
    return safetensors_file.TensorFiles(paths)


def _shards(index: Path) -> list[Path]:
    """Return the files that an index of shards names."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [index.with_name(name) for name in sorted(names)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{index} is damaged: it has no weight_map of file names") from None
