"""The chat template and the EOS ids of a folder that transformers loads.

transformers writes the template to chat_template.jinja. Before, it stood in tokenizer_config.json,
as a text or as a list of named ones. The one called "default" is for conversations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from storyllamas.errors import UserError
from storyllamas.slm.limits import MAX_CHAT_TEMPLATE
from storyllamas.tokenizer import tokenizer_json
from storyllamas.vocabulary import Vocabulary

DEFAULT = "default"


def read(folder: Path, config: Mapping[str, Any], vocabulary: Vocabulary) -> Vocabulary:
    """Return a vocabulary with the chat template and the extra EOS ids of a folder.

    Args:
        folder: the folder.
        config: its config.json.
        vocabulary: its tokenizer.

    Raises:
        UserError: the template is not text or too long, or a file is damaged.
    """
    generation = _optional(folder / "generation_config.json")
    named = [config.get("eos_token_id"), generation.get("eos_token_id")]
    return replace(
        vocabulary,
        chat_template=_template(folder),
        extra_eos_ids=extra_eos_ids(vocabulary, named),
    )


def extra_eos_ids(vocabulary: Vocabulary, named: list[Any]) -> tuple[int, ...]:
    """Return the ids that end a sequence besides eos_id, rising.

    Args:
        vocabulary: the tokenizer.
        named: what files name: an id, a list of ids, or anything else, which counts as none.
    """
    flat = [id_ for value in named for id_ in (value if isinstance(value, list) else [value])]
    count = len(vocabulary.pieces)
    ids = {id_ for id_ in flat if type(id_) is int and 0 <= id_ < count}
    return tuple(sorted(ids - {vocabulary.eos_id}))


def check_template(where: str, template: object) -> str:
    """Return a chat template if a weight file can hold it; "" for None.

    Raises:
        UserError: it is not text, not Unicode, or too long.
    """
    if template is None:
        return ""
    if not isinstance(template, str):
        raise UserError(f"the chat template in {where} is {template!r:.40} and must be text")
    try:
        size = len(template.encode())
    except UnicodeEncodeError:
        raise UserError(f"the chat template in {where} is not valid Unicode: repair it") from None
    if size > MAX_CHAT_TEMPLATE:
        raise UserError(
            f"the chat template in {where} has {size} bytes and may have {MAX_CHAT_TEMPLATE}: "
            "remove it or give a shorter one"
        )
    return template


def _template(folder: Path) -> str:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return check_template(str(path), path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
    path = folder / "tokenizer_config.json"
    template = _optional(path).get("chat_template")
    if isinstance(template, list):
        named = {each["name"]: each.get("template") for each in template if _is_named(each)}
        template = named.get(DEFAULT)
    return check_template(str(path), template)


def _is_named(value: object) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("name"), str)


def _optional(path: Path) -> dict[str, Any]:
    return tokenizer_json.load(path) if path.is_file() else {}
