"""The typed view of params.yaml; an error names the full key of an unknown or impossible value."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from datetime import date
from typing import Annotated, Any, Final, Literal, get_args, get_type_hints

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from storyllamas import yaml_loader
from storyllamas.adapter import TARGETS, Lora
from storyllamas.config import ModelConfig
from storyllamas.errors import UserError
from storyllamas.interop.formats import FORMATS
from storyllamas.regular_file import open_regular
from storyllamas.slm.encoding import GROUP_SIZES, SPECS, Encoding
from storyllamas.training import freezing
from storyllamas.vocabulary import TrainableKind
from storyllamas.yaml_loader import shorten

AUTO: Final = "auto"

Count = Annotated[int, Field(ge=1, le=2**40)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]


def _one_of(names: Collection[str]) -> AfterValidator:
    """Accept only `names`, the keys of another module's table."""

    def check(value: str) -> str:
        if value not in names:
            raise PydanticCustomError("name", "use one of {names}", {"names": ", ".join(names)})
        return value

    return AfterValidator(check)


def _check_micro_batch(value: object) -> int | str:
    """Accept auto and numbers as `Count` does."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    if value == AUTO or (is_number and 1 <= value <= 2**40):  # type: ignore[operator]
        return value  # type: ignore[return-value]
    raise PydanticCustomError("micro_batch", "use auto or a number of sequences from 1 on")


MicroBatch = Annotated[int | Literal["auto"], PlainValidator(_check_micro_batch)]


def _check_part(name: str) -> str:
    """Accept the name of a part that `freeze` may have."""
    if not freezing.is_part(name):
        raise PydanticCustomError("part", "use {names}", {"names": freezing.ALLOWED})
    return name


def _split(value: object) -> object:
    """Turn a list, or a text with commas, into a tuple."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return tuple(value) if isinstance(value, list) else value


_strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, config=_strict)
class Clean:
    """Settings of the cleaning between the source and the corpus files."""

    repair_encoding: bool
    min_words: Annotated[int, Field(ge=0)]
    drop_train_valid_overlap: bool
    drop_duplicates: bool


@dataclass(frozen=True, config=_strict)
class Corpus:
    """The source of the stories."""

    source: Annotated[str, Field(min_length=1)]
    edition: Literal["v1", "v2-gpt4"]
    mirror: str
    stories: Count
    valid_stories: Count
    valid_share: Annotated[float, Field(gt=0, le=0.5)]
    separator: Annotated[str, Field(min_length=1)]
    clean: Clean
    kind: Literal["stories", "instruct"] = "stories"


@dataclass(frozen=True, config=_strict)
class Tokenizer:
    """How to make the tokenizer; the bytes and the special pieces are part of its size."""

    kind: TrainableKind
    vocab_size: Annotated[int, Field(ge=260, le=65536)]
    sample_bytes: Annotated[int, Field(ge=0)]
    character_coverage: Annotated[float, Field(gt=0, le=1)]
    path: str = ""


@dataclass(frozen=True, config=_strict)
class Pretokenize:
    """How to make token files."""

    threads: Annotated[int, Field(ge=0, le=1024)]


@dataclass(frozen=True, config=_strict)
class Size:
    """The shape of a model, without its vocabulary."""

    dim: Annotated[int, Field(ge=1, le=65536)]
    layers: Annotated[int, Field(ge=1, le=1024)]
    heads: Annotated[int, Field(ge=1, le=1024)]
    kv_heads: Annotated[int, Field(ge=1, le=1024)]
    head_dim: Annotated[int, Field(ge=2, le=1024, multiple_of=2)]
    hidden: Annotated[int, Field(ge=1, le=262144)]
    context: Annotated[int, Field(ge=1, le=65536)]
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0
    norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5


@dataclass(frozen=True, config=_strict)
class Recipe:
    """How to train one size; params.yaml describes each value."""

    tokens_per_step: Count
    micro_batch: MicroBatch
    steps: Count
    optimizer: Literal["adamw", "muon"]
    learning_rate: Rate
    embedding_lr_scale: Annotated[float, Field(gt=0, le=100)]
    weight_decay: Share
    dropout: Annotated[float, Field(ge=0, le=0.9)]
    zero_init_residual: bool
    beta1: Annotated[float, Field(ge=0, lt=1)]
    beta2: Annotated[float, Field(ge=0, lt=1)]
    muon_beta2: Annotated[float, Field(ge=0, lt=1)]
    warmup: Share
    stable: Share
    schedule: Literal["cosine", "linear"]
    final_lr_ratio: Share
    grad_clip: Annotated[float, Field(ge=0)]
    eval_every: Count
    eval_sequences: Count


@dataclass(frozen=True, config=_strict)
class Distillation:
    """The models whose probabilities training learns; keys of `train`."""

    teacher: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    teacher_share: Rate = 1.0


@dataclass(frozen=True, config=_strict)
class FineTuning:
    """The model that training starts from; keys of `train`."""

    start: str = ""
    start_lr_scale: Rate = 0.25
    freeze: Annotated[
        tuple[Annotated[str, AfterValidator(_check_part)], ...], BeforeValidator(_split)
    ] = ()
    lora_rank: Annotated[int, Field(ge=0, le=1024)] = 0
    lora_alpha: Annotated[float, Field(gt=0, le=65536)] = 16.0
    lora_targets: Annotated[
        tuple[Annotated[str, _one_of(TARGETS)], ...], BeforeValidator(_split), Field(min_length=1)
    ] = ("attention", "feed_forward")

    @property
    def lora(self) -> Lora | None:
        """The hyperparameters of the adapter; None: LoRA is off."""
        if not self.lora_rank:
            return None
        return Lora(self.lora_rank, self.lora_alpha, self.lora_targets)


RUN_KEYS = {field.name for kind in (FineTuning, Distillation) for field in fields(kind)}
"""The keys of `train` that are not the recipe's."""


@dataclass(frozen=True, config=_strict)
class Compute:
    """The device, precision and processes of the training."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["auto", "float32", "bfloat16"]
    threads: Annotated[int, Field(ge=0, le=1024)]
    compile: Literal["auto", "always", "never"]
    checkpoint_seconds: Annotated[int, Field(ge=1)]
    processes: Annotated[int, Field(ge=1, le=1024)]


@dataclass(frozen=True, config=_strict)
class Export:
    """Which weight files and which files of other programs to write."""

    types: Annotated[list[Annotated[str, _one_of(GROUP_SIZES)]], Field(min_length=1)]
    group_size: dict[str, int]
    calibration_sequences: Annotated[int, Field(ge=0, le=65536)]
    formats: list[Annotated[str, _one_of(FORMATS)]]


@dataclass(frozen=True, config=_strict)
class Evaluation:
    """The number of stories and tokens that the evaluation measures."""

    stories: Count
    prompts: Annotated[list[str], Field(min_length=1)]
    samples: Count
    parity_stories: Count
    speed_tokens: Count


@dataclass(frozen=True, config=_strict)
class Generation:
    """How to generate the sample stories."""

    temperature: Annotated[float, Field(ge=0, le=1000)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_tokens: Count


@dataclass(frozen=True, config=_strict)
class _File:
    """The sections of params.yaml, before overrides are merged into the size and the recipe."""

    model: str
    recipe: str
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    corpus: Corpus
    tokenizer: Tokenizer
    pretokenize: Pretokenize
    sizes: dict[str, Size]
    shape: dict[str, Any]
    recipes: dict[str, dict[str, Any]]
    train: dict[str, Any]
    compute: Compute
    export: Export
    evaluation: Evaluation
    generation: Generation


@dataclass(frozen=True, config=_strict)
class Params:
    """All parameters of a run: the chosen size and recipe, and the other sections."""

    model: str
    recipe_name: str
    seed: int
    sizes: dict[str, Size]
    recipe: Recipe
    fine_tuning: FineTuning
    distillation: Distillation
    corpus: Corpus
    tokenizer: Tokenizer
    pretokenize: Pretokenize
    compute: Compute
    export: Export
    evaluation: Evaluation
    generation: Generation

    @property
    def size(self) -> Size:
        """The chosen size, merged with `shape` of params.yaml."""
        return self.sizes[self.model]

    def model_config(self) -> ModelConfig:
        """Return the full shape of the chosen size."""
        return self.model_config_of(self.model)

    @property
    def training_flops(self) -> int:
        """The floating-point operations of the whole training."""
        per_token = self.model_config().training_flops
        return self.recipe.steps * self.recipe.tokens_per_step * per_token

    def model_config_of(self, name: str) -> ModelConfig:
        """Return the full shape of a size, a key of `sizes`."""
        size = self.sizes[name]
        return ModelConfig(
            dim=size.dim,
            layers=size.layers,
            heads=size.heads,
            kv_heads=size.kv_heads,
            head_dim=size.head_dim,
            hidden=size.hidden,
            context=size.context,
            vocab_size=self.tokenizer.vocab_size,
            rope_theta=size.rope_theta,
            norm_eps=size.norm_eps,
        )


def load(path: str | os.PathLike[str] = "params.yaml") -> Params:
    """Read and check the parameters.

    Raises:
        UserError: the file is missing or not YAML, or a value is unknown or impossible.
    """
    return parse(read(path))


def read(path: str | os.PathLike[str]) -> Any:
    """Read the values of the file without checking them.

    Raises:
        UserError: the file is missing or not YAML.
    """
    try:
        with open_regular(path) as file:
            return loads(file.read().decode(), str(path))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: change to the folder that contains it") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start:,}): convert it"
        ) from None


def loads(text: str, name: str = "params.yaml") -> Any:
    """Parse a text without checking the values; `name` is for messages."""
    return yaml_loader.loads(text, name)


def parse(raw: object) -> Params:
    """Check parameters with the structure of params.yaml.

    Raises:
        UserError: a value is unknown or impossible.
    """
    _check_plain(raw, "")
    file: _File = _validate(_File, raw, {})
    _check_key("model", file.model, file.sizes, "sizes")
    _check_key("recipe", file.recipe, file.recipes, "recipes")
    file.sizes[file.model] = _merge_size(file)
    for name, size in file.sizes.items():
        if size.heads % size.kv_heads:
            changed = name == file.model and "kv_heads" in _without_none(file.shape)
            section = "shape" if changed else f"sizes.{name}"
            raise UserError(
                f"{section}.kv_heads is {size.kv_heads}: use a divisor of heads ({size.heads})"
            )
    _check_group_sizes(file.export.group_size)
    _check_tokenizer(file.tokenizer, file.export.formats)
    recipes = {
        (name, model): _merge_recipe(file, name, model)
        for name in file.recipes
        for model in _recipe_sizes(file, name)
    }
    if (file.recipe, file.model) not in recipes:
        raise UserError(
            f"recipes.{file.recipe}.sizes has no {file.model}: add it, or use one of "
            f"{', '.join(_recipe_sizes(file, file.recipe))}"
        )
    fine_tuning: FineTuning = _keys_of_train(FineTuning, file)
    distillation: Distillation = _keys_of_train(Distillation, file)
    recipe = _slow_down(recipes[file.recipe, file.model], file, fine_tuning)
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
        recipe=recipe,
        fine_tuning=fine_tuning,
        distillation=distillation,
        corpus=file.corpus,
        tokenizer=file.tokenizer,
        pretokenize=file.pretokenize,
        compute=file.compute,
        export=file.export,
        evaluation=file.evaluation,
        generation=file.generation,
    )
    _check_fine_tuning(fine_tuning, chosen.model_config())
    _check_distillation(distillation, file.compute)
    return chosen


def _check_plain(value: object, name: str) -> None:
    """Check that JSON can represent a value, so that pydantic can."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            section = name or "params.yaml"
            if not isinstance(key, str):
                raise UserError(f"the key {_show(key)} of {section} is not text: use a name")
            if len(key) > 100:
                raise UserError(f"the key {_show(key)} of {section} is longer than 100 characters")
            _check_plain(key, f"a key of {section}")
            _check_plain(item, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_plain(item, f"{name}.{index}")
    elif isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(f"{name} is {_show(value)}: remove the half of a surrogate pair")
    elif isinstance(value, int):
        if value.bit_length() > 64:
            raise UserError(f"{name} is a number of {value.bit_length()} bits: use at most 64")
    elif not isinstance(value, float | date | None):
        raise UserError(f"{name} is a {type(value).__name__}: use text, a number or a list")


def _show(value: object) -> str:
    return shorten(repr(value))


def _check_key(name: str, key: str, table: Mapping[str, object], table_name: str) -> None:
    if key not in table:
        raise UserError(f"{name} is {_show(key)}: use one of {', '.join(table)} ({table_name})")


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


def _recipe_sizes(file: _File, name: str) -> dict[str, Any]:
    recipe = file.recipes[name]
    for key, value in recipe.items():
        if key not in ("defaults", "sizes"):
            raise UserError(f"recipes.{name}.{key} is unknown: use defaults or sizes")
        if not isinstance(value, dict):
            raise UserError(f"recipes.{name}.{key} is {_show(value)}: use keys with values")
    sizes: dict[str, Any] = recipe.get("sizes", {})
    for model, values in sizes.items():
        _check_key(f"a key of recipes.{name}.sizes", model, file.sizes, "sizes")
        if not isinstance(values, dict):
            raise UserError(
                f"recipes.{name}.sizes.{model} is {_show(values)}: use keys with values"
            )
    return sizes


def _merge_size(file: _File) -> Size:
    """Merge the chosen size and `shape`."""
    changes = _without_none(file.shape)
    origin = {key: f"shape.{key}" for key in changes}
    values = asdict(file.sizes[file.model]) | changes
    size: Size = _validate(Size, values, origin, f"sizes.{file.model}")
    return size


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _merge_recipe(file: _File, name: str, model: str) -> Recipe:
    """Merge the defaults, the values of the size and, for the chosen run, `train`."""
    chosen = (name, model) == (file.recipe, file.model)
    missing = f"recipes.{name}.sizes.{model}"
    layers = {
        f"recipes.{name}.defaults": file.recipes[name].get("defaults", {}),
        missing: file.recipes[name]["sizes"][model],
    }
    if chosen:
        layers["train"] = {
            key: value for key, value in _without_none(file.train).items() if key not in RUN_KEYS
        }
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for prefix, layer in layers.items():
        values |= layer
        origin |= {key: f"{prefix}.{key}" for key in layer}
    recipe: Recipe = _validate(Recipe, values, origin, missing)
    context = file.sizes[model].context
    if chosen:
        _check_window(recipe, context, origin["tokens_per_step"])
    return recipe


def _keys_of_train(kind: type[Any], file: _File) -> Any:
    """Return the keys of `train` that are fields of `kind`."""
    names = {field.name for field in fields(kind)}
    values = {k: v for k, v in _without_none(file.train).items() if k in names}
    return _validate(kind, values, {}, "train")


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


def _check_distillation(chosen: Distillation, compute: Compute) -> None:
    if chosen.teacher and compute.processes > 1:
        raise UserError(
            f"compute.processes is {compute.processes} and there is a train.teacher: use 1, since "
            "only one process can learn from a teacher"
        )


def _slow_down(recipe: Recipe, file: _File, fine_tuning: FineTuning) -> Recipe:
    """Lower the recipe's learning rate if there is a start; one that `train` sets stays."""
    if not fine_tuning.start or file.train.get("learning_rate") is not None:
        return recipe
    return replace(recipe, learning_rate=recipe.learning_rate * fine_tuning.start_lr_scale)


def _check_window(recipe: Recipe, context: int, name: str) -> None:
    """Check that a step has whole micro-batches; `name` is the key of tokens_per_step."""
    if recipe.micro_batch == AUTO:
        window, factors = context, f"the context ({context})"
    else:
        window = recipe.micro_batch * context
        factors = f"micro_batch * context ({recipe.micro_batch} * {context} = {window})"
    if recipe.tokens_per_step % window:
        raise UserError(f"{name} is {recipe.tokens_per_step}: use a multiple of {factors}")


def _validate(kind: type[Any], value: object, origin: Mapping[str, str], parent: str = "") -> Any:
    """Check a value with pydantic; report the first error with its full name."""
    try:
        return TypeAdapter(kind).validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        name = ".".join(path)
        if path and path[0] in origin:
            name = ".".join([origin[path[0]], *path[1:]])
        elif parent:
            name = f"{parent}.{name}"
        if first["type"] == "missing":
            raise UserError(f"{name} is missing: add it to params.yaml") from None
        if first["type"] == "unexpected_keyword_argument":
            known = ", ".join(_known_keys(kind, path[:-1]))
            raise UserError(f"{name} is unknown: use one of {known}") from None
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise UserError(f"{name or 'params.yaml'} is {_show(first['input'])}: {reason}") from None


def _known_keys(kind: Any, path: list[str]) -> list[str]:
    """Return the keys of the section that a path from `kind` leads to."""
    for part in path:
        kind = get_type_hints(kind)[part] if is_dataclass(kind) else get_args(kind)[1]
    return [field.name for field in fields(kind)]
