"""Stage `download`: write the training and validation stories of `corpus` in params.yaml."""

from __future__ import annotations

from dataclasses import asdict

from storyllamas import params
from storyllamas.atomic import atomic_file, write_json
from storyllamas.corpus import files, prompts, sources
from storyllamas.corpus.cleaning import Cleaner
from storyllamas.errors import exit_on_user_error


@exit_on_user_error
def main() -> None:
    """Write data/corpus/train.txt and valid.txt, both or neither, prompts and statistics."""
    chosen = params.load()
    split = sources.split(chosen.corpus, chosen.seed)
    cleaner = Cleaner(chosen.corpus.clean)
    with (
        atomic_file("data/corpus/train.txt") as train,
        atomic_file("data/corpus/valid.txt") as valid,
    ):
        # Validation first: the cleaner compares the training stories with it.
        files.write(valid, cleaner.valid(split.valid))
        files.write(train, cleaner.train(split.train))
    write_json("data/corpus/prompts.json", prompts.find(chosen.corpus))
    parts = {"train": cleaner.train_counts, "valid": cleaner.valid_counts}
    read = {"empty": split.counts.empty, "invalid_bytes": split.counts.invalid_bytes}
    write_json(
        "metrics/corpus.json", {part: asdict(counts) for part, counts in parts.items()} | read
    )
    for part, counts in parts.items():
        print(f"{part}: {counts.stories:,} stories, {counts.text_bytes:,} bytes of text")
        _print_counts(
            {
                "repaired": counts.repaired,
                "dropped: too short": counts.short,
                "dropped: also in valid": counts.train_valid_overlap,
                "dropped: repeated": counts.duplicates,
            }
        )
    _print_counts(
        {
            "empty stories skipped": split.counts.empty,
            "invalid bytes replaced by U+FFFD": split.counts.invalid_bytes,
        }
    )


def _print_counts(counts: dict[str, int]) -> None:
    """Print the counts that are not zero."""
    for what, count in counts.items():
        if count:
            print(f"{count:>12,} {what}")


if __name__ == "__main__":
    main()
