"""The command `storyllamas info`."""

from __future__ import annotations

import argparse
import dataclasses
import json

from storyllamas.argument_types import named_path
from storyllamas.commands.default_model import default_model
from storyllamas.rounding import shortest_float32

SUMMARY = "print what is in a weight file"

DESCRIPTION = "Print what is in a weight file"

EXTRA = "train"


ROPE_SCALING_FIELDS = (
    "rope_factor",
    "rope_low_freq_factor",
    "rope_high_freq_factor",
    "rope_original_context",
)
"""Fields of ModelConfig that mean nothing without RoPE scaling."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("model", nargs="?", type=named_path, metavar="FILE", help="weight file")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from storyllamas.slm import weight_file

    file = weight_file.read(arguments.model or default_model())
    config = {
        name: shortest_float32(value) if isinstance(value, float) else value
        for name, value in dataclasses.asdict(file.config).items()
    }
    layers, embedding = file.storage
    facts = {
        "file": str(file.path),
        "version": file.version,
        "bytes": file.file_bytes,
        "weight_type": layers.type.label,
        "group_size": layers.group_size,
        "embedding_type": embedding.type.label,
        "embedding_group_size": embedding.group_size,
        "bits_per_weight": shortest_float32(8 * file.tensors_bytes / file.config.parameters),
        "parameters": file.config.parameters,
        **config,
    }
    for name in ("unk_id", "bos_id", "eos_id", "pad_id"):
        facts[name] = getattr(file.vocabulary, name)
    facts["extra_eos_ids"] = list(file.vocabulary.extra_eos_ids)
    facts["chat_template_bytes"] = len(file.vocabulary.chat_template.encode())
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    if file.config.rope_scaling == "none":
        facts = {name: value for name, value in facts.items() if name not in ROPE_SCALING_FIELDS}
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}} {value:,}" if type(value) is int else f"{name:{width}} {value}")
