"""The command line: `storyllamas COMMAND`; `storyllamas --help` lists the commands."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storyllamas import completions, instruct, merging
from storyllamas.argument_types import positive as _positive
from storyllamas.argument_types import real as _real
from storyllamas.argument_types import whole as _whole
from storyllamas.errors import UserError, exit_on_user_error
from storyllamas.extras import needs
from storyllamas.interop import formats
from storyllamas.interop.model import open_model
from storyllamas.judge import command as judge_command
from storyllamas.plan import command as plan_command
from storyllamas.rounding import shortest_float32
from storyllamas.slm import weight_file
from storyllamas.slm.encoding import GROUP_SIZES, SPECS

if TYPE_CHECKING:
    from storyllamas.engine.engine import Engine

DESCRIPTION = """\
Generate stories with a small Llama model, and convert models from and to other programs.

A model is a weight file (.slm), which the C engine runs. `dvc repro` writes weight files to
models/SIZE/export/. The default is the float32 file of the size that params.yaml names, or
the model in models/pretrained/ if that size is not trained.
"""

EPILOG = """\
examples:
  storyllamas generate --prompt "Once upon a time" --seed 7
  storyllamas generate --model models/30m/export/q8.slm --temperature 0
  storyllamas generate --count 1000 --out stories.jsonl
  storyllamas generate --prompt-file beginning.txt --seed random
  storyllamas generate --words "dragon, cake, sad" --ending happy
  storyllamas chat SmolLM2.slm --system "Answer in one sentence."
  storyllamas info models/2m/export/q8.slm
  storyllamas evaluate --stories data/corpus/valid.txt
  storyllamas judge stories.jsonl --endpoint http://127.0.0.1:8000/v1 --judge NAME
  storyllamas corpus data/corpus --picture corpus.png
  storyllamas export --to gguf-q8_0 my-story-model
  storyllamas plan -S recipe=fast
  storyllamas import stories15M.bin --out stories15M.slm
  storyllamas merge base.slm models/2m/adapter.safetensors merged.slm
"""

GENERATE = """\
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

CHAT = """\
Hold a conversation with a model that has a chat template, such as one that `storyllamas import`
made of an instruction-tuned model.

Each line is a turn. At a terminal, Ctrl-C stops a reply and Ctrl-D ends the conversation. From a
pipe, each line gets a reply on standard output. If the context is full, the oldest turns are
dropped; the system message stays. Notes and errors go to standard error.
"""

CORPUS = """\
Print statistics of a corpus: its stories, their lengths, words and beginnings, duplicates, decoding
errors, characters beyond ASCII, and three random stories.

A folder with train.txt and valid.txt has these two parts. Any other folder or file is one part.
"""

EXPORT = """\
Write a model for another program into FOLDER:

  hf            transformers: config, safetensors, tokenizer, model card
  gguf          llama.cpp, Ollama, LM Studio: model.gguf and a Modelfile, in float32;
                gguf-f16, gguf-bf16, gguf-q8_0 and gguf-q4_0 are smaller
  llama2c       llama2.c's run: model.bin of version 0 and tokenizer.bin
  llama2c-q8    llama2.c's runq: model.bin of version 2 and tokenizer.bin

It is an error if the format cannot represent the model.
"""

IMPORT = """\
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


MERGE = """\
Add the LoRA adapter of a training to the model that the training started from, and write the result
as a weight file in float32.

BASE is a weight file or the folder of a trained model. Its weights must be exactly those that the
training started from. Quantized weights are converted to float32 first, as the training does.
"""


COMPLETION = """\
Print a script that completes commands, options and files of `storyllamas` in a shell.

  bash   eval "$(storyllamas completion bash)"                  in ~/.bashrc
  fish   storyllamas completion fish | source                   in ~/.config/fish/config.fish
  zsh    storyllamas completion zsh > FOLDER/_storyllamas       with a FOLDER of $fpath
"""

CORPUS_FOLDER = Path("data/corpus")

OPTIONS: dict[str, tuple[type, str]] = {
    "seed": (
        int,
        "0 and up; the same seed generates the same story; random takes one and prints it on "
        "standard error",
    ),
    "max_tokens": (int, "generate at most N tokens, 1 and up"),
    "ignore_eos": (bool, "continue after the end-of-story token"),
    "temperature": (float, "0 to 1000; 0 takes the most probable token"),
    "top_k": (int, "sample from the N most probable tokens; 0 is off"),
    "top_p": (
        float,
        "sample from the most probable tokens that together have this probability, above 0, "
        "up to 1; 1 is off",
    ),
    "min_p": (
        float,
        "exclude tokens less probable than X times the most probable one, 0 up to below 1; "
        "0 is off",
    ),
    "repetition_penalty": (
        float,
        "divide the logits of recent tokens by X, above 0, up to 1000; 1 is off",
    ),
    "repetition_window": (int, "the last N tokens are recent, 0 and up"),
}
"""The type and the help of each option of `generate` that `Engine.generate` takes."""

CHAT_OPTIONS = [name for name in OPTIONS if name != "ignore_eos"]

CHAT_HELP = {
    "seed": "0 and up; the same seed and turns give the same replies; random takes one and prints "
    "it on standard error",
    "max_tokens": "generate at most N tokens for a reply, 1 and up; without it, a reply ends where "
    "the model ends it",
}
"""The help of options that mean something else in `chat`."""

RANDOM = "random"
"""The value of --seed that takes any seed."""


def _default_checkpoint() -> Path:
    if not Path("params.yaml").is_file():
        raise UserError(
            "the current folder has no params.yaml that names a model: give one with --model"
        )
    with needs("train"):
        from storyllamas import params

    return Path("models") / params.load().model


ROPE_SCALING_FIELDS = (
    "rope_factor",
    "rope_low_freq_factor",
    "rope_high_freq_factor",
    "rope_original_context",
)
"""Fields of ModelConfig that mean nothing without RoPE scaling."""

PRETRAINED = Path("models/pretrained/tinystories-2m-q4.slm")
"""The model that comes with a checkout, for those who have not trained their own."""


def _default_model() -> Path:
    trained = _default_checkpoint() / "export" / "f32.slm"
    if trained.is_file() or not PRETRAINED.is_file():
        return trained
    print(f"{trained} is not trained yet: using {PRETRAINED}", file=sys.stderr)
    return PRETRAINED


def _open(arguments: argparse.Namespace) -> Engine:
    from storyllamas.engine.engine import Engine

    arguments.model = arguments.model or _default_model()
    if getattr(arguments, "adapter", None):
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


def _options(arguments: argparse.Namespace, names: Iterable[str] = OPTIONS) -> dict[str, Any]:
    """Return the options of the sampler; print the seed if it is a random one."""
    options = {name: getattr(arguments, name) for name in names}
    if options["seed"] == RANDOM:
        options["seed"] = secrets.randbits(32)
        print(f"seed {options['seed']}", file=sys.stderr)
    return options


def _generate(arguments: argparse.Namespace) -> None:
    from storyllamas import prompts

    if arguments.prompt_file:
        arguments.prompt = prompts.read(arguments.prompt_file)
    elif arguments.prompt == prompts.STANDARD_INPUT:
        arguments.prompt = prompts.read(arguments.prompt)
    options = _options(arguments)
    if arguments.count or arguments.prompts or arguments.out:
        _generate_many(arguments, options)
        return
    engine = _open(arguments)
    asked = _asked(arguments, engine)
    story = engine.generate(arguments.prompt if asked is None else asked, **options)
    print(arguments.prompt, end="", flush=True)
    for index, piece in enumerate(story):
        is_first = index == 0 and asked is not None
        print(instruct.response_text(piece) if is_first else piece, end="", flush=True)
    print()
    print(f"{story.tokens} tokens, stopped at {story.stop}", file=sys.stderr)


def _asked(arguments: argparse.Namespace, engine: Engine) -> list[int] | None:
    """Return the ids of the prompt that --words and --ending make; None without these options."""
    if arguments.words is None and arguments.ending is None:
        return None
    if arguments.prompt or arguments.prompt_file or arguments.prompts:
        raise UserError("--words and --ending make a prompt: leave out --prompt, or leave out them")
    instruct.check_template(engine.chat_template, arguments.model)
    prompt = instruct.asked(arguments.words, arguments.ending)
    return instruct.prompt_ids(prompt, engine.encode, engine.bos_id)


def _generate_many(arguments: argparse.Namespace, options: dict[str, Any]) -> None:
    from storyllamas import jsonl

    engine = _open(arguments)
    asked = _asked(arguments, engine)
    prompts: list[str] | list[list[int]] = [arguments.prompt] if asked is None else [asked]
    if arguments.prompts:
        prompts = jsonl.read_prompts(arguments.prompts)
    count = arguments.count or 1
    stories = engine.generate_many(prompts, count=count, **options)
    if asked is not None:
        stories = (
            dataclasses.replace(each, text=instruct.response_text(each.text)) for each in stories
        )
    jsonl.write(stories, len(prompts) * count, arguments.out, sys.stdout.buffer)


def _chat(arguments: argparse.Namespace) -> None:
    from storyllamas.chat.terminal import chat

    options = _options(arguments, CHAT_OPTIONS)
    chat(_open(arguments), arguments.model, arguments.system, options)


def _serve(arguments: argparse.Namespace) -> None:
    with needs("serve"):
        from storyllamas.server.serve import serve
    engine = _open(arguments)
    serve(
        engine,
        arguments.model.stem,
        host=arguments.host,
        port=arguments.port,
        slots=arguments.slots,
        max_waiting=arguments.max_waiting,
        web=arguments.web,
    )


def _info(arguments: argparse.Namespace) -> None:
    file = weight_file.read(arguments.model or _default_model())
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


def _evaluate(arguments: argparse.Namespace) -> None:
    from itertools import islice

    from storyllamas import evaluation
    from storyllamas.corpus import formats as corpus_formats

    engine = _open(arguments)
    is_instruct = engine.chat_template == instruct.CHAT_TEMPLATE
    kind = "instruct" if is_instruct else corpus_formats.STORIES
    texts = islice(corpus_formats.read(arguments.stories, kind=kind), arguments.count)
    stories = [instruct.parse(text) or text for text in texts] if is_instruct else list(texts)
    result = {"stories": len(stories), **dataclasses.asdict(evaluation.score(engine, stories))}
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:14} {value:,}" if type(value) is int else f"{name:14} {value:.4f}")


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
    formats.import_model(
        arguments.source,
        arguments.out,
        arguments.type,
        arguments.group_size or 0,
        arguments.tokenizer,
        arguments.calibrate,
    )
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")


def _merge(arguments: argparse.Namespace) -> None:
    merged = merging.merge(arguments.base, arguments.adapter)
    weight_file.write(arguments.out, merged.config, merged.vocabulary, merged.tensor)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes")


def _completion(arguments: argparse.Namespace) -> None:
    sys.stdout.write(completions.script(arguments.shell))


def _seed(text: str) -> int | str:
    return text if text == RANDOM else _whole(text)


def _add_option(sub: argparse.ArgumentParser, name: str, kind: type, text: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    if name == "seed":
        sub.add_argument(flag, type=_seed, metavar="N|random", help=text)
    elif kind is bool:
        sub.add_argument(flag, action="store_true", help=text)
    else:
        parse, metavar = (_whole, "N") if kind is int else (_real, "X")
        sub.add_argument(flag, type=parse, metavar=metavar, help=text)


def _add_engine(sub: argparse.ArgumentParser) -> None:
    """Add the options that `_open` reads, but for the model."""
    sub.add_argument(
        "--threads",
        type=_whole,
        default=0,
        metavar="N",
        help="use N threads; 0 is automatic (default: %(default)s)",
    )
    sub.add_argument(
        "--pages",
        choices=["auto", "shared", "huge"],
        default="auto",
        help="shared maps the file, huge copies it to huge pages (faster for large files), auto "
        "maps it and copies a large file while it generates (default: %(default)s)",
    )
    sub.add_argument(
        "--cache",
        choices=["auto", "f32", "f16", "q8"],
        default="auto",
        help="type of the keys and values in the key-value cache; q8 has 8 bits, auto is f16 if "
        "the weights are quantized, else f32 (default: %(default)s)",
    )


def _group_sizes() -> str:
    """Describe the group sizes of each weight type that has scales."""
    return "; ".join(
        f"in {kind.label} a multiple of {spec.group_multiple} (default: at most {spec.group_size})"
        for kind, spec in SPECS.items()
        if spec.group_multiple
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
        name: str,
        run: Callable[[argparse.Namespace], None],
        summary: str,
        description: str = "",
        extra: str = "train",
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            description=description or summary[0].upper() + summary[1:],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run, extra=extra)
        return sub

    generate = command("generate", _generate, "generate a story, or many", GENERATE)
    generate.add_argument("--model", type=Path, metavar="FILE", help="weight file")
    generate.add_argument(
        "--adapter",
        type=Path,
        metavar="FILE",
        help="adapter.safetensors of a training with LoRA that started from the model; merged in "
        "memory, in float32",
    )
    _add_engine(generate)
    beginning = generate.add_mutually_exclusive_group()
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
        "--prompts", type=Path, metavar="FILE", help="file with a prompt in each line"
    )
    generate.add_argument(
        "--words",
        metavar="TEXT",
        help='words that the story is to have, separated by commas, such as "dragon, cake, sad"',
    )
    generate.add_argument("--ending", choices=instruct.ENDINGS, help="how the story is to end")
    generate.add_argument(
        "--count", type=_positive, metavar="N", help="number of stories for each prompt"
    )
    generate.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the lines to FILE, which appears when all stories are finished",
    )
    for name, (kind, text) in OPTIONS.items():
        _add_option(generate, name, kind, text)

    chat = command("chat", _chat, "hold a conversation with a model", CHAT, "chat")
    chat.add_argument("model", type=Path, metavar="FILE", help="weight file with a chat template")
    chat.add_argument(
        "--system",
        metavar="TEXT",
        help="system message at the start of the conversation (default: that of the template)",
    )
    _add_engine(chat)
    for name in CHAT_OPTIONS:
        kind, text = OPTIONS[name]
        _add_option(chat, name, kind, CHAT_HELP.get(name, text))

    serve = command("serve", _serve, "answer requests over HTTP as OpenAI's interface does")
    serve.add_argument("--model", type=Path, metavar="FILE", help="weight file")
    _add_engine(serve)
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; 0.0.0.0: all of this machine (default: %(default)s)",
    )
    serve.add_argument(
        "--port", type=_whole, default=8080, metavar="N", help="0: any free one (default: 8080)"
    )
    serve.add_argument(
        "--slots",
        type=_positive,
        default=32,
        metavar="N",
        help="sequences that are generated at a time (default: %(default)s)",
    )
    serve.add_argument(
        "--max-waiting",
        type=_whole,
        default=256,
        metavar="N",
        help="sequences that may wait for a slot; further requests get status 429 (default: "
        "%(default)s)",
    )
    serve.add_argument(
        "--web",
        type=Path,
        metavar="FOLDER",
        help="show a page at /, such as build/web, which `make web` builds",
    )

    info = command("info", _info, "print what is in a weight file")
    info.add_argument("model", nargs="?", type=Path, metavar="FILE", help="weight file")
    info.add_argument("--json", action="store_true", help="print JSON")

    evaluate = command("evaluate", _evaluate, "print loss, perplexity and bits per byte on stories")
    evaluate.add_argument("--model", type=Path, metavar="FILE", help="weight file")
    _add_engine(evaluate)
    evaluate.add_argument(
        "--stories",
        type=Path,
        default=Path("data/corpus/valid.txt"),
        metavar="FILE",
        help="file of stories, in any format of a corpus (default: %(default)s)",
    )
    evaluate.add_argument(
        "--count",
        type=_positive,
        default=200,
        metavar="N",
        help="score the first N stories (default: %(default)s)",
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON")

    judge = command(
        "judge",
        judge_command.run,
        "ask a large language model to grade or compare stories",
        judge_command.DESCRIPTION,
        "judge",
    )
    judge_command.add_options(judge)

    corpus = command("corpus", _corpus, "print statistics of a corpus", CORPUS)
    corpus.add_argument(
        "corpus",
        nargs="?",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help=f"any value of corpus.source in params.yaml (default: {CORPUS_FOLDER}, the corpus in "
        "use)",
    )
    corpus.add_argument(
        "--edition",
        choices=["v1", "v2-gpt4"],
        default="v1",
        help="edition of TinyStories, if the folder has both (default: %(default)s)",
    )
    corpus.add_argument(
        "--seed",
        type=_whole,
        default=1,
        metavar="N",
        help="seed for choosing the random stories (default: %(default)s)",
    )
    corpus.add_argument(
        "--picture", type=Path, metavar="FILE", help="also plot the statistics as a PNG"
    )
    corpus.add_argument(
        "--separator",
        default="auto",
        help="line, blank_line, a string, or auto, as corpus.separator of params.yaml (default: "
        "%(default)s)",
    )
    corpus.add_argument("--json", action="store_true", help="print JSON")

    export = command("export", _export, "write a model for another program", EXPORT, "convert")
    export.add_argument(
        "--model",
        type=Path,
        metavar="PATH",
        help="folder of a trained model, or weight file (default: the trained model of the size "
        "that params.yaml names)",
    )
    export.add_argument(
        "--to", required=True, choices=formats.FORMATS, metavar="FORMAT", help="see above"
    )
    export.add_argument("folder", type=Path, metavar="FOLDER", help="created if it does not exist")

    importing = command(
        "import", _import, "make a weight file of another program's model", IMPORT, "convert"
    )
    importing.add_argument("source", type=Path, metavar="SOURCE", help="file or folder")
    importing.add_argument("--out", type=Path, required=True, metavar="FILE", help="weight file")
    importing.add_argument(
        "--type",
        choices=GROUP_SIZES,
        default="f32",
        help="weight type of the matrices (default: %(default)s, exact)",
    )
    importing.add_argument(
        "--group-size",
        type=_positive,
        metavar="N",
        help=f"weights that share a scale: {_group_sizes()}; the default suits the model's widths",
    )
    importing.add_argument(
        "--calibrate",
        type=Path,
        metavar="FILE",
        help="stories to which q4 is fitted (default: the bundled storybook)",
    )
    importing.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="tokenizer.bin or tokenizer.model of a llama2.c checkpoint",
    )

    merge = command("merge", _merge, "add a LoRA adapter to its model", MERGE)
    merge.add_argument(
        "base", type=Path, metavar="BASE", help="weight file, or folder of a trained model"
    )
    merge.add_argument("adapter", type=Path, metavar="ADAPTER", help="adapter.safetensors")
    merge.add_argument("out", type=Path, metavar="OUT", help="weight file to write")

    estimate = command(
        "plan", plan_command.run, "estimate what training costs here", plan_command.DESCRIPTION
    )
    plan_command.add_options(estimate)

    completion = command(
        "completion", _completion, "print a script that completes commands", COMPLETION
    )
    completion.add_argument("shell", choices=completions.SHELLS, metavar="SHELL", help="see above")
    return parser


@exit_on_user_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error is one sentence on stderr and exit status 1."""
    parsed = _parser().parse_args(arguments)
    _check_stdout(parsed)
    try:
        with needs(parsed.extra):
            parsed.run(parsed)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe, as in `storyllamas generate | head -1`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.filename is None:
            error.filename = "standard output"
            # Python would try to write the rest at its exit, and fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _check_stdout(parsed: argparse.Namespace) -> None:
    """Check that standard output is open, unless all output goes to a file."""
    if sys.stdout is not None:
        return
    if getattr(parsed, "out", None) is None:
        raise UserError("standard output is closed: connect it to a file, pipe or terminal")
    # Otherwise the next file that is opened would become standard output.
    sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
