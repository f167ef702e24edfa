"""Check values against a dataclass; an error names the full key of the value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import date
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from storyllamas.errors import UserError
from storyllamas.yaml_loader import shorten


def check_plain(value: object, name: str) -> None:
    """Check that JSON can represent a value, so that pydantic can."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            section = name or "params.yaml"
            if not isinstance(key, str):
                raise UserError(f"the key {show(key)} of {section} is not text: use a name")
            if len(key) > 100:
                raise UserError(f"the key {show(key)} of {section} is longer than 100 characters")
            check_plain(key, f"a key of {section}")
            check_plain(item, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_plain(item, f"{name}.{index}")
    elif isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(f"{name} is {show(value)}: remove the half of a surrogate pair")
    elif isinstance(value, int):
        if value.bit_length() > 64:
            raise UserError(f"{name} is a number of {value.bit_length()} bits: use at most 64")
    elif not isinstance(value, float | date | None):
        raise UserError(f"{name} is a {type(value).__name__}: use text, a number or a list")


def show(value: object) -> str:
    """Return a value as a message shows it: as Python writes it, and short."""
    return shorten(repr(value))


def check_key(name: str, key: str, table: Mapping[str, object], table_name: str) -> None:
    """Check that `key`, the value of `name`, is a key of the table."""
    if key not in table:
        raise UserError(f"{name} is {show(key)}: use one of {', '.join(table)} ({table_name})")


def validate(kind: type[Any], value: object, origin: Mapping[str, str], parent: str = "") -> Any:
    """Check a value with pydantic; report the first error with its full name.

    Args:
        kind: a dataclass of pydantic.
        value: its fields, of plain types.
        origin: the full keys of fields that stand elsewhere in params.yaml.
        parent: the section of the other fields.

    Raises:
        UserError: a value is unknown, missing or impossible.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        name = ".".join(path)
        if path and path[0] in origin:
            name = ".".join([origin[path[0]], *path[1:]])
        elif parent:
            name = f"{parent}.{name}"
        if first["type"] == "missing":
            raise UserError(f"{name} is missing: add it to params.yaml") from None
        if first["type"] == "unexpected_keyword_argument":
            known = ", ".join(_known_keys(kind, path[:-1]))
            raise UserError(f"{name} is unknown: use one of {known}") from None
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise UserError(f"{name or 'params.yaml'} is {show(first['input'])}: {reason}") from None


def _known_keys(kind: Any, path: list[str]) -> list[str]:
    """Return the keys of the section that a path from `kind` leads to."""
    for part in path:
        kind = get_type_hints(kind)[part] if is_dataclass(kind) else get_args(kind)[1]
    return [field.name for field in fields(kind)]
