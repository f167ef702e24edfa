"""The chat template and the extra EOS ids in a weight file. See weight_file.py for the layout."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from storyllamas.errors import UserError
from storyllamas.slm.header import Header
from storyllamas.slm.limits import MAX_CHAT_TEMPLATE
from storyllamas.slm.tiles import UInt8
from storyllamas.vocabulary import Vocabulary


class DamagedChatError(ValueError):
    """A chat section is damaged; the message says why."""


def section_bytes(header: Header) -> int:
    """Return the size of the section, without the padding after it."""
    return 4 * header.extra_eos_count + header.chat_template_bytes


def fields(vocabulary: Vocabulary) -> tuple[int, int]:
    """Return the header's extra_eos_count and chat_template_bytes."""
    return len(vocabulary.extra_eos_ids), len(vocabulary.chat_template.encode())


def pack(vocabulary: Vocabulary) -> bytes:
    """Return the section's bytes.

    Raises:
        UserError: the template is longer than `MAX_CHAT_TEMPLATE` bytes.
    """
    template = vocabulary.chat_template.encode()
    if len(template) > MAX_CHAT_TEMPLATE:
        raise UserError(
            f"the chat template has {len(template)} bytes and may have {MAX_CHAT_TEMPLATE}: "
            "remove it or give a shorter one"
        )
    return np.array(vocabulary.extra_eos_ids, "<u4").tobytes() + template


def unpack(header: Header, section: UInt8, vocabulary: Vocabulary) -> Vocabulary:
    """Return the vocabulary with the extra EOS ids and the template of a section.

    Raises:
        DamagedChatError: the section contradicts the header, or its template is not UTF-8.
    """
    end = 4 * header.extra_eos_count
    ids = section[:end].view("<u4").astype(np.int64)
    if (ids >= header.vocab_size).any() or (np.diff(ids) <= 0).any() or header.eos_id in ids:
        raise DamagedChatError("its extra EOS ids are out of range or do not rise")
    try:
        template = section[end:].tobytes().decode()
    except UnicodeDecodeError:
        raise DamagedChatError("its chat template is not valid UTF-8") from None
    return replace(vocabulary, extra_eos_ids=tuple(ids.tolist()), chat_template=template)
