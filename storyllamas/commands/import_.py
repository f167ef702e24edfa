"""The command `storyllamas import`."""

from __future__ import annotations

import argparse

from storyllamas.argument_types import named_path, positive
from storyllamas.commands.output_file import check_output
from storyllamas.errors import UserError
from storyllamas.interop import formats
from storyllamas.slm.encoding import GROUP_SIZES, SPECS, WeightType

SUMMARY = "make a weight file of another program's model"

DESCRIPTION = """\
Write a model of another program as a weight file. SOURCE is

  a checkpoint of llama2.c (version 0, 1 or 2, or ckpt.pt of its train.py) with tokenizer.bin in
  the same folder,
  a GGUF file of architecture llama, also a quantized one, or
  a Hugging Face folder of a LlamaForCausalLM with safetensors and tokenizer.model or
  tokenizer.json.

The weight file keeps the chat template, which `storyllamas chat` uses.

It is an error if a weight file cannot represent the model: biases, RoPE scaling other than linear
and llama3, tokenizers other than BPE, other architectures.
"""

EXTRA = "convert"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("source", type=named_path, metavar="SOURCE", help="file or folder")
    parser.add_argument("--out", type=named_path, required=True, metavar="FILE", help="weight file")
    parser.add_argument(
        "--type",
        choices=GROUP_SIZES,
        default="f32",
        help="weight type of the matrices (default: %(default)s, exact)",
    )
    parser.add_argument(
        "--group-size",
        type=positive,
        metavar="N",
        help=f"weights that share a scale: {_group_sizes()}; the default suits the model's widths",
    )
    parser.add_argument(
        "--calibrate",
        type=named_path,
        metavar="FILE",
        help="stories to which q4 is fitted (default: the bundled storybook)",
    )
    parser.add_argument(
        "--tokenizer",
        type=named_path,
        metavar="FILE",
        help="tokenizer.bin or tokenizer.model of a llama2.c checkpoint",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        UserError: an option has no effect on this source or weight type, or the model cannot be
            imported.
    """
    source, kind = arguments.source, arguments.type
    spec = WeightType[kind.upper()].spec
    if arguments.group_size and not spec.group_multiple:
        raise UserError(f"--group-size has no effect with {kind}: leave it out, or add --type q8")
    if arguments.calibrate and not spec.calibrated:
        raise UserError(f"--calibrate has no effect with {kind}: leave it out, or add --type q4")
    beside = None if source.is_dir() else source.with_name("tokenizer.bin")
    check_output(arguments.out, [source, beside, arguments.tokenizer, arguments.calibrate])
    formats.import_model(
        arguments.source,
        arguments.out,
        arguments.type,
        arguments.group_size or 0,
        arguments.tokenizer,
        arguments.calibrate,
    )
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")


def _group_sizes() -> str:
    """Describe the group sizes of each weight type that has scales."""
    return "; ".join(
        f"in {kind.label} a multiple of {spec.group_multiple} (default: at most {spec.group_size})"
        for kind, spec in SPECS.items()
        if spec.group_multiple
    )
