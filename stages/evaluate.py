"""Stage `evaluate`: what the weight files are worth, run by the C engine."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from storyllamas import evaluation, params
from storyllamas.atomic import write_json, write_text
from storyllamas.corpus import files
from storyllamas.engine.engine import Engine
from storyllamas.errors import exit_on_user_error
from storyllamas.rounding import six_digits
from storyllamas.training.trained_model import load_model


@exit_on_user_error
def main() -> None:
    """Write metrics/eval.json and metrics/samples.md."""
    chosen = params.load()
    how, generation = chosen.evaluation, chosen.generation
    checkpoint = Path("models") / chosen.model
    stories = list(islice(files.read("data/corpus/valid.txt"), how.stories))
    model, _ = load_model(checkpoint)
    report: dict[str, Any] = {"size": chosen.model, "stories": len(stories)}
    engines = {path.stem: Engine(path) for path in sorted((checkpoint / "export").glob("*.slm"))}
    for name, engine in engines.items():
        report[name] = {
            **asdict(evaluation.score(engine, stories)),
            "bytes": engine.info["file_bytes"],
            "tokens_per_second": round(evaluation.engine_speed(engine, how.speed_tokens)),
        }
        print(f"{name}: {report[name]['loss']:.4f} nats a token", flush=True)
    # The exact file judges parity and tells the samples; q8 stands in where f32 is not exported.
    engine = engines.get("f32") or next(iter(engines.values()))
    compared = stories[: how.parity_stories]
    report["parity"] = asdict(evaluation.parity(engine, model, compared, how.prompts))
    speed = evaluation.pytorch_speed(model, [engine.bos_id], how.speed_tokens)
    report["pytorch"] = {"tokens_per_second": round(speed)}
    told = evaluation.sample(engine, [""] * how.samples, generation, chosen.seed)
    texts = [story.text for story in told]
    report["samples"] = {
        "distinct_1": evaluation.distinct(texts, 1),
        "distinct_2": evaluation.distinct(texts, 2),
        "distinct_3": evaluation.distinct(texts, 3),
        "eos_fraction": sum(story.stop == "eos" for story in told) / len(told),
    }
    shown = evaluation.sample(engine, how.prompts, generation, chosen.seed)
    page = evaluation.samples_page(chosen.model, how.prompts, shown, chosen.seed)
    write_text("metrics/samples.md", page)
    write_json("metrics/eval.json", six_digits(report))


if __name__ == "__main__":
    main()
