"""The typed view of params.yaml: an unknown or impossible value is refused by its full name."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from storyllamas.config import ModelConfig
from storyllamas.errors import UserError
from storyllamas.slm.limits import MAX_GROUP_SIZE

Count = Annotated[int, Field(ge=1, le=2**40)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]

_strict = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True, config=_strict)
class Clean:
    """What is changed and dropped on the way from the source to the corpus files."""

    repair_encoding: bool
    min_words: Annotated[int, Field(ge=0)]
    drop_train_valid_overlap: bool
    drop_duplicates: bool


@dataclass(frozen=True, config=_strict)
class Corpus:
    """Where the stories come from."""

    source: Annotated[str, Field(min_length=1)]
    edition: Literal["v1", "v2-gpt4"]
    mirror: str
    stories: Count
    valid_stories: Count
    valid_share: Annotated[float, Field(gt=0, le=0.5)]
    separator: Annotated[str, Field(min_length=1)]
    clean: Clean


@dataclass(frozen=True, config=_strict)
class Tokenizer:
    """How the tokenizer is trained: 256 byte pieces and 3 special ones stand beside the learned."""

    vocab_size: Annotated[int, Field(ge=260, le=65536)]
    sample_bytes: Annotated[int, Field(ge=0)]
    character_coverage: Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, config=_strict)
class Pretokenize:
    """How token files are made."""

    threads: Annotated[int, Field(ge=0, le=1024)]


@dataclass(frozen=True, config=_strict)
class Size:
    """A model's shape, without its vocabulary."""

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
    """How one size is trained; each value as params.yaml describes it."""

    tokens_per_step: Count
    micro_batch: Count
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
class Compute:
    """What the training runs on."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["auto", "float32", "bfloat16"]
    threads: Annotated[int, Field(ge=0, le=1024)]
    compile: Literal["auto", "always", "never"]
    checkpoint_seconds: Annotated[int, Field(ge=1)]
    processes: Annotated[int, Field(ge=1, le=1024)]


@dataclass(frozen=True, config=_strict)
class GroupSize:
    """How many weights share a scale, for each type that has scales."""

    q8: Annotated[int, Field(ge=4, le=MAX_GROUP_SIZE, multiple_of=4)]
    q4: Annotated[int, Field(ge=8, le=MAX_GROUP_SIZE, multiple_of=8)]


@dataclass(frozen=True, config=_strict)
class Export:
    """Which weight files are written, and which other programs' files."""

    types: Annotated[list[Literal["f32", "q8", "q4"]], Field(min_length=1)]
    group_size: GroupSize
    calibration_sequences: Annotated[int, Field(ge=0, le=65536)]
    formats: list[
        Literal[
            "hf",
            "gguf",
            "gguf-f16",
            "gguf-bf16",
            "gguf-q8_0",
            "gguf-q4_0",
            "llama2c",
            "llama2c-q8",
        ]
    ]


@dataclass(frozen=True, config=_strict)
class Evaluation:
    """How much the evaluation looks at."""

    stories: Count
    prompts: Annotated[list[str], Field(min_length=1)]
    samples: Count
    parity_stories: Count
    speed_tokens: Count


@dataclass(frozen=True, config=_strict)
class Generation:
    """How sample stories are drawn."""

    temperature: Annotated[float, Field(ge=0, le=1000)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_tokens: Count


@dataclass(frozen=True, config=_strict)
class _File:
    """Params.yaml as it stands, before the recipe's layers are laid over each other."""

    model: str
    recipe: str
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    corpus: Corpus
    tokenizer: Tokenizer
    pretokenize: Pretokenize
    sizes: dict[str, Size]
    recipes: dict[str, dict[str, Any]]
    train: dict[str, Any]
    compute: Compute
    export: Export
    evaluation: Evaluation
    generation: Generation


@dataclass(frozen=True, config=_strict)
class Params:
    """Everything that a run reads: the chosen size and recipe, and the sections by their names."""

    model: str
    recipe_name: str
    seed: int
    sizes: dict[str, Size]
    recipe: Recipe
    corpus: Corpus
    tokenizer: Tokenizer
    pretokenize: Pretokenize
    compute: Compute
    export: Export
    evaluation: Evaluation
    generation: Generation

    @property
    def size(self) -> Size:
        """The chosen size."""
        return self.sizes[self.model]

    def model_config(self) -> ModelConfig:
        """The chosen size as a model's full shape."""
        return self.model_config_of(self.model)

    @property
    def training_flops(self) -> int:
        """Floating-point operations of the whole training."""
        per_token = self.model_config().training_flops
        return self.recipe.steps * self.recipe.tokens_per_step * per_token

    def model_config_of(self, name: str) -> ModelConfig:
        """A size, a key of `sizes`, as a model's full shape."""
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
    """The parameters as they stand in the file, not checked.

    Raises:
        UserError: the file is missing or not YAML.
    """
    try:
        return loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: run from the folder that holds it") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def loads(text: str) -> Any:
    """The parameters in a text, not checked."""
    return yaml.load(text, Loader=_YamlLoader)


def parse(raw: object) -> Params:
    """Check parameters that are already in memory, laid out as params.yaml is."""
    file: _File = _validate(_File, raw, {})
    _check_key("model", file.model, file.sizes, "sizes")
    _check_key("recipe", file.recipe, file.recipes, "recipes")
    for name, size in file.sizes.items():
        if size.heads % size.kv_heads:
            raise UserError(
                f"sizes.{name}.kv_heads is {size.kv_heads}: use a divisor of heads ({size.heads})"
            )
    recipes = {
        (name, model): _lay_recipe(file, name, model)
        for name in file.recipes
        for model in _recipe_sizes(file, name)
    }
    if (file.recipe, file.model) not in recipes:
        raise UserError(
            f"recipes.{file.recipe}.sizes has no {file.model}: add it, or use one of "
            f"{', '.join(_recipe_sizes(file, file.recipe))}"
        )
    context = file.sizes[file.model].context
    if file.evaluation.speed_tokens >= context:
        raise UserError(
            f"evaluation.speed_tokens is {file.evaluation.speed_tokens}: use less than "
            f"sizes.{file.model}.context ({context})"
        )
    return Params(
        model=file.model,
        recipe_name=file.recipe,
        seed=file.seed,
        sizes=file.sizes,
        recipe=recipes[file.recipe, file.model],
        corpus=file.corpus,
        tokenizer=file.tokenizer,
        pretokenize=file.pretokenize,
        compute=file.compute,
        export=file.export,
        evaluation=file.evaluation,
        generation=file.generation,
    )


class _YamlLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which it would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise UserError(f"params.yaml gives {key!r} twice, again in line {line}: keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.2, which DVC reads, knows 1e-3 as a number; PyYAML's 1.1 asks for 1.0e-3.
_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _check_key(name: str, key: str, table: Mapping[str, object], table_name: str) -> None:
    if key not in table:
        raise UserError(f"{name} is {key!r}: use one of {', '.join(table)} ({table_name})")


def _recipe_sizes(file: _File, name: str) -> dict[str, Any]:
    recipe = file.recipes[name]
    for key, value in recipe.items():
        if key not in ("defaults", "sizes"):
            raise UserError(f"recipes.{name}.{key} is unknown: use defaults or sizes")
        if not isinstance(value, dict):
            raise UserError(f"recipes.{name}.{key} is {value!r}: use keys with values")
    sizes: dict[str, Any] = recipe.get("sizes", {})
    for model, values in sizes.items():
        _check_key(f"a key of recipes.{name}.sizes", model, file.sizes, "sizes")
        if not isinstance(values, dict):
            raise UserError(f"recipes.{name}.sizes.{model} is {values!r}: use keys with values")
    return sizes


def _lay_recipe(file: _File, name: str, model: str) -> Recipe:
    """Defaults, the size's values and, for the chosen run, `train`: the later win."""
    chosen = (name, model) == (file.recipe, file.model)
    missing = f"recipes.{name}.sizes.{model}"
    layers = {
        f"recipes.{name}.defaults": file.recipes[name].get("defaults", {}),
        missing: file.recipes[name]["sizes"][model],
    }
    if chosen:
        layers["train"] = {key: value for key, value in file.train.items() if value is not None}
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for prefix, layer in layers.items():
        values |= layer
        origin |= {key: f"{prefix}.{key}" for key in layer}
    recipe: Recipe = _validate(Recipe, values, origin, missing)
    context = file.sizes[model].context
    window = recipe.micro_batch * context
    if chosen and recipe.tokens_per_step % window:
        raise UserError(
            f"{origin['tokens_per_step']} is {recipe.tokens_per_step}: use a multiple of "
            f"micro_batch * context ({recipe.micro_batch} * {context} = {window})"
        )
    return recipe


def _validate(kind: type[Any], value: object, origin: Mapping[str, str], parent: str = "") -> Any:
    """Check a value with pydantic; the first error becomes a sentence with the full name."""
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
        raise UserError(f"{name or 'params.yaml'} is {first['input']!r}: {reason}") from None


def _known_keys(kind: Any, path: list[str]) -> list[str]:
    """The keys that a section knows, the section given by its path from `kind`."""
    for part in path:
        kind = get_type_hints(kind)[part] if is_dataclass(kind) else get_args(kind)[1]
    return [field.name for field in fields(kind)]
