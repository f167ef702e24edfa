"""Stage `pretokenize`: encode the stories to token files."""

from __future__ import annotations

from storyllamas import params
from storyllamas.errors import exit_on_user_error
from storyllamas.pretokenize import pretokenize


@exit_on_user_error
def main() -> None:
    """Write data/tokens/train.bin and data/tokens/valid.bin."""
    chosen = params.load()
    threads, records = chosen.pretokenize.threads, chosen.corpus.kind == "instruct"
    for part in ("train", "valid"):
        source, target = f"data/corpus/{part}.txt", f"data/tokens/{part}.bin"
        counts = pretokenize(source, "models/tokenizer.model", target, threads, records)
        what = "records, {:,} bytes of responses" if records else "stories, {:,} bytes of text"
        print(f"{target}: {counts.stories:,} {what.format(counts.text_bytes)}")


if __name__ == "__main__":
    main()
