"""Convert a Hugging Face model: python -m bench.peers.convert_ctranslate2 SOURCE TARGET TYPE."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from ctranslate2.converters import TransformersConverter


def main() -> None:
    """Convert the folder SOURCE to the folder TARGET with weights of TYPE."""
    logging: Any = importlib.import_module("transformers.utils.logging")
    logging.disable_progress_bar()
    source, target, weight_type = sys.argv[1:]
    TransformersConverter(source).convert(target, quantization=weight_type, force=True)


if __name__ == "__main__":
    main()
