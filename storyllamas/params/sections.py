"""The sections of params.yaml, with the values that each allows."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, fields, replace
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PlainValidator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from storyllamas.adapter import TARGETS, Lora
from storyllamas.config import ModelConfig
from storyllamas.fold import Fold
from storyllamas.interop.formats import FORMATS
from storyllamas.slm.encoding import GROUP_SIZES
from storyllamas.training import freezing
from storyllamas.vocabulary import TrainableKind

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


def _check_fold(text: str) -> str:
    """Accept nothing, or a fold."""
    try:
        return text and str(Fold.parse(text))
    except ValueError:
        raise PydanticCustomError("fold", "use a fold such as 3/8, or nothing") from None


def _check_folds(count: int) -> int:
    """Accept none, or as many folds as leave some to learn from."""
    if count == 1:
        raise PydanticCustomError("folds", "use 0 for no teachers, or 2 or more")
    return count


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


_NO_TEACHERS: dict[str, Any] = {
    "teacher_folds": 0,
    "teacher_size": "",
    "teachers_per_fold": 1,
    "teacher_steps": 0,
    "teacher_share": 1.0,
}


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
    half_context: Share = 0.0
    teacher_folds: Annotated[int, Field(ge=0, le=1024), AfterValidator(_check_folds)] = 0
    teacher_size: str = ""
    teachers_per_fold: Annotated[int, Field(ge=1, le=1024)] = 1
    teacher_steps: Annotated[int, Field(ge=0, le=2**40)] = 0
    teacher_share: Rate = 1.0

    @property
    def teachers(self) -> int:
        """Number of teachers that are trained first."""
        return self.teacher_folds * self.teachers_per_fold

    @property
    def half_steps(self) -> int:
        """Number of steps, from the first on, whose sequences have half of the context."""
        return math.floor(self.half_context * self.steps)

    def training_flops(self, config: ModelConfig) -> float:
        """Return the operations of training on one token of a run, in the mean over its steps."""
        if not self.half_steps:
            return config.training_flops
        half = replace(config, context=config.context // 2).training_flops
        whole_steps = self.steps - self.half_steps
        return (self.half_steps * half + whole_steps * config.training_flops) / self.steps

    def teacher(self) -> Recipe:
        """Return the recipe of a teacher of the same size: with its own steps and no teachers."""
        return replace(self, steps=self.teacher_steps or self.steps, **_NO_TEACHERS)

    def values(self) -> dict[str, Any]:
        """Return the values of a run; without teachers that it trains, without their keys."""
        found = asdict(self)
        if not self.teachers:
            for key in _NO_TEACHERS:
                del found[key]
        return found


@dataclass(frozen=True, config=_strict)
class Distillation:
    """The models to learn probabilities from, and what a teacher holds out; keys of `train`."""

    teacher: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    held_out: Annotated[str, AfterValidator(_check_fold)] = ""

    @property
    def fold(self) -> Fold | None:
        """The fold of the training text that is held out; None: it is learned whole."""
        return Fold.parse(self.held_out) if self.held_out else None


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
class Sections:
    """All sections, before overrides are merged into the size and the recipe."""

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
    """All parameters of a run: the chosen size and recipe, and the other sections.

    `teacher_recipe` is that of the teachers that are trained first, None without.
    """

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
    teacher_recipe: Recipe | None = None

    @property
    def size(self) -> Size:
        """The chosen size, merged with `shape` of params.yaml."""
        return self.sizes[self.model]

    def model_config(self) -> ModelConfig:
        """Return the full shape of the chosen size."""
        return self.model_config_of(self.model)

    @property
    def training_flops(self) -> int:
        """The floating-point operations of the longest run: of the model, or of a teacher."""
        per_token = self.recipe.training_flops(self.model_config())
        own = round(self.recipe.steps * self.recipe.tokens_per_step * per_token)
        teacher = self.of_teacher()
        return max(own, teacher.training_flops) if teacher else own

    def of_teacher(self) -> Params | None:
        """Return the parameters of a teacher that is trained first; None: there is none.

        It begins with random weights, also if the model has a start.
        """
        if not self.teacher_recipe:
            return None
        model = self.recipe.teacher_size or self.model
        return replace(
            self,
            model=model,
            recipe=self.teacher_recipe,
            teacher_recipe=None,
            fine_tuning=FineTuning(),
        )

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
