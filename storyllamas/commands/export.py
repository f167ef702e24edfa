"""The command `storyllamas export`."""

from __future__ import annotations

import argparse

from storyllamas.argument_types import named_path
from storyllamas.commands.default_model import trained_checkpoint
from storyllamas.interop import formats

SUMMARY = "write a model for another program"

DESCRIPTION = """\
Write a model for another program into FOLDER:

  hf            transformers: config, safetensors, tokenizer, model card
  gguf          llama.cpp, Ollama, LM Studio: model.gguf and a Modelfile, in float32;
                gguf-f16, gguf-bf16, gguf-q8_0 and gguf-q4_0 are smaller
  llama2c       llama2.c's run: model.bin of version 0 and tokenizer.bin
  llama2c-q8    llama2.c's runq: model.bin of version 2 and tokenizer.bin

It is an error if the format cannot represent the model.
"""

EXTRA = "convert"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--model",
        type=named_path,
        metavar="PATH",
        help="folder of a trained model, or weight file (default: the trained model of the size "
        "that params.yaml names)",
    )
    parser.add_argument(
        "--to", required=True, choices=formats.FORMATS, metavar="FORMAT", help="see above"
    )
    parser.add_argument(
        "folder", type=named_path, metavar="FOLDER", help="created if it does not exist"
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from storyllamas.interop.model import open_model

    model = open_model(arguments.model or trained_checkpoint())
    for path in formats.export_model(model, arguments.to, arguments.folder):
        print(f"{path}: {path.stat().st_size:,} bytes")
