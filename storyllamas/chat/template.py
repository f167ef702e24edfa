"""Chat templates: rendered as transformers does, with limits, since strangers write them.

As a module this file has `render`. As a program it is the process of renderer.py: it reads
requests and writes answers, each a line of JSON, with limits on processor time and memory. It
imports nothing of this package, so that the program starts fast and sees little.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_TEXT = 1 << 24
"""Characters of a rendered conversation."""

MAX_SECONDS = 10
"""Seconds of processor time for a conversation."""

MAX_MEMORY = 1 << 30
"""Bytes of address space of the process."""

Message = Mapping[str, str]


class RejectedError(Exception):
    """The template rejects a conversation; the message is the template's own."""


class _Generation(Extension):
    """The tag `generation`, which marks replies for training; its content is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's `namespace`, but without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may pass self=
        this, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(this, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class _Dict:
    """The callable `dict` of templates, without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot have an attribute {name!r}")


def _raise_exception(message: object) -> NoReturn:
    raise RejectedError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


@lru_cache(maxsize=4)
def _compile(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        dict=_Dict(),
        namespace=_Namespace,
    )
    return environment.from_string(template)


def render(
    template: str,
    messages: Sequence[Message],
    tokens: Mapping[str, str],
    add_generation_prompt: bool = True,
) -> str:
    """Render a conversation with the sandbox of Jinja, as transformers' `apply_chat_template` does.

    Args:
        template: the chat template.
        messages: the conversation; each message has a role and a content.
        tokens: `bos_token`, `eos_token` and so on, those that the model has.
        add_generation_prompt: end with the beginning of a reply.

    Raises:
        RejectedError: the template rejects the conversation.
        ValueError: the text is longer than `MAX_TEXT`.
        Exception: any error of the template.
    """
    chunks, length = [], 0
    values: dict[str, Any] = {"messages": messages, "tools": None, "documents": None, **tokens}
    values["add_generation_prompt"] = add_generation_prompt
    for chunk in _compile(template).generate(values):
        length += len(chunk)
        if length > MAX_TEXT:
            raise ValueError(f"it makes a text of more than {MAX_TEXT:,} characters")
        chunks.append(chunk)
    return "".join(chunks)


# ---- The program ---------------------------------------------------------------------------------


def _describe(error: BaseException, memory: int) -> str:
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    if isinstance(error, MemoryError):
        return f"it needs more than {memory >> 20} MiB of memory"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error) or type(error).__name__


def _answer(request: dict[str, Any], memory: int) -> dict[str, str]:
    try:
        return {"text": render(**request)}
    except RejectedError as error:
        return {"rejected": str(error)}
    except Exception as error:
        return {"error": _describe(error, memory)}


def _limit_memory(memory: int) -> None:
    with suppress(ValueError, OSError):  # some systems have no such limit
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def _limit_time(seconds: int) -> None:
    """Let the system kill this process once it has used more time than until now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + 1 + seconds
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


def _serve(seconds: int, memory: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_memory(memory)
    for line in sys.stdin:
        _limit_time(seconds)
        print(json.dumps(_answer(json.loads(line), memory)), flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
