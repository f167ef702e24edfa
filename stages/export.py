"""Stage `export`: write the trained model to models/SIZE/export/ in each type and format."""

from __future__ import annotations

from pathlib import Path

from storyllamas import params, token_file, tokenizer, workdir
from storyllamas.errors import exit_on_user_error
from storyllamas.export import export


@exit_on_user_error
def main() -> None:
    """Write TYPE.slm for each of `export.types` and FORMAT/… for each of `export.formats`."""
    workdir.remove_finished_runs()  # DVC has noted the result of training
    chosen = params.load()
    model = Path("models") / chosen.model
    settings = chosen.export
    windows = settings.calibration_sequences
    digest = tokenizer.load("models/tokenizer.model").digest
    text = token_file.read("data/tokens/train.bin", digest) if windows else None
    folder = model / "export"
    kinds = (settings.types, settings.group_size, settings.formats)
    for path in export(model, folder, *kinds, text, windows):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
