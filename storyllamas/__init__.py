"""StoryLlamas: train small Llama 3 models on children's stories and run them in pure C."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storyllamas.engine.engine import Engine
    from storyllamas.errors import UserError

__all__ = ["Engine", "UserError"]


def __getattr__(name: str) -> object:
    """Import on first use, so that a program without `Engine` does not load the C engine."""
    if name == "Engine":
        from storyllamas.engine.engine import Engine

        return Engine
    if name == "UserError":
        from storyllamas.errors import UserError

        return UserError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
