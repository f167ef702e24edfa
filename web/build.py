"""Gather the page into a folder that any web server can serve as it is.

usage: python3 web/build.py ENGINE.wasm FOLDER [MODEL.slm…]

The engine with threads, engine-threads.wasm, is next to ENGINE.wasm.

Each weight file is named after the size that its path names: models/2m/export/q4.slm is "2m q4".
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parent
SHARED = [
    PAGE.parent / "storyllamas" / "report" / name
    for name in ("base.css", "token_details.css", "token_details.js")
]
"""Files of the report that the page has too."""

KINDS = {".html", ".css", ".js", ".svg", ".webmanifest"}
THREADED = "engine-threads.wasm"
MAGIC = b"\x89SLM\r\n\x1a\n"
BITS = {0: 32, 1: 8, 2: 4}
"""Bits of a weight, by the weight type in the header."""


def describe(path: Path) -> dict[str, str]:
    """Return the entry of models.json for a weight file.

    Raises:
        SystemExit: the file is not a weight file.
    """
    data = path.read_bytes()
    if data[:8] != MAGIC:
        raise SystemExit(f"error: {path} is not a weight file")
    bits = BITS[struct.unpack_from("<I", data, 72)[0]]
    is_export = path.parent.name == "export"
    model = path.parent.parent.name if is_export else path.stem
    name = f"{model}-{path.stem}" if is_export else model
    return {
        "name": name,
        "file": f"{name}.slm",
        "description": f"{model}, {bits} bits a weight, {len(data) / 1e6:.1f} MB",
        "checksum": hashlib.sha256(data).hexdigest()[:16],
    }


def write_models(folder: Path, paths: list[Path]) -> None:
    """Copy the weight files and list them in models.json, the smallest first."""
    folder.mkdir(parents=True)
    entries = []
    for path in sorted(paths, key=lambda path: path.stat().st_size):
        entries.append(describe(path))
        shutil.copyfile(path, folder / entries[-1]["file"])
    (folder / "models.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def build(engine: Path, folder: Path, models: list[Path]) -> None:
    """Write the page, the engines and the models; the folder is replaced.

    Raises:
        SystemExit: a file is missing; the folder stays as it was.
    """
    engines = {"engine.wasm": engine, THREADED: engine.with_name(THREADED)}
    for path in (*engines.values(), *models):
        if not path.is_file():
            raise SystemExit(f"error: {path} does not exist")
    shutil.rmtree(folder, ignore_errors=True)
    write_models(folder / "models", models)
    for path in (*SHARED, *(path for path in PAGE.iterdir() if path.suffix in KINDS)):
        shutil.copyfile(path, folder / path.name)
    for name, path in engines.items():
        shutil.copyfile(path, folder / name)


def main() -> None:
    """Run the command line."""
    if len(sys.argv) < 3:
        raise SystemExit("usage: python3 web/build.py ENGINE.wasm FOLDER [MODEL.slm…]")
    engine, folder, *models = map(Path, sys.argv[1:])
    build(engine, folder, models)
    count = f"{len(models)} model{'s' * (len(models) != 1)}"
    print(f"{folder}: engine of {engine.stat().st_size:,} bytes, {count}")


if __name__ == "__main__":
    main()
