"""The options that decide how a model runs, and the engine that they make."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from storyllamas.argument_types import whole
from storyllamas.commands.default_model import default_model

if TYPE_CHECKING:
    from storyllamas.engine.engine import Engine


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `open_engine` reads, except for the model."""
    parser.add_argument(
        "--threads",
        type=whole,
        default=0,
        metavar="N",
        help="use N threads; 0 is automatic (default: %(default)s)",
    )
    parser.add_argument(
        "--pages",
        choices=["auto", "shared", "huge"],
        default="auto",
        help="shared maps the file, huge copies it to huge pages (faster for large files), auto "
        "maps it and copies a large file while it generates (default: %(default)s)",
    )
    parser.add_argument(
        "--cache",
        choices=["auto", "f32", "f16", "q8"],
        default="auto",
        help="type of the keys and values in the key-value cache; q8 has 8 bits; auto is, with "
        "quantized weights, q8 if head_dim is 64 or more, else f16, and with f32 weights f32 "
        "(default: %(default)s)",
    )


def open_engine(arguments: argparse.Namespace) -> Engine:
    """Return the engine of the options; `arguments.model` becomes its weight file."""
    from storyllamas.engine.engine import Engine

    arguments.model = arguments.model or default_model()
    if getattr(arguments, "adapter", None):
        from storyllamas import merging
        from storyllamas.slm import weight_file

        merged = merging.merge(arguments.model, arguments.adapter)
        return Engine.from_bytes(
            weight_file.to_bytes(merged.config, merged.vocabulary, merged.tensor),
            threads=arguments.threads,
            cache=arguments.cache,
            kernels=os.environ.get("SL_KERNELS"),
        )
    return Engine(
        arguments.model,
        threads=arguments.threads,
        pages=arguments.pages,
        cache=arguments.cache,
        kernels=os.environ.get("SL_KERNELS"),
    )
