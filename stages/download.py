"""Stage `download`: from `corpus` in params.yaml to a training and a validation file of stories."""

from __future__ import annotations

from storyllamas import params
from storyllamas.atomic import atomic_file
from storyllamas.corpus import files, sources
from storyllamas.errors import exit_on_user_error


@exit_on_user_error
def main() -> None:
    """Write data/corpus/train.txt and data/corpus/valid.txt, both or neither."""
    chosen = params.load()
    split = sources.split(chosen.corpus, chosen.seed)
    with (
        atomic_file("data/corpus/train.txt") as train,
        atomic_file("data/corpus/valid.txt") as valid,
    ):
        train_stories = files.write(train, split.train)
        valid_stories = files.write(valid, split.valid)
    print(f"{train_stories:,} stories to train on, {valid_stories:,} to validate on")
    if split.counts.empty or split.counts.replaced:
        print(
            f"{split.counts.empty:,} empty stories skipped, "
            f"{split.counts.replaced:,} invalid bytes replaced by U+FFFD"
        )


if __name__ == "__main__":
    main()
