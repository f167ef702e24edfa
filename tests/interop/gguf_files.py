"""GGUF files that the gguf package and llama.cpp write, without this project's exporter."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from random_models import make_source
from runtimes import quiet_llama_cpp
from tokenizers import Tokenizer

from storyllamas.config import ModelConfig
from storyllamas.interop.model import parts

NAMES = {
    "embedding": "token_embd", "norm": "output_norm", "classifier": "output",
    "attention_norm": "attn_norm", "attention.query": "attn_q", "attention.key": "attn_k",
    "attention.value": "attn_v", "attention.output": "attn_output",
    "feed_forward_norm": "ffn_norm", "feed_forward.gate": "ffn_gate",
    "feed_forward.up": "ffn_up", "feed_forward.down": "ffn_down",
}  # fmt: skip


def tensor_name(name: str) -> str:
    """Return llama.cpp's name of a part, such as layers.0.attention.query.weight."""
    if not name.startswith("layers."):
        return f"{NAMES[name.removesuffix('.weight')]}.weight"
    _, layer, kind = name.removesuffix(".weight").split(".", 2)
    return f"blk.{layer}.{NAMES[kind]}.weight"


def write(path: Path, config: ModelConfig, tokenizer: Any, pre: str = "") -> None:
    """Write a float32 model with random weights.

    Args:
        path: the file.
        config: the model's shape.
        tokenizer: a SentencePieceProcessor, or a byte-level Tokenizer.
        pre: llama.cpp's name of the pre-tokenizer of the latter.
    """
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if isinstance(tokenizer, sentencepiece.SentencePieceProcessor):
        _add_sentencepiece(writer, tokenizer)
    else:
        _add_byte_level(writer, tokenizer, pre)
    if config.rope_scaling == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_factor)
    if config.rope_scaling == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_divisors(config))
    source = make_source(config)
    for name in parts(config):
        writer.add_tensor(tensor_name(name), np.ascontiguousarray(source.part(name)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rope_divisors(config: ModelConfig) -> np.ndarray:
    """Return the divisors of Llama 3's frequencies as llama.cpp's converter does."""
    factor, low, high = (
        config.rope_factor, config.rope_low_freq_factor, config.rope_high_freq_factor,
    )  # fmt: skip
    divisors = []
    for channel in range(0, config.head_dim, 2):
        length = 2 * math.pi * config.rope_theta ** (channel / config.head_dim)
        smooth = (config.rope_original_context / length - low) / (high - low)
        if length < config.rope_original_context / high:
            divisors.append(1.0)
        elif length > config.rope_original_context / low:
            divisors.append(factor)
        else:
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


def _add_sentencepiece(writer: Any, tokenizer: Any) -> None:
    import gguf

    size = tokenizer.vocab_size()
    kinds = gguf.TokenType

    def kind(index: int) -> int:
        if tokenizer.is_byte(index):
            return kinds.BYTE
        if tokenizer.is_control(index):
            return kinds.CONTROL
        return kinds.UNKNOWN if tokenizer.is_unknown(index) else kinds.NORMAL

    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([tokenizer.id_to_piece(index) for index in range(size)])
    writer.add_token_scores([tokenizer.get_score(index) for index in range(size)])
    writer.add_token_types([int(kind(index)) for index in range(size)])
    writer.add_unk_token_id(tokenizer.unk_id())
    writer.add_bos_token_id(tokenizer.bos_id())
    writer.add_eos_token_id(tokenizer.eos_id())
    writer.add_add_space_prefix(True)


def _add_byte_level(writer: Any, tokenizer: Tokenizer, pre: str) -> None:
    import gguf

    added = tokenizer.get_added_tokens_decoder()
    kinds = gguf.TokenType

    def kind(index: int) -> int:
        if index not in added:
            return kinds.NORMAL
        return kinds.CONTROL if added[index].special else kinds.USER_DEFINED

    size = tokenizer.get_vocab_size()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([tokenizer.id_to_token(index) for index in range(size)])
    writer.add_token_types([int(kind(index)) for index in range(size)])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.token_to_id("<s>"))
    writer.add_eos_token_id(tokenizer.token_to_id("<|end|>"))
    writer.add_add_bos_token(False)


def requantize(source: Path, target: Path, type_name: str) -> None:
    """Let llama.cpp write a model in another type, such as F32 or Q4_K_S."""
    import llama_cpp

    quiet_llama_cpp()
    params = llama_cpp.llama_model_quantize_default_params()
    prefix = "ALL" if type_name == "F32" else "MOSTLY"
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{prefix}_{type_name}")
    params.nthread, params.allow_requantize = 1, True
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params)
    assert status == 0, type_name
