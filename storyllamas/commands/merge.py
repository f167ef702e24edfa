"""The command `storyllamas merge`."""

from __future__ import annotations

import argparse

from storyllamas.argument_types import named_path
from storyllamas.commands.output_file import check_output

SUMMARY = "add a LoRA adapter to its model"

DESCRIPTION = """\
Add the LoRA adapter of a training to the model that the training started from, and write the result
as a weight file in float32.

BASE is a weight file or the folder of a trained model. Its weights must be exactly those that the
training started from. Quantized weights are converted to float32 first, as the training does.
"""

EXTRA = "train"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "base", type=named_path, metavar="BASE", help="weight file, or folder of a trained model"
    )
    parser.add_argument("adapter", type=named_path, metavar="ADAPTER", help="adapter.safetensors")
    parser.add_argument("out", type=named_path, metavar="OUT", help="weight file to write")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from storyllamas import merging
    from storyllamas.slm import weight_file

    check_output(arguments.out, [arguments.base, arguments.adapter])
    merged = merging.merge(arguments.base, arguments.adapter)
    weight_file.write(arguments.out, merged.config, merged.vocabulary, merged.tensor)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")
