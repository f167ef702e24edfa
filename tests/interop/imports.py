"""The kinds of models that `storyllamas import` reads, each with the programs that run it.

Other programs write the files, with random weights: transformers, tokenizers, SentencePiece, the
gguf package and llama.cpp. Files of llama2.c are written as its export.py writes them.
"""

from __future__ import annotations

import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import gguf_files
import llama2c_files
import numpy as np
import ranked
import sentencepiece
import torch
from random_models import make_config, make_source
from random_texts import is_long_assigned, random_texts
from runtimes import Llama2c, LlamaCpp, PyTorch, Transformers, difference, is_installed
from tokenizers import Tokenizer, processors

from storyllamas.config import ModelConfig, tensor_shapes
from storyllamas.engine.engine import Engine
from storyllamas.interop.formats import import_model
from storyllamas.interop.model import InteropModel, stack

FLOAT32 = 1e-4
PROMPT = "Once upon a time"
TEXTS = (*ranked.SENTENCES, *random_texts(200))
MAX_LENGTH = 300


@dataclass(frozen=True)
class Original:
    """A model as another program wrote it, with its references.

    Attributes:
        path: the file or folder to import.
        logits: return the logits of ids, [ids, vocab_size].
        encode: return the ids of a text, after BOS if the tokenizer adds it.
        tokenizer: the tokenizer's file if it is not in the same folder.
        texts: what to compare `encode` on.
    """

    path: Path
    logits: Callable[[Sequence[int]], np.ndarray]
    encode: Callable[[str], list[int]]
    tokenizer: Path | None = None
    texts: Sequence[str] = TEXTS


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        format: the program that writes and reads it.
        name: what is special about it.
        reference: the program that computes the logits.
        write: write a model of the kind into a folder.
    """

    format: str
    name: str
    reference: type
    write: Callable[[Path], Original]

    @property
    def is_runnable(self) -> bool:
        """Whether the programs are installed that write and run it."""
        return is_installed(self.reference)


@dataclass(frozen=True)
class Result:
    """The comparison of an imported model with the original.

    Attributes:
        difference: largest difference of logits, as a share of the largest logit.
        equal: texts of which the engine's tokenizer gives the reference's ids.
        texts: texts that were compared.
    """

    difference: float
    equal: int
    texts: int

    @property
    def is_good(self) -> bool:
        return self.difference <= FLOAT32 and self.equal == self.texts


def compare(kind: Kind, folder: Path) -> Result:
    """Import a model of a kind and compare it with the original.

    Args:
        kind: what to import.
        folder: an empty folder for its files.
    """
    original = kind.write(folder)
    import_model(original.path, folder / "imported.slm", tokenizer=original.tokenizer)
    engine = Engine(folder / "imported.slm")
    context, size = int(engine.info["context"]), int(engine.info["vocab_size"])
    ids = np.random.default_rng(1).integers(0, size, min(context, MAX_LENGTH)).tolist()
    begin = [engine.bos_id] if engine.info["adds_bos"] else []
    equal = sum(begin + engine.encode(text) == original.encode(text) for text in original.texts)
    return Result(difference(engine.logits(ids), original.logits(ids)), equal, len(original.texts))


# ---- Tokenizers ----------------------------------------------------------------------------------


@cache
def sentencepiece_model(byte_fallback: bool = True) -> bytes:
    """Train a SentencePiece model; without byte pieces it does not know every character."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(ranked.SENTENCES),
        model_writer=model,
        model_type="bpe",
        vocab_size=400 if byte_fallback else 300,
        byte_fallback=byte_fallback,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def processor(byte_fallback: bool = True) -> Any:
    model = sentencepiece_model(byte_fallback)
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def ids_after_bos(tokenizer: Any) -> Callable[[str], list[int]]:
    return partial(tokenizer.encode, add_bos=True)


def json_tokenizer(kind: str, adds_bos: bool) -> Tokenizer:
    """Train one of `ranked.KINDS`."""
    tokenizer = ranked.train(kind)
    if adds_bos:
        bos_id = tokenizer.token_to_id("<s>")
        begin = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", bos_id)]
        )
        tokenizer.post_processor = begin
    return tokenizer


def ids_of_json(path: Path) -> Callable[[str], list[int]]:
    """Return what encodes with a tokenizer.json; special tokens in a text are plain text."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return lambda text: tokenizer.encode(text).ids


# ---- Hugging Face --------------------------------------------------------------------------------


def save_pretrained(
    folder: Path, vocab_size: int, type_: str = "float32", shard: str = "1GB", **changes: Any
) -> None:
    """Let transformers write a model with random weights."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    shape = {
        "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = transformers.LlamaConfig(vocab_size=vocab_size, **(shape | changes))
    model = transformers.LlamaForCausalLM(config)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            values = torch.randn(weight.shape, generator=random)
            is_norm = weight.ndim == 1
            weight.copy_(1 + values / 8 if is_norm else values / math.sqrt(weight.shape[1]))
    model.to(getattr(torch, type_)).save_pretrained(folder, max_shard_size=shard)


def huggingface(
    folder: Path, tokenizer: str = "", adds_bos: bool = False, lm_head: bool = False, **changes: Any
) -> Original:
    """Write a Hugging Face folder.

    Args:
        folder: the parent of the folder.
        tokenizer: one of `ranked.KINDS` for a tokenizer.json; empty: a tokenizer.model.
        adds_bos: the tokenizer.json puts BOS in front of a text.
        lm_head: store tied weights under the classifier's name only.
        **changes: of `save_pretrained`.
    """
    from transformers import PreTrainedTokenizerFast

    path = folder / "model"
    if tokenizer:
        made = json_tokenizer(tokenizer, adds_bos)
        save_pretrained(path, made.get_vocab_size(), **changes)
        PreTrainedTokenizerFast(
            tokenizer_object=made, bos_token="<s>", eos_token="<|end|>", unk_token="<unk>"
        ).save_pretrained(path)
        encode = ids_of_json(path / "tokenizer.json")
    else:
        save_pretrained(path, processor().vocab_size(), **changes)
        (path / "tokenizer.model").write_bytes(sentencepiece_model())
        encode = ids_after_bos(processor())
    if lm_head:
        rename_embedding(path / "model.safetensors")
    return Original(path, TransformersModel(path).logits, encode)


def rename_embedding(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, path, metadata={"format": "pt"})


class TransformersModel(Transformers):
    """The model of a folder without its tokenizer."""

    def __init__(self, folder: Path) -> None:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
LONG = {"max_position_embeddings": MAX_LENGTH, "head_dim": 64}

HUGGINGFACE: dict[str, dict[str, Any]] = {
    "float32, tokenizer.model": {},
    "bfloat16 in shards": {"type_": "bfloat16", "shard": "40KB"},
    "float16": {"type_": "float16"},
    "an untied classifier": {"tie_word_embeddings": False},
    "tied weights as lm_head only": {"lm_head": True},
    "head_dim apart from dim / heads": {"head_dim": 20},
    "rope scaling linear": {"rope_parameters": LINEAR, **LONG},
    "rope scaling llama3": {"rope_parameters": LLAMA3, **LONG},
    "tokenizer.json, BPE, bytes": {"tokenizer": "legacy", "adds_bos": True},
    "tokenizer.json, BPE, Metaspace": {"tokenizer": "first"},
    "tokenizer.json, BPE, no bytes": {"tokenizer": "unknown"},
    "tokenizer.json, GPT-2": {"tokenizer": "gpt2"},
    "tokenizer.json, Llama 3": {"tokenizer": "llama3", "adds_bos": True},
    "tokenizer.json, SmolLM": {"tokenizer": "smollm"},
}


# ---- GGUF ----------------------------------------------------------------------------------------

PRE = {"gpt-2": "gpt2", "llama-bpe": "llama3", "smollm": "smollm"}
"""llama.cpp's names of pre-tokenizers, and those of `ranked.KINDS`."""


def gguf(folder: Path, type_name: str = "", pre: str = "", **changes: Any) -> Original:
    """Write a GGUF file; llama.cpp converts the weights, and converts them back for its logits.

    Args:
        folder: the target folder.
        type_name: llama.cpp's name of a type; empty: float32.
        pre: a key of `PRE`; empty: a SentencePiece tokenizer.
        **changes: of the shape.
    """
    if pre:
        tokenizer = ranked.train(PRE[pre], added=[])
        tokenizer.add_special_tokens(["<|end|>"])
        size = tokenizer.get_vocab_size()
    else:
        tokenizer = processor()
        size = tokenizer.vocab_size()
    config = make_config(vocab_size=size, **changes)
    (folder / "reference").mkdir()
    path = reference = folder / "reference" / "model.gguf"
    gguf_files.write(path, config, tokenizer, pre)
    if type_name:
        path = folder / "model.gguf"
        gguf_files.requantize(reference, path, type_name)
        gguf_files.requantize(path, reference, "F32")
    runtime = LlamaCpp(reference.parent)
    texts = ["".join(filter(is_long_assigned, text)) for text in TEXTS]
    return Original(path, runtime.logits, runtime.encode, texts=texts)


WIDE = {"dim": 256, "head_dim": 64, "hidden": 256, "layers": 1}
GGUF_TYPES = (
    *("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K_S", "Q4_K_S", "Q5_K_S", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0"),
)

SCALED = {"context": MAX_LENGTH, "head_dim": 64}
GGUF: dict[str, dict[str, Any]] = {
    "float32, SentencePiece": {},
    "an untied classifier": {"tied": False},
    "head_dim apart from dim / heads": {"head_dim": 20},
    "rope scaling linear": {"rope_scaling": "linear", "rope_factor": 4.0, **SCALED},
    "rope scaling llama3": {
        "rope_scaling": "llama3", "rope_factor": 8.0, "rope_low_freq_factor": 1.0,
        "rope_high_freq_factor": 4.0, "rope_original_context": 64, "rope_theta": 5e5, **SCALED,
    },
    **{f"byte-level BPE, {pre}": {"pre": pre} for pre in PRE},
    **{f"weights in {name}": {"type_name": name, **WIDE} for name in GGUF_TYPES},
}  # fmt: skip


# ---- llama2.c ------------------------------------------------------------------------------------


def pytorch(config: ModelConfig, arrays: dict[str, np.ndarray]) -> PyTorch:
    """Return PyTorch's model with the arrays of a checkpoint."""
    tensor = stack(config, arrays.__getitem__)
    return PyTorch.of(config, {name: np.asarray(tensor(name)[:]) for name in tensor_shapes(config)})


def llama2c(folder: Path, version: int, byte_fallback: bool = True, **changes: Any) -> Original:
    """Write a checkpoint of a version and its tokenizer.bin."""
    tokenizer = processor(byte_fallback)
    source = make_source(make_config(vocab_size=tokenizer.vocab_size(), **changes))
    path = folder / "model.bin"
    path.write_bytes(llama2c_files.checkpoint(source, version))
    llama2c_files.write_tokenizer(folder / "tokenizer.bin", tokenizer)
    uses_program = version == 0 and is_installed(Llama2c)
    reference = Llama2c(folder) if uses_program else pytorch(*llama2c_files.read_arrays(path))
    return Original(path, reference.logits, ids_after_bos(tokenizer))


def llama2c_training(folder: Path) -> Original:
    """Write the ckpt.pt of train.py and its tokenizer.model."""
    source: InteropModel = make_source(make_config())
    llama2c_files.save_training_checkpoint(folder / "ckpt.pt", source)
    tokenizer = folder / "tokenizer.model"
    tokenizer.write_bytes(sentencepiece_model())
    tensors = {name: source.tensor(name) for name in tensor_shapes(source.config)}
    reference = PyTorch.of(source.config, tensors)
    return Original(folder / "ckpt.pt", reference.logits, ids_after_bos(processor()), tokenizer)


LLAMA2C: dict[str, Callable[[Path], Original]] = {
    "version 0": partial(llama2c, version=0),
    "version 1": partial(llama2c, version=1, tied=False),
    "version 2": partial(llama2c, version=2),
    "version 2, groups across rows": partial(llama2c, version=2, hidden=36),
    "a tokenizer without bytes": partial(llama2c, version=1, byte_fallback=False),
    "ckpt.pt of train.py": llama2c_training,
}


def kinds() -> list[Kind]:
    """Return every kind of model, with random weights."""
    made = [
        Kind("Hugging Face", name, Transformers, partial(huggingface, **options))
        for name, options in HUGGINGFACE.items()
    ]
    made += [
        Kind("GGUF", name, LlamaCpp, partial(gguf, **options)) for name, options in GGUF.items()
    ]
    for name, write in LLAMA2C.items():
        uses_program = name == "version 0" and is_installed(Llama2c)
        made.append(Kind("llama2.c", name, Llama2c if uses_program else PyTorch, write))
    return made


# ---- Models of other people ----------------------------------------------------------------------


def of_transformers(path: Path, _: Path) -> Original:
    """Return a Hugging Face folder with a tokenizer.json."""
    return Original(path, TransformersModel(path).logits, ids_of_json(path / "tokenizer.json"))


def of_llama2c(path: Path, tokenizer: Path, _: Path) -> Original:
    reference = pytorch(*llama2c_files.read_arrays(path))
    encode = ids_after_bos(llama2c_files.read_tokenizer(tokenizer))
    return Original(path, reference.logits, encode, tokenizer)


def checkpoints(folder: Path) -> list[Kind]:
    """Return the models in a folder of published checkpoints, those that are there."""
    bins = {"stories260K-q8-group8": "tok512.bin", "characters-105": "characters-105.tokenizer.bin"}
    found = []
    if (path := folder / "TinyStories-656K").is_dir():
        write = partial(of_transformers, path)
        found.append(Kind("Hugging Face", path.name, Transformers, write))
    for name, tokenizer in bins.items():
        if (path := folder / f"{name}.bin").is_file():
            write = partial(of_llama2c, path, folder / tokenizer)
            found.append(Kind("llama2.c", name, PyTorch, write))
    return found


MAX_SIZES = {"q8": 310_000, "q4": 180_000}
"""The largest weight files of stories260K, in bytes: its widths, 64 and 172, need small groups."""


def sizes(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Yield the name, the bytes and the allowed bytes of stories260K in each quantized type."""
    if not (folder / "stories260K-q8-group8.bin").is_file():
        return
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "model.slm"
        for name, most in MAX_SIZES.items():
            path, tokenizer = folder / "stories260K-q8-group8.bin", folder / "tok512.bin"
            import_model(path, out, name, tokenizer=tokenizer)
            yield f"stories260K in {name}", out.stat().st_size, most


def stories(folder: Path) -> Iterator[tuple[str, bool]]:
    """Yield the name of each model with a known greedy story, and whether it is generated.

    The file has the text of the story, then its ids from BOS on as a JSON list in the last line.
    """
    for expected in sorted(folder.glob("*.expected_t0.txt")):
        name = expected.name.removesuffix(".expected_t0.txt")
        text, _, line = expected.read_text(encoding="utf-8").rstrip("\n").rpartition("\n")
        ids = json.loads(line)
        with tempfile.TemporaryDirectory() as temporary:
            import_model(folder / name, Path(temporary) / "model.slm")
            engine = Engine(Path(temporary) / "model.slm")
            found = [engine.bos_id, *engine.encode(PROMPT)]
            pieces = engine.generate(PROMPT, temperature=0, max_tokens=len(ids) - len(found))
            is_equal = "".join(pieces) == text.partition(PROMPT)[2]
            while len(found) < len(ids):
                found.append(int(engine.logits(found)[-1].argmax()))
        yield name, is_equal and found == ids
