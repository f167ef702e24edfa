"""The cast of a story: for each role, a row of a table with a name and properties.

A role `toy` fills the slots `toy` (its name) and `toy.COLUMN` for each column of its table. A role
with a pronoun also has `him`, `his`, `himself`, `child` (boy or girl) and `sibling`. The pronouns
of the role `hero` are also in the slots `{he}`, `{him}`, `{his}` and `{himself}`.
"""

from __future__ import annotations

from collections.abc import Mapping

from storyllamas.corpus.storybook.grammar import RenderContext
from storyllamas.corpus.storybook.plot import Table

_PRONOUNS = {
    "he": {"him": "him", "his": "his", "himself": "himself", "child": "boy", "sibling": "brother"},
    "she": {"him": "her", "his": "her", "himself": "herself", "child": "girl", "sibling": "sister"},
}


def draw_cast(
    context: RenderContext, roles: Mapping[str, str | Table], tables: Mapping[str, Table]
) -> None:
    """Fill the context's slots for every role, without repeating a name or a kind of animal."""
    taken: set[str] = set()
    for role, source in roles.items():
        drawn = _draw(context, source, tables)
        while taken & _exclusive(drawn):
            drawn = _draw(context, source, tables)
        taken |= _exclusive(drawn)
        if "he" in drawn:
            drawn |= _PRONOUNS[drawn["he"]]
        context.slots[role] = drawn["name"]
        context.slots |= {f"{role}.{key}": value for key, value in drawn.items()}
        if role == "hero":
            context.slots |= {key: drawn[key] for key in ("he", "him", "his", "himself")}


def _draw(
    context: RenderContext, source: str | Table, tables: Mapping[str, Table]
) -> dict[str, str]:
    """Draw a row of a table; an animal has a row of names and one of kinds.

    A being is a child or an animal.
    """
    if source == "being":
        source = "child" if context.below(5) < 3 else "animal"
    if source == "animal":
        return _draw(context, "animal name", tables) | _draw(context, "animal kind", tables)
    rows = tables[source] if isinstance(source, str) else source
    row = rows[context.below(len(rows))]
    return {key: cell.text(context) for key, cell in row.items()}


def _exclusive(drawn: Mapping[str, str]) -> set[str]:
    """Return the properties that no other role may have."""
    return {drawn["name"], drawn.get("kind", "")} - {"", "girl", "boy"}
