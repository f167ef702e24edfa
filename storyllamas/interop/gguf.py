"""GGUF: the format of llama.cpp, Ollama and LM Studio, written and read with the `gguf` package.

The architecture is `llama`, with a SentencePiece tokenizer or one of `gguf_bpe.py`. As in
StoryLlamas, rotary positions rotate pairs of neighbouring channels. Norms are always float32.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from storyllamas.errors import DAMAGED, UserError
from storyllamas.interop import chat_folder, gguf_bpe, rope
from storyllamas.interop.model import (
    InteropModel,
    Part,
    RowReader,
    check_tensors,
    external_name,
    make_config,
    parts,
    stack,
)
from storyllamas.interop.packages import package
from storyllamas.interop.vocabulary_check import check
from storyllamas.slm.quantize import Float32
from storyllamas.vocabulary import PieceType, PreTokenizer, TokenizerKind, Vocabulary

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
"""Keys whose value has to equal the width of a head."""

IDS = {
    "unk_id": "tokenizer.ggml.unknown_token_id",
    "bos_id": "tokenizer.ggml.bos_token_id",
    "eos_id": "tokenizer.ggml.eos_token_id",
    "pad_id": "tokenizer.ggml.padding_token_id",
}

EXTRA_EOS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
"""Keys of tokens that end a turn and a message, at which generation stops as at EOS."""

CHAT_TEMPLATE = "tokenizer.chat_template"

MODELFILE = """\
# ollama create storyllama -f Modelfile && ollama run storyllama "Once upon a time"
FROM ./model.gguf
{template}PARAMETER num_ctx {context}
PARAMETER temperature 0.8
PARAMETER top_p 0.9
PARAMETER top_k 0
PARAMETER repeat_penalty 1
"""

PLAIN = 'TEMPLATE """{{ .Prompt }}"""\n'
"""A template without roles. Ollama takes that of the GGUF file if the Modelfile has none."""


def write(model: InteropModel, folder: Path, type_name: str) -> None:
    """Write model.gguf, and a Modelfile for Ollama, into an existing folder.

    As in llama.cpp, a matrix whose rows are not a multiple of the type's block (32 columns in q8_0
    and q4_0) is written in f16.

    Args:
        model: the model to write.
        folder: the target folder, which exists.
        type_name: type of the matrices: f32, f16, bf16, q8_0 or q4_0.

    Raises:
        UserError: a weight is above the range of the type.
    """
    gguf = package("gguf", "gguf")
    wanted = gguf.GGMLQuantizationType[type_name.upper()]
    types = {name: _type(gguf, part, wanted) for name, part in parts(model.config).items()}
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    try:
        _add_header(gguf, writer, model)
        prefix = "ALL" if type_name == "f32" else "MOSTLY"
        writer.add_file_type(gguf.LlamaFileType[f"{prefix}_{type_name.upper()}"])
        for name, kind in types.items():
            shape = parts(model.config)[name].shape
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            size = math.prod(shape) // block * block_bytes
            theirs = external_name(name, PARTS, "blk")
            writer.add_tensor_info(theirs, shape, np.dtype(np.float32), size, kind)
        divisors = rope.divisors(model.config)
        if divisors is not None:
            writer.add_tensor_info(
                *(rope.DIVISORS, divisors.shape, divisors.dtype, divisors.nbytes),
                gguf.GGMLQuantizationType.F32,
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, kind in types.items():
            writer.write_tensor_data(_quantized(gguf, name, model.part(name), kind))
        if divisors is not None:
            writer.write_tensor_data(divisors)
    finally:
        writer.close()
    template = "" if model.vocabulary.chat_template else PLAIN
    modelfile = MODELFILE.format(context=model.config.context, template=template)
    (folder / "Modelfile").write_text(modelfile)


def _type(gguf: Any, part: Part, wanted: Any) -> Any:
    """Return float32 for norms, f16 for a matrix whose rows are no whole blocks, else `wanted`."""
    if len(part.shape) == 1:
        return gguf.GGMLQuantizationType.F32
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    return gguf.GGMLQuantizationType.F16 if part.shape[-1] % block else wanted


def _quantized(gguf: Any, name: str, part: Float32, kind: Any) -> Any:
    if kind.name not in ("F32", "BF16") and np.abs(part).max() > np.finfo(np.float16).max:
        raise UserError(
            f"tensor {name} has a weight of {np.abs(part).max():g}, above the range of "
            f"{kind.name.lower()}: use f32 or bf16"
        )
    return gguf.quantize(np.ascontiguousarray(part), kind)


def _add_header(gguf: Any, writer: Any, model: InteropModel) -> None:
    config, vocabulary = model.config, model.vocabulary
    writer.add_name(f"StoryLlamas {model.about.get('size', '')}".strip())
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for field, key in KEYS.items():
        value = getattr(config, field)
        if isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    for key in WIDTHS:
        writer.add_uint32(key, config.head_dim)
    rope.add_to_gguf(writer, config)
    _add_pieces(writer, vocabulary)
    for field, key in IDS.items():
        if getattr(vocabulary, field) >= 0:
            writer.add_uint32(key, getattr(vocabulary, field))
    _add_chat(writer, vocabulary)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(vocabulary.dummy_prefix)


def _add_chat(writer: Any, vocabulary: Vocabulary) -> None:
    ids = vocabulary.extra_eos_ids
    if len(ids) > len(EXTRA_EOS):
        raise UserError(
            f"{len(ids) + 1} tokens end a text of this model, and a GGUF file names at most "
            f"{len(EXTRA_EOS) + 1}: export to hf instead"
        )
    for key, index in zip(EXTRA_EOS, ids, strict=False):
        writer.add_uint32(key, index)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)


def _add_pieces(writer: Any, vocabulary: Vocabulary) -> None:
    if vocabulary.kind == TokenizerKind.BYTE_LEVEL:
        gguf_bpe.write(writer, vocabulary)
        return
    if vocabulary.kind == TokenizerKind.BPE:
        raise UserError(
            "llama.cpp has no tokenizer such as this one, whose merges of characters are ranked: "
            "export to hf instead"
        )
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary.pieces)
    writer.add_token_scores(vocabulary.scores.tolist())
    writer.add_token_types(vocabulary.types.tolist())


def read(path: Path) -> InteropModel:
    """Open a GGUF file of architecture llama.

    Raises:
        UserError: the file is damaged or cut short, or has a feature that cannot be represented.
    """
    gguf = package("gguf", "gguf")
    reader = _open(gguf, path)
    where = str(path)
    try:
        values = {name: reader.fields.pop(name).contents() for name in list(reader.fields)}
    except DAMAGED as error:
        raise UserError(f"a field of {path} is damaged: {error}") from None
    found = {
        tensor.name: tuple(int(size) for size in reversed(tensor.shape))
        for tensor in reader.tensors
    }
    _complete(where, values, found)
    config = make_config(where, KEYS | {"tied": "tied"}, values)
    expected = {
        external_name(name, PARTS, "blk"): each.shape for name, each in parts(config).items()
    }
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    divisors = None
    if found.pop(rope.DIVISORS, None) is not None:
        divisors = np.asarray(tensors[rope.DIVISORS].data, np.float32).reshape(-1)
    config = rope.from_gguf(where, config, values, divisors)
    check_tensors(where, expected, found)

    def part(name: str) -> RowReader:
        tensor, shape = tensors[external_name(name, PARTS, "blk")], parts(config)[name].shape

        def read_rows(rows: slice) -> Float32:
            try:
                value: Float32 = gguf.dequantize(tensor.data[rows], tensor.tensor_type)
            except NotImplementedError:
                raise UserError(
                    f"tensor {tensor.name} in {where} has type {tensor.tensor_type.name}, which "
                    "the gguf package cannot convert: use another quantization"
                ) from None
            _release(reader.data)
            return value.astype(np.float32).reshape(-1, *shape[1:])

        return RowReader(shape, read_rows)

    vocabulary = _with_chat(where, values, _vocabulary(where, values))
    return InteropModel(config, vocabulary, stack(config, part))


def _release(data: Any) -> None:
    """Take the pages of a mapped file that were read out of this process's memory."""
    if hasattr(mmap, "MADV_DONTNEED"):
        data.base.madvise(mmap.MADV_DONTNEED)


def _open(gguf: Any, path: Path) -> Any:
    """Open a file with the package's reader, which on its own does not notice a file cut short."""
    array, string = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING

    class Reader(gguf.GGUFReader):  # type: ignore[misc]
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            self._check(offset, offset + np.dtype(dtype).itemsize * int(count))
            return super()._get(offset, dtype, count, override_order)

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            """Read an array of strings in a third of the memory that the package takes."""
            kinds = [array, self._get(orig_offs, np.uint32)[0]] if raw_type == array else []
            if self.byte_order != "I" or kinds != [array, string]:
                return super()._get_field_parts(orig_offs, raw_type)
            count = self._get(orig_offs + 4, np.uint64)
            data, texts, position = np.asarray(self.data), [], orig_offs + 12
            for _ in range(count[0]):
                self._check(position, position + 8)
                start = position + 8
                position = start + int.from_bytes(data[position:start], "little")
                self._check(start, position)
                texts.append(data[start:position])
            first = [kinds[1], count]
            indices = range(len(first), len(first) + len(texts))
            return position - orig_offs, [*first, *texts], list(indices), [array, string]

        def _check(self, start: int, end: int) -> None:
            if end > len(self.data):
                raise UserError(
                    f"{path} is cut short or damaged: it has {len(self.data)} bytes, and a value "
                    f"at byte {start} ends at {end}"
                )

    try:
        reader = Reader(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except DAMAGED as error:
        raise UserError(f"{path} cannot be read as a GGUF file: {error}") from None
    if reader.byte_order != "I":
        raise UserError(f"{path} is big-endian: only little-endian GGUF can be imported")
    return reader


def _complete(where: str, values: dict[str, Any], found: Mapping[str, tuple[int, ...]]) -> None:
    """Reject a model that is not a plain Llama, and add the defaults of GGUF's readers."""
    architecture = values.get("general.architecture")
    if architecture != "llama":
        raise UserError(f"{where} has architecture {architecture!r}: only llama can be imported")
    known = {*KEYS.values(), *WIDTHS, *rope.GGUF_KEYS}
    for name, value in values.items():
        if name.startswith("llama.") and name not in known and value not in (0, 0.0, "none"):
            raise UserError(f"{name} in {where} is {value!r}: StoryLlamas has no such feature")
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
    if model == "gpt2":
        return _with_ids(where, values, gguf_bpe.read(where, values))
    if model != "llama":
        raise UserError(
            f"{prefix}model in {where} is {model!r}: only 'llama', SentencePiece BPE, and 'gpt2', "
            "byte-level BPE, can be imported"
        )
    for name in ("tokens", "scores", "token_type"):
        if prefix + name not in values:
            raise UserError(f"{where} has no {prefix}{name}: it is damaged or has no tokenizer")
    if values.get(f"{prefix}remove_extra_whitespaces") or values.get(
        f"{prefix}precompiled_charsmap"
    ):
        raise UserError(
            f"the tokenizer in {where} normalizes text: only one that does not can be imported"
        )
    defaults = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
    ids: dict[str, Any] = {
        field: values.get(IDS[field], default) for field, default in defaults.items()
    }
    try:
        types = np.array(values[f"{prefix}token_type"], np.uint8)
        vocabulary = Vocabulary(
            pieces=[piece.encode(errors="surrogateescape") for piece in values[f"{prefix}tokens"]],
            scores=np.array(values[f"{prefix}scores"], np.float32),
            types=types,
            unk_id=int(ids["unk_id"]),
            bos_id=int(ids["bos_id"]),
            eos_id=int(ids["eos_id"]),
            pad_id=int(ids["pad_id"]),
            dummy_prefix=bool(values.get(f"{prefix}add_space_prefix", True)),
            byte_fallback=PieceType.BYTE in types,
            adds_bos=bool(values.get(f"{prefix}add_bos_token", True)),
        )
    except DAMAGED as error:
        raise UserError(f"the tokenizer in {where} is damaged: {error}") from None
    return check(where, vocabulary)


def _with_chat(where: str, values: Mapping[str, Any], vocabulary: Vocabulary) -> Vocabulary:
    """Return a tokenizer with the chat template and the extra EOS ids of a file."""
    named = [values.get(key) for key in EXTRA_EOS]
    return replace(
        vocabulary,
        chat_template=chat_folder.check_template(where, values.get(CHAT_TEMPLATE)),
        extra_eos_ids=chat_folder.extra_eos_ids(vocabulary, named),
    )


def _with_ids(where: str, values: Mapping[str, Any], vocabulary: Vocabulary) -> Vocabulary:
    """Return a byte-level tokenizer with the ids of BOS, EOS and padding that a file names."""
    ids: dict[str, Any] = {
        field: values.get(IDS[field], -1) for field in ("bos_id", "eos_id", "pad_id")
    }
    for field, index in ids.items():
        if not (isinstance(index, int) and -1 <= index < len(vocabulary.pieces)):
            raise UserError(
                f"{IDS[field]} in {where} is {index!r}: the tokenizer has no such piece"
            )
    is_llama3 = vocabulary.pre_tokenizer == PreTokenizer.LLAMA3
    adds_bos = bool(values.get("tokenizer.ggml.add_bos_token", is_llama3))
    return replace(vocabulary, **ids, adds_bos=adds_bos and ids["bos_id"] >= 0)
