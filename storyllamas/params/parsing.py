"""Merge the sections of params.yaml, and check them against each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from storyllamas.config import ModelConfig
from storyllamas.errors import UserError
from storyllamas.interop.formats import FORMATS
from storyllamas.params.merge import (
    check_has_size,
    keys_of_train,
    merge_recipe,
    merge_size,
    recipe_sizes,
    slow_down,
    teacher_recipe,
    without_none,
)
from storyllamas.params.sections import (
    Distillation,
    FineTuning,
    Params,
    Sections,
    Tokenizer,
)
from storyllamas.params.validate import check_key, check_plain, validate
from storyllamas.slm.encoding import SPECS, Encoding
from storyllamas.training import freezing


def parse(raw: object) -> Params:
    """Check parameters with the structure of params.yaml.

    Raises:
        UserError: a value is unknown or impossible.
    """
    check_plain(raw, "")
    file: Sections = validate(Sections, raw, {})
    check_key("model", file.model, file.sizes, "sizes")
    check_key("recipe", file.recipe, file.recipes, "recipes")
    file.sizes[file.model] = merge_size(file)
    for name, size in file.sizes.items():
        if size.heads % size.kv_heads:
            changed = name == file.model and "kv_heads" in without_none(file.shape)
            section = "shape" if changed else f"sizes.{name}"
            raise UserError(
                f"{section}.kv_heads is {size.kv_heads}: use a divisor of heads ({size.heads})"
            )
    _check_group_sizes(file.export.group_size)
    _check_tokenizer(file.tokenizer, file.export.formats)
    recipes = {
        (name, model): merge_recipe(file, name, model)
        for name in file.recipes
        for model in recipe_sizes(file, name)
    }
    check_has_size(file, file.model)
    fine_tuning: FineTuning = keys_of_train(FineTuning, file)
    distillation: Distillation = keys_of_train(Distillation, file)
    recipe = recipes[file.recipe, file.model]
    context = file.sizes[file.model].context
    if file.evaluation.speed_tokens >= context:
        raise UserError(
            f"evaluation.speed_tokens is {file.evaluation.speed_tokens}: use less than "
            f"the context of the model ({context})"
        )
    chosen = Params(
        model=file.model,
        recipe_name=file.recipe,
        seed=file.seed,
        sizes=file.sizes,
        recipe=slow_down(recipe, file, fine_tuning),
        fine_tuning=fine_tuning,
        distillation=distillation,
        corpus=file.corpus,
        tokenizer=file.tokenizer,
        pretokenize=file.pretokenize,
        compute=file.compute,
        export=file.export,
        evaluation=file.evaluation,
        generation=file.generation,
        teacher_recipe=teacher_recipe(file, recipe, recipes),
    )
    _check_fine_tuning(fine_tuning, chosen.model_config())
    _check_distillation(chosen)
    return chosen


def _check_tokenizer(chosen: Tokenizer, formats: Collection[str]) -> None:
    """Check what one kind of tokenizer does not have, before anything is trained with it."""
    if chosen.kind == "sentencepiece":
        return
    for name in formats:
        if FORMATS[name].module == "llama2c":
            raise UserError(
                f"export.formats has {name} and tokenizer.kind is byte_level: llama2.c has "
                "SentencePiece tokenizers only, so remove one of the two"
            )
    if chosen.character_coverage < 1:
        raise UserError(
            f"tokenizer.character_coverage is {chosen.character_coverage}: use 1.0, since "
            "tokenizer.kind is byte_level, which spells every character in bytes"
        )


def _check_group_sizes(group_sizes: Mapping[str, int]) -> None:
    types = {kind.label: kind for kind, spec in SPECS.items() if spec.group_multiple}
    for name in group_sizes:
        if name not in types:
            raise UserError(f"export.group_size.{name} is unknown: use one of {', '.join(types)}")
    for name, kind in types.items():
        if name not in group_sizes:
            raise UserError(f"export.group_size.{name} is missing: add it to params.yaml")
        encoding = Encoding(kind, group_sizes[name])
        if not encoding.is_possible:
            raise UserError(
                f"export.group_size.{name} is {encoding.group_size}: use {encoding.allowed}"
            )


def _check_fine_tuning(chosen: FineTuning, config: ModelConfig) -> None:
    """Check what to freeze and to adapt against the start and the shape of the model."""
    used = f"train.freeze is {', '.join(chosen.freeze)}" if chosen.freeze else ""
    if chosen.lora_rank:
        lora = f"train.lora_rank is {chosen.lora_rank}"
        if used:
            raise UserError(
                f"{used} and {lora}: remove one of the two, since LoRA freezes all weights"
            )
        used = lora
    if used and not chosen.start:
        raise UserError(
            f"{used} and train.start is empty: name a model to start from in train.start"
        )
    freezing.frozen_tensors(chosen.freeze, config)


def _check_distillation(chosen: Params) -> None:
    learned, folds = chosen.distillation, chosen.recipe.teacher_folds
    given = "there is a train.teacher" if learned.teacher else ""
    if folds and given:
        raise UserError(
            f"teacher_folds is {folds} and {given}: use train.teacher_folds=0 to learn from that "
            "one, or empty train.teacher"
        )
    taught = f"teacher_folds is {folds}" if folds else given
    processes = chosen.compute.processes
    if taught and processes > 1:
        raise UserError(
            f"compute.processes is {processes} and {taught}: use 1, since only one process can "
            "learn from a teacher"
        )
    if taught and learned.held_out:
        raise UserError(
            f"train.held_out is {learned.held_out} and {taught}: empty one of them, since a "
            "teacher holds out a fold and its student learns from all stories"
        )
