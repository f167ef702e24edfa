"""Stage `export`: from the trained model to weight files, models/SIZE/export/TYPE.slm."""

from __future__ import annotations

from pathlib import Path

from storyllamas import params, tokenizer
from storyllamas.errors import exit_on_user_error
from storyllamas.export import export_weights


@exit_on_user_error
def main() -> None:
    """Write one file for each of `export.types`."""
    chosen = params.load()
    checkpoint = Path("models") / chosen.model
    paths = export_weights(
        checkpoint,
        tokenizer.load("models/tokenizer.model"),
        checkpoint / "export",
        chosen.export.types,
        chosen.export.group_size,
    )
    for path in paths:
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
