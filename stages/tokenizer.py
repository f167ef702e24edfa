"""Stage `tokenizer`: train a tokenizer on the training stories."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from storyllamas import params, tokenizer
from storyllamas.atomic import atomic_file, write_json
from storyllamas.corpus import files
from storyllamas.errors import exit_on_user_error
from storyllamas.rounding import decimals
from storyllamas.tokenizer.sentencepiece import RESERVED


@exit_on_user_error
def main() -> None:
    """Write models/tokenizer.model and metrics/tokenizer.json."""
    chosen = params.load().tokenizer
    reserved = 0

    def counted(stories: Iterable[str]) -> Iterator[str]:
        nonlocal reserved
        for story in stories:
            reserved += story.count(RESERVED)
            yield story

    stories: Iterable[str] = files.sample("data/corpus/train.txt", chosen.sample_bytes)
    if chosen.kind == "sentencepiece":
        stories = counted(stories)
    model = tokenizer.train(stories, chosen.vocab_size, chosen.character_coverage, chosen.kind)
    with atomic_file("models/tokenizer.model") as file:
        file.write(model)
    trained = tokenizer.from_bytes(model)
    rate = tokenizer.bytes_per_token(trained, files.read("data/corpus/valid.txt"))
    metrics = {
        "vocab_size": trained.vocab_size,
        "bytes_per_token": decimals(rate, 4),
        "reserved_characters": reserved,
    }
    write_json("metrics/tokenizer.json", metrics)
    if reserved:
        print(f"{reserved:,} characters U+2585 were not learned: SentencePiece reserves them")
    print(f"{trained.vocab_size:,} pieces, {rate:.2f} bytes of validation text per token")


if __name__ == "__main__":
    main()
