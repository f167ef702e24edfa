"""The options that decide how a model runs, and the engine that they make."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from storyllamas.argument_types import named_path, positive, whole
from storyllamas.commands.default_model import default_model
from storyllamas.errors import UserError

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


def add_draft_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of speculative decoding, which `open_engine` reads, too."""
    parser.add_argument(
        "--draft",
        type=named_path,
        metavar="FILE",
        help="weight file of a smaller model with the same tokenizer that drafts tokens: the same "
        "text in less time if the model is many times larger; for one text at a time",
    )
    parser.add_argument(
        "--draft-tokens",
        type=positive,
        metavar="N",
        help="number of tokens that it drafts at a time, 1 to 64 (default: 3)",
    )


def open_engine(arguments: argparse.Namespace) -> Engine:
    """Return the engine of the options; `arguments.model` becomes its weight file."""
    from storyllamas.engine.engine import Engine

    arguments.model = arguments.model or default_model()
    kernels = os.environ.get("SL_KERNELS")
    draft: dict[str, Any] = {}
    if getattr(arguments, "draft", None) is not None:
        # A small model is fastest on one thread, while the others wait for the large one.
        draft["draft"] = Engine(
            arguments.draft,
            threads=1,
            pages=arguments.pages,
            cache=arguments.cache,
            kernels=kernels,
        )
        if arguments.draft_tokens:
            draft["draft_tokens"] = arguments.draft_tokens
    elif getattr(arguments, "draft_tokens", None):
        raise UserError(
            f"draft_tokens is {arguments.draft_tokens} and there is no draft: name one with --draft"
        )
    options = {"threads": arguments.threads, "cache": arguments.cache, "kernels": kernels, **draft}
    if getattr(arguments, "adapter", None):
        from storyllamas import merging
        from storyllamas.slm import weight_file

        merged = merging.merge(arguments.model, arguments.adapter)
        return Engine.from_bytes(
            weight_file.to_bytes(merged.config, merged.vocabulary, merged.tensor), **options
        )
    return Engine(arguments.model, pages=arguments.pages, **options)
