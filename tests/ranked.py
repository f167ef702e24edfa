"""Small tokenizers of the kinds that tokenizer.json describes, trained by `tokenizers`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from storyllamas.engine.tokenizer import FastTokenizer
from storyllamas.tokenizer import tokenizer_json
from storyllamas.vocabulary import Added, Vocabulary

SENTENCES = [
    "Once upon a time there was a little cat named Tom, who liked to play in the big garden.",
    "Lily said, \"Can we go to the park, Mommy?\" and they went to the park together.",
    "I'll say it's fine, we're here, they've left, I'm glad, he'd go, don't; I'LL SAY IT'S DON'T.",
    "Ünïcode wörds, naïve café, 日本語と中文 and emoji 🙂 are here too, 1234 5678 90 ½ ٣٤.",
    "aaaa aaaaaaaa aaa abababab abab baba   three   spaces  and two\n\n\n  x\t\ty \r\n z",
] * 3  # fmt: skip

ADDED = [
    AddedToken("<sep>", normalized=False),
    AddedToken("<wide>", lstrip=True, rstrip=True, normalized=False),
    AddedToken("cat", single_word=True, normalized=False),
    AddedToken("the big", normalized=True),
    AddedToken("🙂🙂", normalized=True),
]
SPECIAL = [
    AddedToken("<|end|>", special=True, normalized=False),
    AddedToken("<|end", special=True, normalized=True),
    AddedToken("<|user|>", special=True, normalized=True, rstrip=True),
]

BYTES = [f"<0x{value:02X}>" for value in range(256)]


def _byte_level(name: str, **model: Any) -> Tokenizer:
    made = Tokenizer(models.BPE(**model))
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=name == "gpt2 prefix")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(tokenizer_json.LLAMA3), "isolated")
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = {
        "llama3": pre_tokenizers.Sequence([split, plain]),
        "smollm": pre_tokenizers.Sequence([digits, bytes_]),
    }.get(name, bytes_)
    made.decoder = decoders.ByteLevel()
    return made


def _characters(pre_tokenizer: Any, normalizer: Any, strip: bool, **model: Any) -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>", **model))
    if pre_tokenizer:
        made.pre_tokenizer = pre_tokenizer
    if normalizer:
        made.normalizer = normalizer
    last = [decoders.Strip(" ", 1, 0)] * strip
    restore = decoders.Replace("▁", " ")
    made.decoder = decoders.Sequence([restore, decoders.ByteFallback(), decoders.Fuse(), *last])
    return made


def _metaspace(scheme: str, split: bool) -> Any:
    return pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=split)


REPLACE = normalizers.Replace(" ", "▁")
LEGACY = normalizers.Sequence([normalizers.Prepend("▁"), REPLACE])

KINDS: dict[str, Any] = {
    "gpt2": lambda: _byte_level("gpt2"),
    "gpt2 prefix": lambda: _byte_level("gpt2 prefix"),
    "llama3": lambda: _byte_level("llama3", ignore_merges=True),
    "smollm": lambda: _byte_level("smollm"),
    "bytes missing": lambda: _byte_level("gpt2"),
    "bytes unknown": lambda: _byte_level("gpt2", unk_token="<unk>", fuse_unk=True),
    "legacy": lambda: _characters(None, LEGACY, True, byte_fallback=True, fuse_unk=True),
    "legacy without prefix": lambda: _characters(None, REPLACE, False, byte_fallback=True),
    "unknown": lambda: _characters(None, LEGACY, True, fuse_unk=True),
    "first": lambda: _characters(_metaspace("first", False), None, True, byte_fallback=True),
    "always": lambda: _characters(_metaspace("always", False), None, True, fuse_unk=True),
    "split": lambda: _characters(_metaspace("always", True), None, True, fuse_unk=True),
    "split without fusing": lambda: _characters(_metaspace("never", True), None, False),
    "metaspace decoder": lambda: _characters(_metaspace("first", True), None, False),
}
"""One for each option that may differ."""

ALL_BYTES = ("gpt2", "gpt2 prefix", "llama3", "smollm")


def train(kind: str, added: bool = True) -> Tokenizer:
    """Train a tokenizer of a kind; nothing in it depends on the machine."""
    made: Tokenizer = KINDS[kind]()
    if kind == "metaspace decoder":
        made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    has_bytes = bool(json.loads(made.to_str())["model"]["byte_fallback"])
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<unk>", "<s>", *(BYTES if has_bytes else [])],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if kind in ALL_BYTES else [],
        limit_alphabet=300 if kind in ALL_BYTES else 60,
        show_progress=False,
    )
    made.train_from_iterator(SENTENCES, trainer)
    data = json.loads(made.to_str())
    data["added_tokens"] = [
        token for token in data["added_tokens"] if token["content"] not in BYTES
    ]
    made = Tokenizer.from_str(json.dumps(data))
    if added:
        made.add_special_tokens(SPECIAL)
        made.add_tokens(ADDED)
    return Tokenizer.from_str(made.to_str())


@dataclass
class Pair:
    """The same tokenizer twice: that of `tokenizers` and the engine's."""

    theirs: Tokenizer
    vocabulary: Vocabulary
    ours: FastTokenizer

    def ids(self, text: str, special: bool = False) -> list[int]:
        """Return the ids of the reference."""
        self.theirs.encode_special_tokens = not special
        found: list[int] = self.theirs.encode(text, add_special_tokens=False).ids
        return found

    def hidden(self) -> set[int]:
        """Return the ids that have no text."""
        return {int(index) for index, flags in self.vocabulary.added if flags & Added.SPECIAL}


def pair(kind: str) -> Pair:
    theirs = train(kind)
    vocabulary = tokenizer_json.from_json(kind, json.loads(theirs.to_str()))
    return Pair(theirs, vocabulary, FastTokenizer.of(vocabulary))
