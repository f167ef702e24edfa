"""The parameters of the workspace, and how another experiment differs, which DVC says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storyllamas.errors import UserError
from storyllamas.report.tables import Cell, Table, cell

WORKSPACE = "workspace"


class Experiments:
    """DVC's view of this folder."""

    def __init__(self) -> None:
        """Open DVC's repository.

        Raises:
            UserError: the folder is in none.
        """
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        try:
            self._repo = Repo(".")
        except DvcException as error:
            raise UserError(f"DVC cannot open this folder ({error}): clone the project") from None

    @property
    def cache(self) -> Path:
        """The folder of the cache."""
        return Path(self._repo.cache.legacy.path)

    def close(self) -> None:
        """Close the repository."""
        self._repo.close()

    def differences(self, base: str) -> list[Table]:
        """Return what differs between another experiment and the workspace: params and metrics.

        Args:
            base: the name of an experiment, a branch, a tag or a commit.

        Raises:
            UserError: there is no such name.
        """
        from dvc.exceptions import DvcException

        try:
            found = {
                "Parameters": self._repo.params.diff(base, WORKSPACE),
                "Metrics": self._repo.metrics.diff(base, WORKSPACE),
            }
        except DvcException as error:
            raise UserError(
                f"BASE is {base!r} and names no experiment, branch, tag or commit ({error}): "
                "choose a name that `dvc exp show` lists"
            ) from None
        return [
            _difference(f"{kind} in {file}", base, values)
            for kind, result in found.items()
            for file, values in result.get("diff", {}).items()
        ]


def sections(params: Mapping[str, Any]) -> list[Table]:
    """Return a table for each section of params.yaml, with dotted names."""
    plain = {key: value for key, value in params.items() if not isinstance(value, Mapping)}
    groups = {key: value for key, value in params.items() if isinstance(value, Mapping)}
    first = [_named("params.yaml", plain)] if plain else []
    return first + [_named(key, flat(group, f"{key}.")) for key, group in groups.items()]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted name."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found


def changed(recorded: Mapping[str, Any], params: Mapping[str, Any]) -> list[str]:
    """Return the names of parameters that have other values now than when the run read them."""
    now = flat(params)
    return [name for name, value in flat(recorded).items() if now.get(name) != value]


def _named(caption: str, values: Mapping[str, Any]) -> Table:
    return Table(caption, (), [[Cell(name), cell(value)] for name, value in values.items()])


def _difference(caption: str, base: str, values: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        [Cell(name), cell(each.get("old")), cell(each.get("new"))] for name, each in values.items()
    ]
    return Table(caption, ("", base, WORKSPACE), rows)
