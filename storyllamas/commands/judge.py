"""The command `storyllamas judge`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING, Any

from storyllamas.argument_types import named_path, positive, real, whole
from storyllamas.errors import UserError

if TYPE_CHECKING:
    from storyllamas.judge.questions import Question
    from storyllamas.judge.run import Judge
    from storyllamas.judge.summary import ComparisonSummary, GradesSummary

SUMMARY = "ask a large language model to grade or compare stories"

DESCRIPTION = """\
Ask a large language model to grade stories, as the TinyStories paper does, or to choose the better
one of two models' stories for the same prompt, in both orders.

STORIES is a file that `storyllamas generate --out` wrote. The judge is any model behind an
OpenAI-compatible chat endpoint. Prompts and stories are sent there and nowhere else.

The number of requests and tokens, and the cost if you give prices, are printed first. Nothing is
sent until you agree, or give --yes. Answers are kept as they arrive, in .storyllamas/judge, so that
the same command asks nothing twice and resumes after an interruption. See docs/judge.md.
"""

EXTRA = "judge"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "stories", type=named_path, metavar="STORIES", help="file of generated stories"
    )
    parser.add_argument(
        "--against",
        type=named_path,
        metavar="FILE",
        help="compare with the stories of another model, which has the same prompts",
    )
    parser.add_argument(
        "--endpoint",
        required=True,
        metavar="URL",
        help="base address of the endpoint, such as http://127.0.0.1:8000/v1",
    )
    parser.add_argument(
        "--judge", required=True, metavar="NAME", help="name of the judge at the endpoint"
    )
    parser.add_argument(
        "--key-variable",
        metavar="NAME",
        help="environment variable with the endpoint's key; without it, no key is sent",
    )
    parser.add_argument(
        "--count", type=positive, metavar="N", help="judge the first N stories of each file"
    )
    _add_question_options(parser)
    _add_request_options(parser)
    parser.add_argument(
        "--answers",
        type=named_path,
        metavar="FILE",
        help="write all answers to FILE at the end; its answers are not asked for again",
    )
    parser.add_argument("--out", type=named_path, metavar="FILE", help="write the result as JSON")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--yes", action="store_true", help="start without a question")


def _add_question_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide what is asked."""
    parser.add_argument(
        "--repeats",
        type=positive,
        default=1,
        metavar="N",
        help="ask each question N times, with a seed of its own each; give a --temperature above "
        "0, too (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=whole, default=1, metavar="N", help="first seed (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature", type=real, default=0, metavar="X", help="0 and up (default: %(default)s)"
    )
    parser.add_argument(
        "--max-tokens",
        type=positive,
        default=500,
        metavar="N",
        help="tokens of an answer at most (default: %(default)s)",
    )
    parser.add_argument(
        "--body",
        type=_fields,
        default={},
        metavar="JSON",
        help="""fields to change in each request, such as '{"seed": null}'; null leaves one out""",
    )


def _add_request_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide how it is asked, and at what price."""
    parser.add_argument(
        "--concurrency",
        type=positive,
        default=4,
        metavar="N",
        help="questions that are asked at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=_above_zero,
        default=120,
        metavar="X",
        help="seconds to wait for an answer (default: %(default)s)",
    )
    for direction in ("in", "out"):
        parser.add_argument(
            f"--price-{direction}",
            type=_price,
            default=0,
            metavar="X",
            help=f"price of a million tokens {direction}, in any currency",
        )


def _fields(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    if taken := {"messages", "model", "stream"} & fields.keys():
        raise argparse.ArgumentTypeError(f"the field {min(taken)} cannot be changed: leave it out")
    return fields


def _price(text: str) -> float:
    value = real(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return value


def _above_zero(text: str) -> float:
    value = real(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def run(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        UserError: a file or the endpoint cannot be used, or the user does not agree.
    """
    from storyllamas.judge import stories, summary
    from storyllamas.judge.run import comparisons, gradings

    judge = _judge(arguments)
    own = stories.read(arguments.stories, arguments.count)
    result: GradesSummary | ComparisonSummary | None
    if arguments.against is None:
        graded = gradings(own, judge.settings)
        every: list[Question[Any]] = list(chain.from_iterable(graded))
        _ask(arguments, judge, every)
        result = summary.of_grades([[judge.answer(each) for each in story] for story in graded])
    else:
        others = stories.read(arguments.against, arguments.count)
        pairs = stories.pairs(own, others)
        if not pairs:
            raise UserError(
                f"{arguments.stories} and {arguments.against} have no prompt in common: generate "
                "both with the same --prompts"
            )
        if len(pairs) < max(len(own), len(others)):
            _note(f"{len(pairs):,} stories have a partner of the same prompt; the others are out")
        compared = comparisons(pairs, judge.settings)
        every = [each for pair in compared for both in pair for each in both]
        _ask(arguments, judge, every)
        result = summary.of_comparisons(
            [[(judge.answer(one), judge.answer(two)) for one, two in pair] for pair in compared]
        )
    if arguments.answers:
        judge.answers.write(arguments.answers, map(judge.key, every))
    if result is None:
        raise UserError(
            f"{arguments.judge} gives no usable answer: raise --max-tokens or ask another judge"
        )
    _report(arguments, result)


def _judge(arguments: argparse.Namespace) -> Judge:
    from storyllamas.judge.answers import Answers, default_journal
    from storyllamas.judge.endpoint import Endpoint, RetrySettings
    from storyllamas.judge.run import Judge, Settings

    key = ""
    if arguments.key_variable:
        key = os.environ.get(arguments.key_variable, "").strip()
        if not key:
            raise UserError(
                f"the environment variable {arguments.key_variable} is not set: set it to the key "
                "of the endpoint"
            )
    retries = RetrySettings(timeout=arguments.timeout)
    settings = Settings(
        arguments.judge,
        arguments.seed,
        arguments.repeats,
        arguments.temperature,
        arguments.max_tokens,
        arguments.body,
    )
    endpoint = Endpoint(arguments.endpoint, key, retries, note=_note)
    return Judge(endpoint, settings, Answers(default_journal(), arguments.answers))


def _ask(arguments: argparse.Namespace, judge: Judge, questions: Sequence[Question[Any]]) -> None:
    """Ask the questions that have no usable answer yet, if the user agrees."""
    from storyllamas.judge.cost import Estimate, Prices

    missing = [each for each in questions if judge.answer(each) is None]
    _note(f"{len(questions):,} questions, {len(questions) - len(missing):,} answered before")
    if not missing:
        return
    prices = Prices(arguments.price_in, arguments.price_out)
    estimate = Estimate.of([each.text for each in missing], arguments.max_tokens)
    _note(f"{estimate.describe(prices)}, to {judge.settings.model} at {judge.endpoint.url}")
    if not arguments.yes:
        _confirm()
    try:
        unusable = judge.ask(missing, arguments.concurrency, _progress(len(missing)))
    finally:
        _note_usage(judge, missing, prices)
    if unusable:
        _note(
            f"{len(unusable):,} questions have no usable answer ({unusable[0]}); the same command "
            "asks them again"
        )


def _confirm() -> None:
    """Ask the user at the terminal.

    Raises:
        UserError: the user does not agree, or there is no terminal.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise UserError("nothing is sent yet: give --yes to start")
    print("Start? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UserError("nothing is sent")


def _progress(total: int) -> Any:
    """Return a function that shows the number of finished questions at a terminal."""

    def show(finished: int) -> None:
        if sys.stderr and sys.stderr.isatty():
            end = "\n" if finished == total else "\r"
            print(f"{finished:,} of {total:,}", end=end, file=sys.stderr, flush=True)

    return show


def _note_usage(judge: Judge, questions: Sequence[Question[Any]], prices: Any) -> None:
    """Print what was used, as the server counted it."""
    kept = [answer for each in questions if (answer := judge.answers.get(judge.key(each)))]
    tokens = [sum(each.tokens_in for each in kept), sum(each.tokens_out for each in kept)]
    text = f"{len(kept):,} answers kept, {tokens[0]:,} tokens in, {tokens[1]:,} tokens out"
    _note(f"{text}, which cost {prices.cost(*tokens):,.2f}" if prices else text)


def _report(arguments: argparse.Namespace, result: GradesSummary | ComparisonSummary) -> None:
    """Print the result, and write it to a file if one is given."""
    from storyllamas.atomic import write_json
    from storyllamas.rounding import six_digits

    facts = six_digits({"judge": arguments.judge, **asdict(result)})
    if arguments.out:
        write_json(arguments.out, facts)
    if arguments.json:
        print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        print(f"{name:16} {_cell(value)}")


def _cell(value: Any) -> str:
    if isinstance(value, dict) and "mean" in value:
        return f"{value['mean']:.2f} ± {value['standard_error']:.2f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {share:.0%}" for name, share in value.items())
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _note(text: str) -> None:
    if sys.stderr:
        sys.stderr.write(f"{text}\n")  # in one piece, since threads write, too
