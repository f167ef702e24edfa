"""The command line: `storyllamas generate | info | evaluate | corpus | export | import`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storyllamas.errors import UserError, exit_on_user_error
from storyllamas.interop import formats
from storyllamas.interop.model import open_model
from storyllamas.rounding import rounded
from storyllamas.slm import weight_file
from storyllamas.slm.encoding import GROUP_SIZES, storage
from storyllamas.slm.header import VERSION

if TYPE_CHECKING:
    from storyllamas.engine.engine import Engine

DESCRIPTION = """\
Tell stories with a small Llama model, run by the C engine.

Models are flat weight files (.slm), which `dvc repro` writes to models/SIZE/export/. Without
--model, it is the float32 file of the size that params.yaml names.
"""

EPILOG = """\
examples:
  storyllamas generate --prompt "Once upon a time" --seed 7
  storyllamas generate --model models/30m/export/q8.slm --temperature 0
  storyllamas generate --count 1000 --out stories.jsonl
  storyllamas info models/2m/export/q8.slm
  storyllamas evaluate --stories data/corpus/valid.txt
  storyllamas corpus data/corpus --picture corpus.png
  storyllamas export --to gguf-q8_0 my-story-model
  storyllamas import stories15M.bin --out stories15M.slm
"""

GENERATE = """\
Tell a story, or many.

Without --count, --prompts and --out, a story goes to standard output as it is told. With one of
them, many are told together, several times faster, and each becomes a line of JSON with its index,
seed, prompt, text (the prompt included), tokens (how many were told after the prompt) and stop.
The first story has the seed that is given, each further one the next, and is the one that this
seed tells alone. The same command writes the same lines. A file of them can be a corpus, too.

The environment variable SL_KERNELS forces an instruction set: scalar, or one of your processor's.
"""

CORPUS = """\
Print how many stories a corpus has, how long they are, which words they use and how they begin,
how many came before or were decoded wrongly, characters beyond ASCII, and three at random.

A folder with train.txt and valid.txt is read as these two parts, another as one.
"""

EXPORT = """\
Write a model for another program into FOLDER:

  hf            transformers: config, safetensors, tokenizer, model card
  gguf          llama.cpp, Ollama, LM Studio: model.gguf and a Modelfile, in float32;
                gguf-f16, gguf-bf16, gguf-q8_0 and gguf-q4_0 are smaller
  llama2c       llama2.c's run: model.bin of version 0 and tokenizer.bin
  llama2c-q8    llama2.c's runq: model.bin of version 2 and tokenizer.bin

A model that the format cannot hold is refused.
"""

IMPORT = """\
Write a model of another program as a weight file. SOURCE is

  a checkpoint of llama2.c (version 0, 1 or 2) with its tokenizer.bin beside it,
  a GGUF file of architecture llama with a SentencePiece tokenizer, or
  a Hugging Face folder of a LlamaForCausalLM with safetensors and tokenizer.model.

What a weight file cannot represent is refused by name: biases, rope scaling, other architectures.
"""


CORPUS_FOLDER = Path("data/corpus")

OPTIONS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "max_tokens")
"""Arguments of `generate` that `Engine.generate` takes; None is as it says there."""


def _default_checkpoint() -> Path:
    from storyllamas import params

    if not Path("params.yaml").is_file():
        raise UserError("there is no params.yaml here to name a model: give one with --model")
    return Path("models") / params.load().model


def _default_model() -> Path:
    return _default_checkpoint() / "export" / "f32.slm"


def _open(arguments: argparse.Namespace) -> Engine:
    from storyllamas.engine.engine import Engine

    return Engine(
        arguments.model or _default_model(),
        threads=arguments.threads,
        pages=arguments.pages,
        kernels=os.environ.get("SL_KERNELS"),
    )


def _generate(arguments: argparse.Namespace) -> None:
    options = {name: getattr(arguments, name) for name in OPTIONS}
    if arguments.count or arguments.prompts or arguments.out:
        _generate_many(arguments, options)
        return
    story = _open(arguments).generate(arguments.prompt, **options)
    print(arguments.prompt, end="", flush=True)
    for piece in story:
        print(piece, end="", flush=True)
    print()
    print(f"{story.tokens} tokens, stopped at {story.stop}", file=sys.stderr)


def _generate_many(arguments: argparse.Namespace, options: dict[str, Any]) -> None:
    from storyllamas import jsonl

    prompts = [arguments.prompt]
    if arguments.prompts:
        prompts = jsonl.read_prompts(arguments.prompts)
    count = arguments.count or 1
    stories = _open(arguments).generate_many(prompts, count=count, **options)
    jsonl.write(stories, len(prompts) * count, arguments.out, sys.stdout.buffer)


def _info(arguments: argparse.Namespace) -> None:
    file = weight_file.read(arguments.model or _default_model())
    config = {
        name: rounded(value) if isinstance(value, float) else value
        for name, value in dataclasses.asdict(file.config).items()
    }
    layers, embedding = file.storage
    facts = {
        "file": str(file.path),
        "version": VERSION,
        "bytes": file.file_bytes,
        "weight_type": layers.type.name.lower(),
        "group_size": layers.group_size,
        "embedding_type": embedding.type.name.lower(),
        "embedding_group_size": embedding.group_size,
        "bits_per_weight": rounded(8 * file.tensors_bytes / file.config.parameters),
        "parameters": file.config.parameters,
        **config,
    }
    for name in ("unk_id", "bos_id", "eos_id", "pad_id"):
        facts[name] = getattr(file.vocabulary, name)
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        print(f"{name:20} {value:,}" if type(value) is int else f"{name:20} {value}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from itertools import islice

    from storyllamas import evaluation
    from storyllamas.corpus import formats

    engine = _open(arguments)
    stories = list(islice(formats.read(arguments.stories), arguments.count))
    result = dataclasses.asdict(evaluation.score(engine, stories))
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{'stories':14} {len(stories):,}")
    for name, value in result.items():
        print(f"{name:14} {value:.4f}")


def _corpus(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from storyllamas.corpus import sources
    from storyllamas.corpus_stats import plot, report, stats

    if arguments.corpus is None and not CORPUS_FOLDER.is_dir():
        raise UserError(
            f"{CORPUS_FOLDER} does not exist: run `dvc repro download`, or name a file or folder"
        )
    corpus = arguments.corpus or CORPUS_FOLDER
    parts = sources.parts(corpus, arguments.edition, arguments.separator)
    with report.progress(parts) as watched:
        found = stats.collect(watched, arguments.seed)
    if arguments.picture:
        plot.draw(found, arguments.picture)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False))
    else:
        report.show(found, Console(highlight=False))


def _export(arguments: argparse.Namespace) -> None:
    model = open_model(arguments.model or _default_checkpoint())
    for path in formats.export_model(model, arguments.to, arguments.folder):
        print(f"{path}: {path.stat().st_size:,} bytes")


def _import(arguments: argparse.Namespace) -> None:
    given = {arguments.type: arguments.group_size} if arguments.group_size else {}
    how = storage(arguments.type, given)
    formats.import_model(arguments.source, arguments.out, how, arguments.tokenizer)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _add_engine(sub: argparse.ArgumentParser) -> None:
    """What `_open` reads."""
    sub.add_argument("--model", type=Path, metavar="FILE", help="weight file")
    sub.add_argument(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="compute on N threads; 0 is as many as serve best (default: %(default)s)",
    )
    sub.add_argument(
        "--pages",
        choices=["auto", "shared", "huge"],
        default="auto",
        help="shared (the file is mapped), huge (it is copied onto huge pages, which is faster if "
        "it is large) or auto (mapped, and copied beside the story if it is large) "
        "(default: %(default)s)",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="storyllamas",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], None], summary: str, description: str = ""
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            description=description or summary[0].upper() + summary[1:],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    generate = command("generate", _generate, "tell a story, or many", GENERATE)
    _add_engine(generate)
    begins = generate.add_mutually_exclusive_group()
    begins.add_argument("--prompt", default="", metavar="TEXT", help="how the story begins")
    begins.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt a line")
    generate.add_argument("--count", type=_positive, metavar="N", help="stories for each prompt")
    generate.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the lines to a file, which appears when all are told",
    )
    generate.add_argument("--seed", type=int, help="the same seed tells the same story")
    generate.add_argument("--max-tokens", type=int, help="tokens to generate at most, 1 …")
    generate.add_argument(
        "--temperature", type=float, help="0: always the likeliest token; 1: as the model thinks"
    )
    generate.add_argument("--top-k", type=int, help="choose among the k likeliest; 0: among all")
    generate.add_argument("--top-p", type=float, help="smallest set of this probability, up to 1")
    generate.add_argument(
        "--min-p", type=float, help="leave out what is below this share of the likeliest, 0 … 1"
    )
    generate.add_argument(
        "--repetition-penalty", type=float, help="make recent tokens less likely; 1: do not"
    )

    info = command("info", _info, "print what is in a weight file")
    info.add_argument("model", nargs="?", type=Path, metavar="FILE", help="weight file")
    info.add_argument("--json", action="store_true", help="print JSON")

    evaluate = command("evaluate", _evaluate, "print loss, perplexity and bits per byte on stories")
    _add_engine(evaluate)
    evaluate.add_argument(
        "--stories",
        type=Path,
        default=Path("data/corpus/valid.txt"),
        metavar="FILE",
        help="stories separated by <|endoftext|> (default: %(default)s)",
    )
    evaluate.add_argument(
        "--count",
        type=_positive,
        default=200,
        help="score the first so many (default: %(default)s)",
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON")

    corpus = command("corpus", _corpus, "print what is in a corpus: look before you train", CORPUS)
    corpus.add_argument(
        "corpus",
        nargs="?",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help=f"as corpus.source of params.yaml (default: {CORPUS_FOLDER}, the corpus in use)",
    )
    corpus.add_argument(
        "--edition",
        choices=["v1", "v2-gpt4"],
        default="v1",
        help="of TinyStories, in a folder with both (default: %(default)s)",
    )
    corpus.add_argument(
        "--seed", type=int, default=1, help="of the random stories (default: %(default)s)"
    )
    corpus.add_argument(
        "--separator", default="auto", help="as corpus.separator of params.yaml (default: auto)"
    )
    corpus.add_argument("--picture", type=Path, metavar="FILE", help="draw it, too, as a PNG")
    corpus.add_argument("--json", action="store_true", help="print JSON")

    export = command("export", _export, "write a model for another program", EXPORT)
    export.add_argument(
        "--model",
        type=Path,
        help="folder of a training checkpoint, or weight file (default: the checkpoint of the "
        "size that params.yaml names)",
    )
    export.add_argument(
        "--to", required=True, choices=formats.FORMATS, metavar="FORMAT", help="see above"
    )
    export.add_argument("folder", type=Path, metavar="FOLDER", help="made if need be")

    bring = command("import", _import, "make a weight file of another program's model", IMPORT)
    bring.add_argument("source", type=Path, metavar="SOURCE", help="file or folder")
    bring.add_argument("--out", type=Path, required=True, metavar="FILE", help="weight file")
    bring.add_argument(
        "--type",
        choices=GROUP_SIZES,
        default="f32",
        help="how matrices are stored (default: %(default)s, exact)",
    )
    bring.add_argument(
        "--group-size",
        type=_positive,
        metavar="N",
        help="weights that share a scale: in q8 a multiple of 4 (default: "
        f"{GROUP_SIZES['q8']}), in q4 one of 8 (default: {GROUP_SIZES['q4']})",
    )
    bring.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="tokenizer.bin of a llama2.c checkpoint"
    )
    return parser


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors are one sentence on stderr and exit status 1."""
    parsed = _parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except BrokenPipeError:
        # The reader has had enough, as `storyllamas generate | head -1` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
