"""Files of llama2.c, written and read as its own programs do, without this project's formats."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch

from storyllamas.config import ModelConfig
from storyllamas.interop import llama2c_training
from storyllamas.interop.model import InteropModel, external_name, parts

MAGIC = 0x616B3432


def floats(*arrays: np.ndarray) -> bytes:
    return b"".join(array.astype("<f4").tobytes() for array in arrays)


def int8(array: np.ndarray, group_size: int) -> bytes:
    groups = array.reshape(-1, group_size)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    return np.round(groups / scales[:, None]).astype(np.int8).tobytes() + floats(scales)


def checkpoint(source: InteropModel, version: int, group_size: int = 8) -> bytes:
    """Return a checkpoint's bytes; the variables have llama2.c's names."""
    c = source.config

    def each(kind: str) -> list[np.ndarray]:
        return [source.part(f"layers.{layer}.{kind}.weight") for layer in range(c.layers)]

    attention_norm, ffn_norm = each("attention_norm"), each("feed_forward_norm")
    wq, wk, wv, wo = (each(f"attention.{kind}") for kind in ("query", "key", "value", "output"))
    w1, w2, w3 = (each(f"feed_forward.{kind}") for kind in ("gate", "down", "up"))
    tok_embeddings, norm = source.part("embedding.weight"), source.part("norm.weight")
    output = [] if c.tied else [source.part("classifier.weight")]
    numbers = [c.dim, c.hidden, c.layers, c.heads, c.kv_heads, c.vocab_size, c.context]
    if version == 0:
        numbers[5] *= 1 if c.tied else -1
        tables = np.full((2, c.context, c.head_dim // 2), np.nan)
        first = [tok_embeddings, *attention_norm, *wq, *wk, *wv, *wo, *ffn_norm, *w1, *w2, *w3]
        return struct.pack("<7i", *numbers) + floats(*first, norm, tables, *output)
    start = struct.pack("<Ii7iB", MAGIC, version, *numbers, c.tied)
    norms, matrices = [*attention_norm, *ffn_norm, norm], [tok_embeddings, *wq, *wk, *wv, *wo]
    matrices += [*w1, *w2, *w3, *output]
    if version == 1:
        return start.ljust(256, b"\0") + floats(*norms, *matrices)
    start = (start + struct.pack("<i", group_size)).ljust(256, b"\0")
    return start + floats(*norms) + b"".join(int8(matrix, group_size) for matrix in matrices)


def save_training_checkpoint(path: Path, source: InteropModel) -> None:
    """Save ckpt.pt as train.py does, of a compiled model."""
    c = source.config
    names = {external_name(name, llama2c_training.PARTS, "layers"): name for name in parts(c)}
    state = {f"_orig_mod.{k}": torch.tensor(source.part(v).copy()) for k, v in names.items()}
    if c.tied:
        state["_orig_mod.output.weight"] = state["_orig_mod.tok_embeddings.weight"]
    arguments = {
        "dim": c.dim, "n_layers": c.layers, "n_heads": c.heads, "n_kv_heads": c.kv_heads,
        "vocab_size": c.vocab_size, "multiple_of": 32, "max_seq_len": c.context, "dropout": 0.0,
    }  # fmt: skip
    torch.save({"model": state, "model_args": arguments, "iter_num": 7}, path)


def read_arrays(path: Path) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Read the shape and every array of a checkpoint, those of 8 bits as float32.

    The names are those of `parts`.
    """
    data, position, group_size = path.read_bytes(), 28, 0
    version = struct.unpack_from("<Ii", data)[1] if data[:4] == b"24ka" else 0
    numbers = struct.unpack_from("<7i", data, 8 if version else 0)
    tied = numbers[5] > 0
    if version:
        tied, group_size = struct.unpack_from("<Bi", data, 36)
        position = 256
    dim, hidden, layers, heads, kv_heads, vocab_size, context = map(abs, numbers)
    width = dim // heads
    config = ModelConfig(
        dim, layers, heads, kv_heads, width, hidden, context, vocab_size, tied=bool(tied)
    )
    shapes = {
        "attention_norm": (dim,), "attention.query": (dim, dim),
        "attention.key": (kv_heads * width, dim), "attention.value": (kv_heads * width, dim),
        "attention.output": (dim, dim), "feed_forward_norm": (dim,),
        "feed_forward.gate": (hidden, dim), "feed_forward.down": (dim, hidden),
        "feed_forward.up": (hidden, dim), "embedding": (vocab_size, dim), "norm": (dim,),
        "classifier": (vocab_size, dim), "rotary": (context, width),
    }  # fmt: skip
    arrays = {}
    for name, kind in _order(config, version):
        shape = shapes[kind]
        count = int(np.prod(shape))
        if version == 2 and len(shape) == 2:
            integers = np.frombuffer(data, np.int8, count, position).reshape(-1, group_size)
            scales = np.frombuffer(data, "<f4", len(integers), position + count)
            arrays[name] = (integers * scales[:, None]).astype(np.float32).reshape(shape)
            position += count + 4 * len(scales)
        else:
            arrays[name] = np.frombuffer(data, "<f4", count, position).reshape(shape)
            position += 4 * count
    assert position == len(data)
    arrays.pop("rotary.weight", None)
    return config, arrays


def _order(config: ModelConfig, version: int) -> Iterator[tuple[str, str]]:
    """Yield the name and the kind of each array in the order of the file."""
    attention = [f"attention.{kind}" for kind in ("query", "key", "value", "output")]
    feed_forward = [f"feed_forward.{kind}" for kind in ("gate", "down", "up")]
    if version == 0:
        kinds = ["embedding", "attention_norm", *attention, "feed_forward_norm", *feed_forward]
        kinds += ["norm", "rotary"]
    else:
        kinds = ["attention_norm", "feed_forward_norm", "norm", "embedding"]
        kinds += [*attention, *feed_forward]
    for kind in [*kinds, *([] if config.tied else ["classifier"])]:
        if kind.startswith(("attention", "feed_forward")):
            yield from ((f"layers.{layer}.{kind}.weight", kind) for layer in range(config.layers))
        else:
            yield f"{kind}.weight", kind


def write_tokenizer(path: Path, tokenizer: Any) -> None:
    """Write tokenizer.bin as tokenizer.py does of a SentencePieceProcessor."""
    records = []
    for index in range(tokenizer.vocab_size()):
        text = tokenizer.id_to_piece(index)
        text = {tokenizer.bos_id(): "\n<s>\n", tokenizer.eos_id(): "\n</s>\n"}.get(index, text)
        piece = text.replace("▁", " ").encode()
        records.append(struct.pack("<fI", tokenizer.get_score(index), len(piece)) + piece)
    longest = max(len(record) - 8 for record in records)
    path.write_bytes(struct.pack("<I", longest) + b"".join(records))


def read_tokenizer(path: Path) -> Any:
    """Return a SentencePieceProcessor with the pieces and scores of a tokenizer.bin."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.remove_extra_whitespaces = False
    data, position, kinds = path.read_bytes(), 4, proto.SentencePiece
    while position < len(data):
        score, length = struct.unpack_from("<fI", data, position)
        text = data[position + 8 : position + 8 + length].decode()
        position += 8 + length
        index = len(proto.pieces)
        is_byte = text.startswith("<0x") and len(text) == 6
        kind = kinds.BYTE if is_byte else kinds.NORMAL
        kind = {0: kinds.UNKNOWN, 1: kinds.CONTROL, 2: kinds.CONTROL}.get(index, kind)
        proto.pieces.add(piece=text.strip("\n").replace(" ", "▁"), score=score, type=kind)
        proto.trainer_spec.byte_fallback |= is_byte
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
