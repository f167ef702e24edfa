"""Every kind of model that can be imported: logits and token ids are those of its own program."""

from __future__ import annotations

from pathlib import Path

import imports
import pytest

KINDS = imports.kinds()


@pytest.mark.parametrize("kind", KINDS, ids=[f"{kind.format}: {kind.name}" for kind in KINDS])
def test_logits_and_token_ids(tmp_path: Path, kind: imports.Kind) -> None:
    if not kind.is_runnable:
        pytest.skip(f"{kind.reference.__name__} is not installed: see `make interop`")
    result = imports.compare(kind, tmp_path)
    assert result.difference <= imports.FLOAT32
    assert result.equal == result.texts


def test_models_of_other_people(shared: Path, tmp_path: Path) -> None:
    for number, kind in enumerate(imports.checkpoints(shared / "checkpoints")):
        if kind.is_runnable:
            (folder := tmp_path / str(number)).mkdir()
            assert imports.compare(kind, folder).is_good, kind.name


def test_greedy_stories_of_other_people(shared: Path) -> None:
    for name, is_equal in imports.stories(shared / "checkpoints"):
        assert is_equal, name
