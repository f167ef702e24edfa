"""Stage `export`: from the trained model to files that run, models/SIZE/export/."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from storyllamas import params
from storyllamas.errors import exit_on_user_error
from storyllamas.export import export


@exit_on_user_error
def main() -> None:
    """Write TYPE.slm for each of `export.types` and FORMAT/… for each of `export.formats`."""
    chosen = params.load()
    checkpoint = Path("models") / chosen.model
    how = chosen.export
    group_sizes = asdict(how.group_size)
    paths = export(checkpoint, checkpoint / "export", how.types, group_sizes, how.formats)
    for path in paths:
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
