"""Stage `evaluate`: measure the weight files with the C engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from storyllamas import evaluation, instruct, params
from storyllamas.atomic import write_json, write_text
from storyllamas.corpus import files
from storyllamas.engine.engine import Engine
from storyllamas.errors import UserError, exit_on_user_error
from storyllamas.instruct import Record
from storyllamas.measures.summary import summarize
from storyllamas.rounding import integer, six_digits
from storyllamas.training.trained_model import load_model

TRAIN, VALID = "data/corpus/train.txt", "data/corpus/valid.txt"


@exit_on_user_error
def main() -> None:
    """Write metrics/eval.json and metrics/samples.md."""
    chosen = params.load()
    settings, generation = chosen.evaluation, chosen.generation
    folder = Path("models") / chosen.model
    weight_files = sorted((folder / "export").glob("*.slm"))
    if not weight_files:
        raise UserError(f"{folder}/export has no weight file: run `dvc repro export`")
    model, about = load_model(folder)
    has_prompts = about.get("corpus_kind") == "instruct"
    stories: list[str | Record] = list(islice(read(VALID, has_prompts), settings.stories))
    report: dict[str, Any] = {"size": chosen.model, "stories": len(stories)}
    engines = {path.stem: Engine(path) for path in weight_files}
    for name, engine in engines.items():
        report[name] = {
            **asdict(evaluation.score(engine, stories)),
            "bytes": engine.info["file_bytes"],
            "tokens_per_second": integer(evaluation.engine_speed(engine, settings.speed_tokens)),
        }
        print(f"{name}: {report[name]['loss']:.4f} nats per token", flush=True)
    # The exact weights are best for parity and samples; without f32, take any other type.
    engine = engines.get("f32") or next(iter(engines.values()))
    compared = stories[: settings.parity_stories]
    report["parity"] = asdict(evaluation.parity(engine, model, compared, settings.prompts))
    speed = evaluation.pytorch_speed(model, [engine.bos_id], settings.speed_tokens)
    report["pytorch"] = {"tokens_per_second": integer(speed)}
    # The stories of the page come first, so that their seeds begin with the seed of params.yaml.
    if has_prompts:
        given = [each.prompt for each in stories if isinstance(each, Record)]
        given = given[: len(settings.prompts) + settings.samples]
    else:
        given = [*settings.prompts, *json.loads(Path("data/corpus/prompts.json").read_text())]
    shown = evaluation.fitting(engine, given)
    if len(shown) < len(given):
        print(f"{len(given) - len(shown)} prompts are longer than the context and are left out")
    if has_prompts:
        generated = evaluation.respond(engine, shown, generation, chosen.seed)
        report["words_fraction"] = evaluation.words_fraction(shown, generated)
    else:
        prompts = [*shown, *[""] * settings.samples]
        generated = evaluation.sample(engine, prompts, generation, chosen.seed)
    summary = summarize(generated, training_texts(has_prompts))
    for note in summary.notes:
        print(note, flush=True)
    report["measures"] = {"stories": len(generated), **summary.groups}
    page = evaluation.samples_page(
        chosen.model,
        generated[: len(shown)],
        chosen.seed,
        summary.groups,
        shown if has_prompts else (),
    )
    write_text("metrics/samples.md", page)
    write_json("metrics/eval.json", six_digits(report))


def read(path: str, has_prompts: bool) -> Iterator[str | Record]:
    """Yield the stories of a corpus file, or its records.

    Raises:
        UserError: the file is missing, or a story is no record.
    """
    for text in files.read(path):
        record = instruct.parse(text) if has_prompts else text
        if record is None:
            raise UserError(f"{path} has a story that is no record: run `dvc repro download`")
        yield record


def training_texts(has_prompts: bool) -> Iterator[bytes]:
    """Return the training stories in UTF-8, or the responses of training records."""
    if not has_prompts:
        return files.read_bytes(TRAIN)
    records = read(TRAIN, has_prompts)
    return (each.response.encode() for each in records if isinstance(each, Record))


if __name__ == "__main__":
    main()
