"""Fonts for labels in any script."""

from __future__ import annotations

import re
from collections.abc import Iterable

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

_DEFAULT = "DejaVu Sans"
_PLACEHOLDER_FONT = "Last Resort"  # has a box for every character


def families(texts: Iterable[str]) -> tuple[list[str], set[str]]:
    """Choose installed fonts for texts.

    Returns:
        The names of the fonts, and the characters that no installed font has.
    """
    missing = set("".join(texts)) - _characters(font_manager.findfont(_DEFAULT))
    names = [_DEFAULT]
    fonts: dict[str, str] = {}
    if missing:
        for font in font_manager.fontManager.ttflist:
            is_plain = font.style == "normal" and font.weight == 400
            if is_plain and _PLACEHOLDER_FONT not in font.name:
                fonts.setdefault(font.name, font.fname)
    found = {name: _characters(path) & missing for name, path in sorted(fonts.items())}
    while missing and (best := max(found, key=lambda name: len(found[name] & missing), default="")):
        if not found[best] & missing:
            break
        names.append(best)
        missing -= found[best]
    return names, missing


def spelled(text: str, missing: set[str]) -> str:
    """Replace each missing character by its code point, such as U+4E00."""
    parts = re.findall(f"[{re.escape(''.join(sorted(missing)))}]|.", text) if missing else [text]
    words = [f" U+{ord(part):04X} " if part in missing else part for part in parts]
    return " ".join("".join(words).split())


def _characters(path: str) -> set[str]:
    try:
        return set(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):
        return set()  # a damaged font file
