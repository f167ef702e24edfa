"""Small tokenizers of the kinds that tokenizer.json describes, trained by `tokenizers`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
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
from storyllamas.vocabulary import Added, PieceType, TokenizerKind, Vocabulary

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


def train(
    kind: str,
    special: Sequence[AddedToken] = SPECIAL,
    added: Sequence[AddedToken] = ADDED,
    sentences: Iterable[str] = SENTENCES,
    vocab_size: int = 500,
    limit_alphabet: int = 60,
) -> Tokenizer:
    """Train a tokenizer of a kind; nothing in it depends on the machine.

    Args:
        kind: a key of `KINDS`.
        special: tokens to add that are special.
        added: other tokens to add.
        sentences: the text. If it has more characters than `limit_alphabet`, no two of the rare
            ones may be equally frequent: `tokenizers` would choose among them at random.
        vocab_size: pieces before tokens are added.
        limit_alphabet: characters that are pieces, in tokenizers that do not have all bytes.
    """
    made: Tokenizer = KINDS[kind]()
    if kind == "metaspace decoder":
        made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    has_bytes = bool(json.loads(made.to_str())["model"]["byte_fallback"])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", *(BYTES if has_bytes else [])],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if kind in ALL_BYTES else [],
        limit_alphabet=300 if kind in ALL_BYTES else limit_alphabet,
        show_progress=False,
    )
    made.train_from_iterator(sentences, trainer)
    data = json.loads(made.to_str())
    data["added_tokens"] = [
        token for token in data["added_tokens"] if token["content"] not in BYTES
    ]
    made = Tokenizer.from_str(json.dumps(data))
    made.add_special_tokens(special)
    made.add_tokens(added)
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

    def decoded_differently(self) -> set[int]:
        """Return the added tokens that `tokenizers` decodes in another way than llama.cpp.

        It shows special tokens that are found in normalized text; transformers does not. And it
        takes the text of an added token such as "é" for that of a byte-level piece, whose
        characters stand for bytes.
        """
        found = set()
        for index, flags in self.vocabulary.added.tolist():
            text = self.vocabulary.pieces[index].decode()
            is_bytes = self.vocabulary.kind == TokenizerKind.BYTE_LEVEL and not text.isascii()
            if is_bytes and tokenizer_json.unspell(text) is not None:
                found.add(index)
            if self.theirs.normalizer is not None and flags & Added.NORMALIZED:
                found.add(index)
        return found

    def comparable(self) -> list[int]:
        """Return the ids that both decode in the same way in any order.

        `tokenizers` loses a run of byte pieces if one byte is no character.
        """
        excluded, types = self.hidden() | self.decoded_differently(), self.vocabulary.types
        indices = range(len(types))
        return [i for i in indices if i not in excluded and types[i] != PieceType.BYTE]


def pair(kind: str) -> Pair:
    return pair_of(kind, train(kind))


def pair_of(name: str, theirs: Tokenizer) -> Pair:
    vocabulary = tokenizer_json.from_json(name, json.loads(theirs.to_str()))
    return Pair(theirs, vocabulary, FastTokenizer.of(vocabulary))
