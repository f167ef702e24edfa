"""A package that is not installed is a sentence with the command that installs it."""

from __future__ import annotations

import pytest

from storyllamas.errors import UserError
from storyllamas.extras import needs


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        ("torch", "torch is not installed: run `pip install 'storyllamas[train]'`"),
        ("yaml.nodes", "pyyaml is not installed: run `pip install 'storyllamas[train]'`"),
        ("google", "protobuf is not installed: run `pip install 'storyllamas[train]'`"),
        ("fcntl", "Python's module fcntl does not exist on linux: use Linux or macOS"),
    ],
)
def test_a_missing_module_is_a_sentence(
    module: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(UserError) as raised, needs("train"):
        raise ModuleNotFoundError(name=module)
    assert str(raised.value) == sentence


@pytest.mark.parametrize("module", ["storyllamas.nothing", None])
def test_a_mistake_in_the_package_stays_one(module: str | None) -> None:
    with pytest.raises(ModuleNotFoundError), needs("train"):
        raise ModuleNotFoundError(name=module)
