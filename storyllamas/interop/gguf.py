"""GGUF: the format of llama.cpp, Ollama and LM Studio, written and read with the `gguf` package.

Architecture `llama` with a SentencePiece vocabulary. Rotary positions turn neighbouring pairs, as
here. Norms are float32 always. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from storyllamas.errors import UserError
from storyllamas.interop.model import (
    Part,
    Source,
    check_tensors,
    foreign_name,
    make_config,
    parts,
    stack,
)
from storyllamas.interop.sentencepiece import check, package
from storyllamas.slm.quantize import Float32
from storyllamas.vocabulary import PieceType, Vocabulary

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")

PARTS = {
    "embedding.weight": "token_embd.weight",
    "attention_norm.weight": "attn_norm.weight",
    "attention.query.weight": "attn_q.weight",
    "attention.key.weight": "attn_k.weight",
    "attention.value.weight": "attn_v.weight",
    "attention.output.weight": "attn_output.weight",
    "feed_forward_norm.weight": "ffn_norm.weight",
    "feed_forward.gate.weight": "ffn_gate.weight",
    "feed_forward.up.weight": "ffn_up.weight",
    "feed_forward.down.weight": "ffn_down.weight",
    "norm.weight": "output_norm.weight",
    "classifier.weight": "output.weight",
}

KEYS = {
    "dim": "llama.embedding_length",
    "layers": "llama.block_count",
    "heads": "llama.attention.head_count",
    "kv_heads": "llama.attention.head_count_kv",
    "head_dim": "llama.attention.key_length",
    "hidden": "llama.feed_forward_length",
    "context": "llama.context_length",
    "vocab_size": "llama.vocab_size",
    "rope_theta": "llama.rope.freq_base",
    "norm_eps": "llama.attention.layer_norm_rms_epsilon",
}

WIDTHS = ("llama.attention.value_length", "llama.rope.dimension_count")
"""What must be the width of a head."""

IDS = {
    "unk_id": "tokenizer.ggml.unknown_token_id",
    "bos_id": "tokenizer.ggml.bos_token_id",
    "eos_id": "tokenizer.ggml.eos_token_id",
    "pad_id": "tokenizer.ggml.padding_token_id",
}

MODELFILE = """\
# ollama create storyllama -f Modelfile && ollama run storyllama "Once upon a time"
FROM ./model.gguf
TEMPLATE \"\"\"{{{{ .Prompt }}}}\"\"\"
PARAMETER num_ctx {context}
PARAMETER temperature 0.8
PARAMETER top_p 0.9
PARAMETER top_k 0
PARAMETER repeat_penalty 1
"""


def write(source: Source, folder: Path, type_name: str) -> None:
    """Write model.gguf, and a Modelfile for Ollama, into an existing folder.

    A matrix whose columns do not fill blocks of 32 is kept in f16 where the type is q8_0 or q4_0,
    as llama.cpp does.

    Args:
        source: the model.
        folder: where the files go.
        type_name: one of `TYPES`, for the matrices.

    Raises:
        UserError: a weight is too large for the type.
    """
    gguf = package("gguf", "gguf")
    wanted = gguf.GGMLQuantizationType[type_name.upper()]
    types = {name: _type(gguf, part, wanted) for name, part in parts(source.config).items()}
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    try:
        _add_header(gguf, writer, source)
        prefix = "ALL" if type_name == "f32" else "MOSTLY"
        writer.add_file_type(gguf.LlamaFileType[f"{prefix}_{type_name.upper()}"])
        for name, kind in types.items():
            shape = parts(source.config)[name].shape
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            size = math.prod(shape) // block * block_bytes
            foreign = foreign_name(name, PARTS, "blk")
            writer.add_tensor_info(foreign, shape, np.dtype(np.float32), size, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, kind in types.items():
            writer.write_tensor_data(_quantized(gguf, name, source.part(name), kind))
    finally:
        writer.close()
    (folder / "Modelfile").write_text(MODELFILE.format(context=source.config.context))


def _type(gguf: Any, part: Part, wanted: Any) -> Any:
    """Float32 for norms; f16 for a matrix whose rows do not fill the wanted type's blocks."""
    if len(part.shape) == 1:
        return gguf.GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return gguf.GGMLQuantizationType.F16 if part.shape[-1] % block else wanted


def _quantized(gguf: Any, name: str, part: Float32, kind: Any) -> Any:
    if kind.name not in ("F32", "BF16") and np.abs(part).max() > np.finfo(np.float16).max:
        raise UserError(
            f"tensor {name} has a weight of {np.abs(part).max():g}, more than {kind.name.lower()} "
            "can hold: use f32 or bf16"
        )
    return gguf.quantize(np.ascontiguousarray(part), kind)


def _add_header(gguf: Any, writer: Any, source: Source) -> None:
    config, vocabulary = source.config, source.vocabulary
    writer.add_name(f"StoryLlamas {source.about.get('size', '')}".strip())
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for field, key in KEYS.items():
        value = getattr(config, field)
        if isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    for key in WIDTHS:
        writer.add_uint32(key, config.head_dim)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary.pieces)
    writer.add_token_scores(vocabulary.scores.tolist())
    writer.add_token_types(vocabulary.types.tolist())
    for field, key in IDS.items():
        if getattr(vocabulary, field) >= 0:
            writer.add_uint32(key, getattr(vocabulary, field))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(vocabulary.dummy_prefix)


def read(path: Path) -> Source:
    """Open a GGUF file of architecture llama.

    Raises:
        UserError: it is damaged, cut short, or says something that cannot be represented.
    """
    gguf = package("gguf", "gguf")
    reader = _open(gguf, path)
    where = str(path)
    try:
        values = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError) as error:
        raise UserError(f"a field of {path} is damaged: {error}") from None
    found = {
        tensor.name: tuple(int(size) for size in reversed(tensor.shape))
        for tensor in reader.tensors
    }
    _complete(where, values, found)
    config = make_config(where, KEYS | {"tied": "tied"}, values)
    expected = {
        foreign_name(name, PARTS, "blk"): each.shape for name, each in parts(config).items()
    }
    check_tensors(where, expected, found)
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def part(name: str) -> Float32:
        tensor = tensors[foreign_name(name, PARTS, "blk")]
        try:
            value: Float32 = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            raise UserError(
                f"tensor {tensor.name} in {where} has type {tensor.tensor_type.name}: "
                f"only {', '.join(TYPES)} can be imported"
            ) from None
        return value.astype(np.float32).reshape(parts(config)[name].shape)

    return Source(config, _vocabulary(where, values), stack(config, part))


def _open(gguf: Any, path: Path) -> Any:
    """The package's reader, made to notice where a file ends too early."""

    class Reader(gguf.GGUFReader):  # type: ignore[misc]
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            end = offset + np.dtype(dtype).itemsize * int(count)
            if end > len(self.data):
                raise UserError(
                    f"{path} is cut short or damaged: it has {len(self.data)} bytes and something "
                    f"at byte {offset} goes on to {end}"
                )
            return super()._get(offset, dtype, count, override_order)

    try:
        reader = Reader(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, IndexError, RecursionError) as error:
        raise UserError(f"{path} is not a GGUF file that can be read: {error}") from None
    if reader.byte_order != "I":
        raise UserError(f"{path} is big-endian: only little-endian GGUF can be imported")
    return reader


def _complete(where: str, values: dict[str, Any], found: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse what is not a plain Llama and fill in what GGUF leaves to its readers."""
    architecture = values.get("general.architecture")
    if architecture != "llama":
        raise UserError(f"{where} has architecture {architecture!r}: only llama can be imported")
    known = {*KEYS.values(), *WIDTHS}
    for name, value in values.items():
        if name.startswith("llama.") and name not in known and value not in (0, 0.0, "none"):
            raise UserError(f"{name} in {where} is {value!r}, which StoryLlamas cannot represent")
    if "rope_freqs.weight" in found:
        raise UserError(
            f"{where} scales its rotary positions (rope_freqs.weight): it cannot be represented"
        )
    heads, dim = values.get(KEYS["heads"]), values.get(KEYS["dim"])
    if isinstance(heads, int) and isinstance(dim, int) and heads > 0:
        values.setdefault(KEYS["kv_heads"], heads)
        values.setdefault(KEYS["head_dim"], dim // heads)
    for name in WIDTHS:
        if values.get(name, values.get(KEYS["head_dim"])) != values.get(KEYS["head_dim"]):
            raise UserError(
                f"{name} in {where} is {values[name]} and must be the width of a head, "
                f"{values.get(KEYS['head_dim'])}"
            )
    values["tied"] = "output.weight" not in found
    if "token_embd.weight" in found:
        values.setdefault(KEYS["vocab_size"], found["token_embd.weight"][0])


def _vocabulary(where: str, values: Mapping[str, Any]) -> Vocabulary:
    prefix = "tokenizer.ggml."
    model = values.get(f"{prefix}model")
    if model != "llama":
        raise UserError(
            f"{prefix}model in {where} is {model!r}: only 'llama', SentencePiece BPE, can be "
            "represented"
        )
    for name in ("tokens", "scores", "token_type"):
        if prefix + name not in values:
            raise UserError(f"{where} does not say {prefix}{name}")
    if values.get(f"{prefix}remove_extra_whitespaces") or values.get(
        f"{prefix}precompiled_charsmap"
    ):
        raise UserError(f"the tokenizer in {where} normalizes text, which cannot be represented")
    ids = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
    ids = {field: values.get(IDS[field], default) for field, default in ids.items()}
    try:
        types = np.array(values[f"{prefix}token_type"], np.uint8)
        vocabulary = Vocabulary(
            pieces=[piece.encode() for piece in values[f"{prefix}tokens"]],
            scores=np.array(values[f"{prefix}scores"], np.float32),
            types=types,
            **{field: int(value) for field, value in ids.items()},
            dummy_prefix=bool(values.get(f"{prefix}add_space_prefix", True)),
            byte_fallback=PieceType.BYTE in types,
        )
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UserError(f"the tokenizer in {where} is damaged: {error}") from None
    return check(where, vocabulary)
