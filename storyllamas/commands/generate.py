"""The command `storyllamas generate`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storyllamas import instruct
from storyllamas.argument_types import named_path, positive
from storyllamas.commands.engine_options import add_draft_options, add_engine_options, open_engine
from storyllamas.commands.output_file import check_output
from storyllamas.commands.sampler_options import add_sampler_options, sampler_options
from storyllamas.errors import UserError

if TYPE_CHECKING:
    from storyllamas.engine.engine import Engine


SUMMARY = "generate a story, or many"

DESCRIPTION = """\
Generate a story, or many.

Without --count, --prompts and --out, a story is printed while it is generated. With any of them,
stories are generated in batches, which is several times faster. Each story becomes a line of JSON
with its index, seed, prompt, text (prompt included), tokens (the number of generated tokens) and
stop. The first story has the given seed and each further story the next seed. A story does not
depend on its batch, so the same command writes the same lines. The file can be used as a corpus.

A prompt of - is read from standard input. One line break at the end of a prompt that is read from
a file or from standard input does not count.

--words and --ending need a model that was trained with corpus.kind=instruct. The story is printed
without them.

The environment variable SL_KERNELS selects an instruction set, for example scalar.
"""

EXTRA = "train"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--model", type=named_path, metavar="FILE", help="weight file")
    parser.add_argument(
        "--adapter",
        type=named_path,
        metavar="FILE",
        help="adapter.safetensors of a training with LoRA that started from the model; merged in "
        "memory, in float32",
    )
    add_engine_options(parser)
    add_draft_options(parser)
    beginning = parser.add_mutually_exclusive_group()
    beginning.add_argument(
        "--prompt",
        default="",
        metavar="TEXT",
        help="text that the story begins with; - reads it from standard input",
    )
    beginning.add_argument(
        "--prompt-file",
        metavar="FILE",
        help="file with the text that the story begins with; - is standard input",
    )
    beginning.add_argument(
        "--prompts",
        metavar="FILE",
        help="file with a prompt in each line; - is standard input",
    )
    parser.add_argument(
        "--words",
        metavar="TEXT",
        help='words that the story is to have, separated by commas, such as "dragon, cake, sad"',
    )
    parser.add_argument("--ending", choices=instruct.ENDINGS, help="how the story is to end")
    parser.add_argument(
        "--count", type=positive, metavar="N", help="number of stories for each prompt"
    )
    parser.add_argument(
        "--out",
        type=named_path,
        metavar="FILE",
        help="write the lines to FILE, which appears when all stories are finished",
    )
    add_sampler_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from storyllamas import prompts

    if arguments.prompt_file is not None:
        arguments.prompt = prompts.read(arguments.prompt_file)
    elif arguments.prompt == prompts.STANDARD_INPUT:
        arguments.prompt = prompts.read(arguments.prompt)
    options = sampler_options(arguments)
    if arguments.count or arguments.prompts is not None or arguments.out:
        _generate_many(arguments, options)
        return
    engine = open_engine(arguments)
    asked = _asked(arguments, engine)
    story = engine.generate(arguments.prompt if asked is None else asked, **options)
    print(arguments.prompt, end="", flush=True)
    for index, piece in enumerate(story):
        is_first = index == 0 and asked is not None
        print(instruct.response_text(piece) if is_first else piece, end="", flush=True)
    print()
    print(f"{story.tokens} tokens, stopped at {story.stop}", file=sys.stderr)
    if story.drafted:
        counts = f"{story.accepted} of {story.drafted} drafted tokens accepted"
        print(counts, file=sys.stderr)


def _asked(arguments: argparse.Namespace, engine: Engine) -> list[int] | None:
    """Return the ids of the prompt that --words and --ending make; None without these options."""
    if arguments.words is None and arguments.ending is None:
        return None
    if arguments.prompt or arguments.prompt_file or arguments.prompts is not None:
        raise UserError("--words and --ending make a prompt: leave out --prompt, or leave out them")
    instruct.check_template(engine.chat_template, arguments.model)
    prompt = instruct.asked(arguments.words, arguments.ending)
    return instruct.prompt_ids(prompt, engine.encode, engine.bos_id)


def _generate_many(arguments: argparse.Namespace, options: dict[str, Any]) -> None:
    from storyllamas import jsonl
    from storyllamas.prompts import read_lines

    engine = open_engine(arguments)
    inputs = arguments.model, arguments.adapter, arguments.draft
    texts = arguments.prompts, arguments.prompt_file
    check_output(arguments.out, [Path(each) for each in (*inputs, *texts) if each])
    asked = _asked(arguments, engine)
    prompts: list[str] | list[list[int]] = [arguments.prompt] if asked is None else [asked]
    if arguments.prompts is not None:
        prompts = read_lines(arguments.prompts)
    count = arguments.count or 1
    stories = engine.generate_many(prompts, count=count, **options)
    if asked is not None:
        stories = (
            dataclasses.replace(each, text=instruct.response_text(each.text)) for each in stories
        )
    jsonl.write(stories, len(prompts) * count, arguments.out, sys.stdout.buffer)
