"""Merge what overrides: `shape` into a size, and a size and `train` into a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from storyllamas.errors import UserError
from storyllamas.params.sections import RUN_KEYS, FineTuning, Recipe, Sections, Size
from storyllamas.params.validate import check_key, show, validate


def recipe_sizes(file: Sections, name: str) -> dict[str, Any]:
    """Return the values of a recipe for each size that it has."""
    recipe = file.recipes[name]
    for key, value in recipe.items():
        if key not in ("defaults", "sizes"):
            raise UserError(f"recipes.{name}.{key} is unknown: use defaults or sizes")
        if not isinstance(value, dict):
            raise UserError(f"recipes.{name}.{key} is {show(value)}: use keys with values")
    sizes: dict[str, Any] = recipe.get("sizes", {})
    for model, values in sizes.items():
        check_key(f"a key of recipes.{name}.sizes", model, file.sizes, "sizes")
        if not isinstance(values, dict):
            raise UserError(f"recipes.{name}.sizes.{model} is {show(values)}: use keys with values")
    return sizes


def check_has_size(file: Sections, size: str, cause: str = "") -> None:
    """Check that the chosen recipe has values for a size; `cause` begins the message."""
    sizes = recipe_sizes(file, file.recipe)
    if size not in sizes:
        raise UserError(
            f"{cause}recipes.{file.recipe}.sizes has no {size}: add it, or use one of "
            f"{', '.join(sizes)}"
        )


def merge_size(file: Sections) -> Size:
    """Merge the chosen size and `shape`."""
    changes = without_none(file.shape)
    origin = {key: f"shape.{key}" for key in changes}
    values = asdict(file.sizes[file.model]) | changes
    size: Size = validate(Size, values, origin, f"sizes.{file.model}")
    return size


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are not empty in params.yaml."""
    return {key: value for key, value in values.items() if value is not None}


def merge_recipe(file: Sections, name: str, model: str) -> Recipe:
    """Merge the defaults, the values of the size and, for the chosen run, `train`."""
    chosen = (name, model) == (file.recipe, file.model)
    missing = f"recipes.{name}.sizes.{model}"
    layers = {
        f"recipes.{name}.defaults": file.recipes[name].get("defaults", {}),
        missing: file.recipes[name]["sizes"][model],
    }
    if chosen:
        layers["train"] = {
            key: value for key, value in without_none(file.train).items() if key not in RUN_KEYS
        }
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for prefix, layer in layers.items():
        values |= layer
        origin |= {key: f"{prefix}.{key}" for key in layer}
    recipe: Recipe = validate(Recipe, values, origin, missing)
    if chosen:
        _check_step(recipe, file.sizes[model].context, origin.__getitem__, "shape.context")
    return recipe


def teacher_recipe(
    file: Sections, recipe: Recipe, recipes: Mapping[tuple[str, str], Recipe]
) -> Recipe | None:
    """Return the recipe of the teachers that a run trains first; None: it trains none.

    Args:
        file: all sections.
        recipe: that of the run.
        recipes: by their name and the size.
    """
    size = recipe.teacher_size or file.model
    if not recipe.teachers:
        return None
    check_key("teacher_size", size, file.sizes, "sizes")
    check_has_size(file, size, f"teacher_size is {size} and ")
    steps = recipe.teacher_steps or recipe.steps
    own = recipe if size == file.model else recipes[file.recipe, size]
    names = "{} of the teachers, " + size + ","
    _check_step(own, file.sizes[size].context, names.format, f"sizes.{size}.context")
    return replace(own, teacher_steps=steps).teacher()


def keys_of_train(kind: type[Any], file: Sections) -> Any:
    """Return the keys of `train` that are fields of `kind`."""
    names = {field.name for field in fields(kind)}
    values = {k: v for k, v in without_none(file.train).items() if k in names}
    return validate(kind, values, {}, "train")


def slow_down(recipe: Recipe, file: Sections, fine_tuning: FineTuning) -> Recipe:
    """Lower the recipe's learning rate if there is a start; one that `train` sets stays."""
    if not fine_tuning.start or file.train.get("learning_rate") is not None:
        return recipe
    return replace(recipe, learning_rate=recipe.learning_rate * fine_tuning.start_lr_scale)


def _check_step(recipe: Recipe, context: int, name: Callable[[str], str], source: str) -> None:
    """Check that a step has whole sequences.

    Args:
        recipe: the values to check.
        context: tokens of a sequence.
        name: returns what a message calls a key of the recipe.
        source: what a message calls the context.
    """
    if recipe.tokens_per_step % context:
        raise UserError(
            f"{name('tokens_per_step')} is {recipe.tokens_per_step}: use a multiple of the context "
            f"({context})"
        )
    if recipe.half_context and context % 2:
        raise UserError(
            f"{name('half_context')} is {recipe.half_context}: use a {source} that is even, or 0 "
            f"(it is {context})"
        )
