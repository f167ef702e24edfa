"""A comparison of vocabularies on the current corpus, as a table and a figure.

For each size and kind, a tokenizer is trained as in the stage `tokenizer`, on the same training
stories, and encodes the same validation stories.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table

from storyllamas import params, plots, tokenizer
from storyllamas.atomic import write_json
from storyllamas.config import ModelConfig
from storyllamas.corpus import files
from storyllamas.errors import UserError, exit_on_user_error
from storyllamas.rounding import decimals
from storyllamas.tokenizer.base import ImpossibleVocabularyError
from storyllamas.vocabulary import TrainableKind

SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768)
KINDS: tuple[TrainableKind, ...] = get_args(TrainableKind)
REPORT = Path("metrics/vocabulary.json")
PICTURE = Path("metrics/vocabulary.png")

_TRAIN = Path("data/corpus/train.txt")
_VALID = Path("data/corpus/valid.txt")
_HELD_OUT_BYTES = 4_000_000


@dataclass(frozen=True)
class Row:
    """The results of one vocabulary size and kind.

    Attributes:
        vocab_size: number of pieces, including special pieces and bytes.
        kind: kind of the tokenizer.
        embedding_share: share of the embedding in the parameters, 0 … 1, for each model size.
        bytes_per_token: UTF-8 bytes of held-out text per token.
        tokens_per_story: mean tokens per held-out story, without BOS and EOS.
        seconds: training time.
        possible: the nearest size that the corpus allows; None if it allows this one. If it does
            not, nothing was measured.
    """

    vocab_size: int
    kind: TrainableKind
    embedding_share: dict[str, float]
    bytes_per_token: float | None = None
    tokens_per_story: float | None = None
    seconds: float | None = None
    possible: int | None = None


def table(
    sizes: Iterable[int],
    stories: Sequence[str],
    held_out: Sequence[str],
    models: Mapping[str, ModelConfig],
    character_coverage: float = 1.0,
) -> list[Row]:
    """Train a tokenizer of each size and kind and measure it.

    Args:
        sizes: vocabulary sizes.
        stories: training text.
        held_out: text for the measurement, at least one story.
        models: shapes of models by name; their `vocab_size` is ignored.
        character_coverage: as in `tokenizer.train`.
    """
    return [
        _row(size, kind, stories, held_out, models, character_coverage)
        for size in sizes
        for kind in KINDS
    ]


def _row(
    vocab_size: int,
    kind: TrainableKind,
    stories: Sequence[str],
    held_out: Sequence[str],
    models: Mapping[str, ModelConfig],
    character_coverage: float,
) -> Row:
    shares = {name: _embedding_share(model, vocab_size) for name, model in models.items()}
    begin = time.perf_counter()
    try:
        model = tokenizer.train(stories, vocab_size, character_coverage, kind)
    except ImpossibleVocabularyError as error:
        return Row(vocab_size, kind, shares, possible=error.nearest)
    seconds = time.perf_counter() - begin
    rate = tokenizer.bytes_per_token(tokenizer.from_bytes(model), held_out)
    tokens = sum(len(story.encode()) for story in held_out) / rate
    return Row(
        vocab_size=vocab_size,
        kind=kind,
        embedding_share=shares,
        bytes_per_token=decimals(rate, 4),
        tokens_per_story=decimals(tokens / len(held_out), 1),
        seconds=decimals(seconds, 2),
    )


def _embedding_share(model: ModelConfig, vocab_size: int) -> float:
    total = replace(model, vocab_size=vocab_size).parameters
    return decimals(1 - replace(model, vocab_size=0).parameters / total, 4)


def show(rows: Sequence[Row], chosen: params.Tokenizer, console: Console) -> None:
    """Print the rows; an arrow marks the chosen size and kind."""
    page = Table(
        *("vocabulary", "kind", "bytes per token", "tokens per story", "seconds to train"),
        *(f"embedding in {name}" for name in rows[0].embedding_share),
        box=None,
        pad_edge=False,
    )
    for column in page.columns:
        column.justify = "right"
    page.columns[1].min_width = max(map(len, KINDS))
    for row in rows:
        is_chosen = (row.vocab_size, row.kind) == (chosen.vocab_size, chosen.kind)
        mark = "→ " if is_chosen else ""
        shares = (f"{share:.1%}" for share in row.embedding_share.values())
        page.add_row(f"{mark}{row.vocab_size:,}", row.kind, *_measured(row), *shares)
    console.print(page)
    for row in rows:
        if row.possible is not None:
            bound = "at most" if row.possible < row.vocab_size else "at least"
            name = f"{row.vocab_size:,} {row.kind}"
            console.print(f"{name}: this corpus allows {bound} {row.possible:,}")


def _measured(row: Row) -> tuple[str, str, str]:
    if row.bytes_per_token is None:
        return "–", "–", "–"
    return f"{row.bytes_per_token:.3f}", f"{row.tokens_per_story:.1f}", f"{row.seconds:.1f}"


def draw(rows: Sequence[Row], chosen: int, target: Path) -> None:
    """Draw bytes per token, and the embedding's share of each model, over the vocabulary size."""
    by_kind = {kind: [row for row in rows if row.kind == kind] for kind in KINDS}
    rows = by_kind[KINDS[0]]  # the shares do not depend on the kind
    with plots.drawing(target, 2, (10, 4.2)) as (_, (rates, shares)):
        for style, (kind, of_kind) in zip(("-", "--"), by_kind.items(), strict=True):
            rates.plot(
                [row.vocab_size for row in of_kind],
                [row.bytes_per_token or math.nan for row in of_kind],
                linestyle=style,
                marker="o",
                color=plots.COLORS[0],
                label=kind,
            )
        rates.legend()
        rates.set(title="Bytes of held-out text per token", ylabel="bytes per token")
        for color, name in zip(plots.COLORS[1:], rows[0].embedding_share, strict=False):
            shares.plot(
                [row.vocab_size for row in rows],
                [100 * row.embedding_share[name] for row in rows],
                marker="o",
                color=color,
                label=name,
            )
        shares.set(title="Share of the embedding in the parameters", ylabel="%", ylim=(0, 100))
        shares.legend()
        for axes in (rates, shares):
            axes.set_xscale("log", base=2)
            axes.set_xticks([row.vocab_size for row in rows])
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.tick_params(axis="x", labelsize=8)
            axes.axvline(chosen, color="gray", linestyle=":")
            axes.set_xlabel("vocabulary size (dotted: tokenizer.vocab_size)")
            axes.grid(alpha=0.25)


@exit_on_user_error
def main() -> None:
    """Print the table, and write metrics/vocabulary.json and metrics/vocabulary.png."""
    chosen = params.load()
    if not _TRAIN.is_file():
        raise UserError(f"{_TRAIN} does not exist: run `dvc repro download`")
    stories = list(files.sample(_TRAIN, chosen.tokenizer.sample_bytes))
    held_out = list(files.sample(_VALID, _HELD_OUT_BYTES))
    models = {name: chosen.model_config_of(name) for name in chosen.sizes}
    console = Console(highlight=False)
    with console.status("training tokenizers"):
        rows = table(SIZES, stories, held_out, models, chosen.tokenizer.character_coverage)
    show(rows, chosen.tokenizer, console)
    draw(rows, chosen.tokenizer.vocab_size, PICTURE)
    report = {
        "corpus": chosen.corpus.source,
        "train_bytes": sum(len(story.encode()) for story in stories),
        "held_out_bytes": sum(len(story.encode()) for story in held_out),
        "vocabularies": [asdict(row) for row in rows],
    }
    write_json(REPORT, report)
    console.print(f"{REPORT}, {PICTURE}")


if __name__ == "__main__":
    main()
