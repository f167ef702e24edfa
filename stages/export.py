"""Stage `export`: from the trained model to files that run, models/SIZE/export/."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from storyllamas import params, token_file, tokenizer
from storyllamas.errors import exit_on_user_error
from storyllamas.export import export


@exit_on_user_error
def main() -> None:
    """Write TYPE.slm for each of `export.types` and FORMAT/… for each of `export.formats`."""
    chosen = params.load()
    checkpoint = Path("models") / chosen.model
    how = chosen.export
    group_sizes = asdict(how.group_size)
    folder, windows = checkpoint / "export", how.calibration_sequences
    digest = tokenizer.load("models/tokenizer.model").digest
    text = token_file.read("data/tokens/train.bin", digest) if windows else None
    paths = export(checkpoint, folder, how.types, group_sizes, how.formats, text, windows)
    for path in paths:
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
