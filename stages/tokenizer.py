"""Stage `tokenizer`: train a tokenizer on the training stories, or take one as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from storyllamas import params, tokenizer
from storyllamas.atomic import atomic_file, write_json
from storyllamas.corpus import files
from storyllamas.errors import UserError, exit_on_user_error
from storyllamas.regular_file import open_regular, read_regular
from storyllamas.rounding import decimals
from storyllamas.tokenizer.byte_level import ByteLevelTokenizer
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

    if chosen.path:
        model = read_existing(chosen)
    else:
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


def read_existing(chosen: params.Tokenizer) -> bytes:
    """Return the tokenizer that `tokenizer.path` names, or that of the model that it names.

    Raises:
        UserError: it is missing or no tokenizer, or has another kind or number of pieces.
    """
    path = Path(chosen.path)
    if (
        (path / "model.safetensors").is_file()
        and not (path / "tokenizer.model").is_file()
        and (path.resolve().parent == Path("models").resolve())
    ):
        raise UserError(
            f"tokenizer.path is {path}, whose tokenizer, models/tokenizer.model, this stage "
            "replaces: restore that with `dvc checkout --force tokenizer`, copy it to another "
            "folder and name that"
        )
    if not path.exists() or path.resolve() == Path("models/tokenizer.model").resolve():
        raise UserError(
            f"tokenizer.path is {path}, which does not exist when this stage runs: name a "
            "tokenizer.model, a tokenizer.json or a model, and not models/tokenizer.model, which "
            "the stage replaces"
        )
    model = read_of_model(path) if is_model(path) else read_regular(path)
    try:
        found = tokenizer.from_bytes(model)
    except ValueError:
        raise UserError(
            f"tokenizer.path is {path}, which is not a SentencePiece model, a byte-level "
            "tokenizer.json or a model with such a tokenizer: name another file"
        ) from None
    kind = "byte_level" if isinstance(found, ByteLevelTokenizer) else "sentencepiece"
    if (kind, found.vocab_size) != (chosen.kind, chosen.vocab_size):
        raise UserError(
            f"tokenizer.path is {path}, of kind {kind} with {found.vocab_size} pieces: set "
            f"tokenizer.kind={kind} and tokenizer.vocab_size={found.vocab_size}"
        )
    return model


def is_model(path: Path) -> bool:
    """Return whether a path is a folder, a weight file or a GGUF file."""
    if path.is_dir():
        return True
    from storyllamas.slm.header import MAGIC

    with open_regular(path) as file:
        start: bytes = file.read(len(MAGIC))
    return start.startswith((MAGIC, b"GGUF"))


def read_of_model(path: Path) -> bytes:
    """Return the tokenizer of a model.

    Raises:
        UserError: there is no such model, or the workflow cannot train with its tokenizer.
    """
    from storyllamas.interop.tokenizer_file import tokenizer_file
    from storyllamas.training.model_files import open_trained

    model = open_trained("tokenizer.path", path, path / "tokenizer.model")
    try:
        return tokenizer_file(model.vocabulary)
    except UserError as error:
        raise UserError(f"tokenizer.path is {path}: {error}") from None


if __name__ == "__main__":
    main()
