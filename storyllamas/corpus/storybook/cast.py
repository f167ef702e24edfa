"""Who and what plays in a story: each role is drawn from a table and brings its properties along.

A role `toy` fills the slots `toy` (its name) and `toy.COLUMN` for each column of its table. One
that has a pronoun also has `him`, `his`, `himself`, `child` (boy or girl) and `sibling`; of the
role `hero` those are at hand as `{he}`, `{him}`, `{his}` and `{himself}` too.
"""

from __future__ import annotations

from collections.abc import Mapping

from storyllamas.corpus.storybook.grammar import Teller
from storyllamas.corpus.storybook.plot import Table

_PRONOUNS = {
    "he": {"him": "him", "his": "his", "himself": "himself", "child": "boy", "sibling": "brother"},
    "she": {"him": "her", "his": "her", "himself": "herself", "child": "girl", "sibling": "sister"},
}


def draw_cast(
    teller: Teller, roles: Mapping[str, str | Table], tables: Mapping[str, Table]
) -> None:
    """Fill the teller's slots for every role; no two roles share a name, no two animals a kind."""
    taken: set[str] = set()
    for role, source in roles.items():
        drawn = _draw(teller, source, tables)
        while taken & _marks(drawn):
            drawn = _draw(teller, source, tables)
        taken |= _marks(drawn)
        if "he" in drawn:
            drawn |= _PRONOUNS[drawn["he"]]
        teller.slots[role] = drawn["name"]
        teller.slots |= {f"{role}.{key}": value for key, value in drawn.items()}
        if role == "hero":
            teller.slots |= {key: drawn[key] for key in ("he", "him", "his", "himself")}


def _draw(teller: Teller, source: str | Table, tables: Mapping[str, Table]) -> dict[str, str]:
    """A row of a table; an animal has a row of names and one of kinds, a being is either."""
    if source == "being":
        source = "child" if teller.below(5) < 3 else "animal"
    if source == "animal":
        return _draw(teller, "animal name", tables) | _draw(teller, "animal kind", tables)
    rows = tables[source] if isinstance(source, str) else source
    row = rows[teller.below(len(rows))]
    return {key: cell.text(teller) for key, cell in row.items()}


def _marks(drawn: Mapping[str, str]) -> set[str]:
    """What no other role may have too."""
    return {drawn["name"], drawn.get("kind", "")} - {"", "girl", "boy"}
