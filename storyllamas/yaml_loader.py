"""YAML as DVC reads it: scalars of YAML 1.2, in which 010 is ten and `no` is text.

PyYAML parses the text. Its own rules for scalars are those of YAML 1.1.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from storyllamas.errors import UserError

MAX_DEPTH = 50
"""The deepest nesting of lists and mappings, aliases included."""

MAX_VALUES = 100_000
"""The largest number of values, those behind aliases counted wherever they appear."""

_PREFIX = "tag:yaml.org,2002:"
_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "float": (
        r"[-+]?[0-9][0-9_]*\.[0-9_]*([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.[0-9_]+([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "int": (r"[-+]?(0b[01_]+|0o?[0-7_]+|[0-9_]+|0x[0-9a-fA-F_]+)", "-+0123456789"),
    "merge": (r"<<", "<"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "timestamp": (
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt]|[ \t]+)[0-9]{1,2}"
        r":[0-9]{2}:[0-9]{2}(\.[0-9]*)?([ \t]*(Z|[-+][0-9]{1,2}(:[0-9]{2})?))?",
        "0123456789",
    ),
    "value": (r"=", "="),
}
"""The pattern of each type and the characters that its scalars begin with, as in ruamel.yaml."""


def loads(text: str, name: str) -> Any:
    """Parse a YAML document.

    Args:
        text: the document.
        name: the name of the file, for messages.

    Raises:
        UserError: the text is not YAML, a key is not text or appears twice, or the values are too
            many or nested too deeply.
    """
    try:
        loader = _Loader(text, name)
        node = loader.get_single_node()
        if loader.yaml_version not in (None, (1, 2)):
            raise UserError(f"{name} has a %YAML directive for version 1.1: remove the line")
        if node is None:
            return None
        _check_size(node, name)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not YAML: {' '.join(str(error).split())}") from None


class _Loader(yaml.SafeLoader):
    """A loader that also rejects duplicate keys; PyYAML would silently keep the last."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UserError(_too_deep(self.name))
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == _PREFIX + "merge":
                continue
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            line = key_node.start_mark.line + 1
            if key is None or key_node.tag != _PREFIX + "str":
                shown = "" if key is None else f" {shorten(key)}"
                raise UserError(
                    f"the key{shown} in line {line} of {self.name} is not text: "
                    "write a name, or put it in quotes"
                )
            if key in seen:
                raise UserError(
                    f"{self.name} gives {shorten(repr(key))} twice, again in line {line}: keep one"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        sign, digits = _split_sign(self.construct_scalar(node))
        base = {"0b": 2, "0o": 8, "0x": 16}.get(digits[:2])
        try:
            return sign * (int(digits[2:], base) if base else int(digits))
        except ValueError:
            raise self._error(node, "whole number of at most 4,300 digits") from None

    def construct_float(self, node: yaml.ScalarNode) -> float:
        sign, digits = _split_sign(self.construct_scalar(node).lower())
        try:
            return sign * float(digits.replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            raise self._error(node, "number") from None

    def construct_time(self, node: yaml.ScalarNode) -> Any:
        try:
            return self.construct_yaml_timestamp(node)
        except (ValueError, AttributeError):
            raise self._error(node, "date") from None

    def _error(self, node: yaml.ScalarNode, kind: str) -> UserError:
        line = node.start_mark.line + 1
        return UserError(
            f"{shorten(node.value)} in line {line} of {self.name} is not a {kind}: "
            "correct it, or put it in quotes"
        )


_Loader.yaml_implicit_resolvers = {}
for _type, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_PREFIX + _type, re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor(_PREFIX + "int", _Loader.construct_int)
_Loader.add_constructor(_PREFIX + "float", _Loader.construct_float)
_Loader.add_constructor(_PREFIX + "timestamp", _Loader.construct_time)


def shorten(text: str) -> str:
    """Shorten a value for a message."""
    return text if len(text) <= 60 else f"{text[:57]}…"


def _split_sign(scalar: str) -> tuple[int, str]:
    digits = scalar.replace("_", "")
    return -1 if digits.startswith("-") else 1, digits.lstrip("+-")


def _too_deep(name: str) -> str:
    return f"{name} is nested deeper than {MAX_DEPTH} levels: use fewer"


def _check_size(root: yaml.Node, name: str) -> None:
    """Count values and levels with aliases expanded.

    An alias refers to an earlier node, so that this recursion is as deep as the text is nested.
    """
    sizes: dict[int, tuple[int, int] | None] = {}

    def measure(node: yaml.Node) -> tuple[int, int]:
        if id(node) in sizes:
            known = sizes[id(node)]
            if known is None:
                raise UserError(f"{name} has an alias to a value that contains it: remove it")
            return known
        sizes[id(node)] = None
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        below = [measure(child) for child in children]
        count = 1 + sum(size for size, _ in below)
        depth = 1 + max((levels for _, levels in below), default=0)
        if count > MAX_VALUES:
            raise UserError(f"{name} has more than {MAX_VALUES:,} values: use fewer aliases")
        if depth > MAX_DEPTH:
            raise UserError(_too_deep(name))
        sizes[id(node)] = (count, depth)
        return count, depth

    measure(root)
