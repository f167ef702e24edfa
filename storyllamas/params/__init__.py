"""The typed view of params.yaml; an error names the full key of an unknown or impossible value."""

from storyllamas.params.parsing import parse
from storyllamas.params.reading import load, loads, read
from storyllamas.params.sections import (
    AUTO,
    Clean,
    Compute,
    Corpus,
    Distillation,
    Evaluation,
    Export,
    FineTuning,
    Generation,
    Params,
    Pretokenize,
    Recipe,
    Size,
    Tokenizer,
)

__all__ = [
    "AUTO",
    "Clean",
    "Compute",
    "Corpus",
    "Distillation",
    "Evaluation",
    "Export",
    "FineTuning",
    "Generation",
    "Params",
    "Pretokenize",
    "Recipe",
    "Size",
    "Tokenizer",
    "load",
    "loads",
    "parse",
    "read",
]
