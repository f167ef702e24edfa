"""Print how far this project and every installed program are apart, for imports and exports.

    python tests/interop/table.py [CHECKPOINT]

Imports: the C engine on the imported file, compared with the other program on its own file.
Exports: each program on the exported file, compared with PyTorch.

CHECKPOINT is the folder of a trained model; the default is that of params.yaml, if it exists.
$STORYLLAMAS_SHARED names a folder whose checkpoints/ has models of other people; the default is
shared/ next to the repository. The exit status is 1 if a difference is larger than allowed.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parent.parent))  # for ranked.py

import imports
from random_models import draw_config, make_source
from runtimes import (
    CEngine,
    Llama2c,
    Llama2cInt8,
    LlamaCpp,
    PyTorch,
    Transformers,
    difference,
    greedy,
    is_installed,
)

from storyllamas import params
from storyllamas.engine.engine import Engine
from storyllamas.errors import UserError
from storyllamas.interop.formats import export_model, import_model
from storyllamas.interop.model import InteropModel, open_model
from storyllamas.slm import weight_file
from storyllamas.slm.encoding import GROUP_SIZES, storage

MODELS = 20
SHARED = Path(__file__).parents[3] / "shared"
PROMPT = "Once upon a time"


@dataclass
class Row:
    """One program on one format, with a result for each model.

    Attributes:
        name: the program.
        runtime: the class that runs it.
        format: the export format, or the weight type of a weight file.
        allowed: upper limit of the difference, as a share of the largest logit.
        exact: largest difference from PyTorch on the exported weights.
        lossy: largest difference from PyTorch on the weights before they were rounded.
        greedy: whether the greedy continuation was that of PyTorch on the exported weights.
    """

    name: str
    runtime: type
    format: str
    allowed: float
    exact: list[float] = field(default_factory=list)
    lossy: list[float] = field(default_factory=list)
    greedy: list[bool] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether every difference is allowed; in float32 the continuations have to agree, too."""
        is_float32 = self.allowed == FLOAT32
        return max(self.exact, default=0) <= self.allowed and (all(self.greedy) or not is_float32)


FLOAT32 = 1e-4
ROWS = [
    Row("C engine", CEngine, "f32", FLOAT32),
    Row("transformers", Transformers, "hf", FLOAT32),
    Row("llama.cpp", LlamaCpp, "gguf", FLOAT32),
    Row("llama2.c run", Llama2c, "llama2c", FLOAT32),
    Row("llama.cpp", LlamaCpp, "gguf-f16", 5e-3),
    Row("llama.cpp", LlamaCpp, "gguf-bf16", 5e-2),
    Row("C engine", CEngine, "q8", 1e-1),
    Row("llama.cpp", LlamaCpp, "gguf-q8_0", 1e-1),
    Row("llama2.c runq", Llama2cInt8, "llama2c-q8", 1e-1),
    Row("C engine", CEngine, "q4", 1e-1),
    Row("llama.cpp", LlamaCpp, "gguf-q4_0", 1e-1),
]


def export(source: InteropModel, name: str, folder: Path) -> tuple[Path, Path]:
    """Return the exported file or folder, and a weight file with the exported weights."""
    back = folder / f"{name}.slm"
    if name in GROUP_SIZES:
        weight_file.write(back, source.config, source.vocabulary, source.tensor, storage(name))
        return back, back
    theirs = folder / name
    files = export_model(source, name, theirs)
    models = [file for file in files if file.name in ("model.gguf", "model.bin")]
    import_model(models[0] if models else theirs, back)
    return theirs, back


def compare(source: InteropModel, ids: list[int], rows: list[Row], folder: Path) -> None:
    """Add the results of one model to the rows."""
    unrounded = PyTorch(export(source, "f32", folder)[1]).logits(ids)
    for row in rows:
        if not is_installed(row.runtime):
            continue
        try:
            path, back = export(source, row.format, folder)
        except UserError:
            continue  # the format cannot represent this shape
        runtime, reference = row.runtime(path), PyTorch(back)
        logits = runtime.logits(ids)
        row.exact.append(difference(logits, reference.logits(ids)))
        row.lossy.append(difference(logits, unrounded))
        row.greedy.append(greedy(runtime, ids[:2], 5) == greedy(reference, ids[:2], 5))


def compare_random(rows: list[Row]) -> None:
    """Add the results of random models, half of which llama2.c can represent."""
    random = np.random.default_rng(1)
    for number in range(MODELS):
        config = draw_config(random, plain=number % 2 == 1, whole=number % 4 > 1)
        ids = random.integers(3, config.vocab_size, config.context - 4).tolist()
        with tempfile.TemporaryDirectory() as folder:
            compare(make_source(config, number), ids, rows, Path(folder))


def print_table(title: str, rows: list[Row]) -> None:
    """Print the results, one line per row."""
    print(f"\n{title}")
    print("largest difference of logits / largest logit, from PyTorch\n")
    head = ("program", "format", "same weights", "allowed", "unrounded", "greedy", "")
    line = "{:14} {:12} {:>12} {:>9} {:>10} {:>9} {}"
    print(line.format(*head))
    for row in rows:
        name, words = row.name, (row.format,)
        if not is_installed(row.runtime):
            print(line.format(name, *words, "not installed", "", "", "", ""))
        elif not row.exact:
            print(line.format(name, *words, "impossible", "", "", "", ""))
        else:
            found = f"{max(row.exact):.1e}", f"{row.allowed:.0e}", f"{max(row.lossy):.1e}"
            equal = f"{sum(row.greedy)} of {len(row.greedy)}"
            print(line.format(name, *words, *found, equal, "" if row.is_good else "TOO MUCH"))


def print_stories(source: InteropModel, folder: Path) -> bool:
    """Print the greedy story of every program; return whether all are equal."""
    path, _ = export(source, "f32", folder)
    engine = Engine(path)
    story = engine.generate(PROMPT, temperature=0, max_tokens=source.config.context)
    stories = {"C engine": PROMPT + "".join(story)}
    prompt = [engine.bos_id, *engine.encode(PROMPT)]
    ids = greedy_to_end(PyTorch(path), prompt, source.config.context, engine.eos_id)
    stories["PyTorch"] = engine.decode(ids)
    for row in ROWS[1:4]:
        if not is_installed(row.runtime):
            continue
        try:
            theirs, _ = export(source, row.format, folder)
        except UserError:
            continue  # the format cannot represent this model
        stories[row.name] = row.runtime(theirs).generate(PROMPT)
    print(f"\nThe greedy story:\n\n{stories['C engine']}\n")
    for name, text in stories.items():
        is_equal = text.strip() == stories["C engine"].strip()
        print(f"{name:14} {'equal' if is_equal else f'different: {text!r}'}")
    return len({text.strip() for text in stories.values()}) == 1


def print_imports(kinds: list[imports.Kind]) -> bool:
    """Print the result for each kind of model; return whether all are good."""
    print("\nImports: the C engine on the imported float32 file")
    print("largest difference of logits / largest logit, from the reference on the original file\n")
    line = "{:13} {:32} {:13} {:>10} {:>8} {:>10} {}"
    print(line.format("format", "model", "reference", "difference", "allowed", "token ids", ""))
    names = {Transformers: "transformers", LlamaCpp: "llama.cpp", Llama2c: "llama2.c run"}
    is_good = True
    for kind in kinds:
        words = kind.format, kind.name, names.get(kind.reference, kind.reference.__name__)
        if not kind.is_runnable:
            print(line.format(*words, "not installed", "", "", ""))
            continue
        with tempfile.TemporaryDirectory() as folder:
            result = imports.compare(kind, Path(folder))
        found = f"{result.difference:.1e}", f"{imports.FLOAT32:.0e}"
        equal = f"{result.equal} of {result.texts}"
        print(line.format(*words, *found, equal, "" if result.is_good else "TOO MUCH"))
        is_good &= result.is_good
    return is_good


def print_checkpoints(folder: Path) -> bool:
    """Print what is known of models of other people; return whether it is as expected."""
    is_good = True
    for name, size, most in imports.sizes(folder):
        print(f"{name}: {size:,} bytes, allowed {most:,} {'' if size <= most else 'TOO MUCH'}")
        is_good &= size <= most
    for name, is_equal in imports.stories(folder):
        print(f"{name}: the greedy story is {'as expected' if is_equal else 'DIFFERENT'}")
        is_good &= is_equal
    return is_good


def greedy_to_end(model: PyTorch, prompt: list[int], context: int, eos_id: int) -> list[int]:
    """Return the prompt and its greedy continuation up to EOS or the end of the context."""
    ids = list(prompt)
    while len(ids) < context and (following := int(model.logits(ids)[-1].argmax())) != eos_id:
        ids.append(following)
    return ids


def empty_rows() -> list[Row]:
    """Return a copy of `ROWS` without results."""
    return [Row(row.name, row.runtime, row.format, row.allowed) for row in ROWS]


def main() -> int:
    """Print the tables; return 0 if every difference is allowed, else 1."""
    folder = Path(os.environ.get("STORYLLAMAS_SHARED", SHARED)) / "checkpoints"
    is_good = print_imports(imports.kinds() + imports.checkpoints(folder))
    is_good &= print_checkpoints(folder)
    rows = empty_rows()
    compare_random(rows)
    print_table(f"Exports: {MODELS} random models", rows)
    is_good &= all(row.is_good for row in rows)
    checkpoint = Path(sys.argv[1] if len(sys.argv) > 1 else f"models/{params.load().model}")
    if not checkpoint.exists():
        print(f"\n{checkpoint} is not trained: `dvc repro train` first for a story")
        return 0 if is_good else 1
    with tempfile.TemporaryDirectory() as folder:
        source = open_model(checkpoint)
        ids = np.random.default_rng(1).integers(3, source.config.vocab_size, 64).tolist()
        trained = empty_rows()
        compare(source, ids, trained, Path(folder))
        print_table(f"Exports: the trained model {checkpoint}", trained)
        is_good &= print_stories(source, Path(folder))
    return 0 if is_good and all(row.is_good for row in trained) else 1


if __name__ == "__main__":
    sys.exit(main())
