"""Stage `train`: from token files to models/SIZE/model.safetensors and config.json, and metrics."""

from dataclasses import asdict
from pathlib import Path

from stages import PARENT
from storyllamas import params, tokenizer, tokens
from storyllamas.atomic import write_json
from storyllamas.errors import UserError, exit_on_user_error
from storyllamas.training import device
from storyllamas.training.checkpoint import save_model
from storyllamas.training.loop import Job, training_run
from storyllamas.training.metrics import utilization


@exit_on_user_error
def main() -> None:
    """Run the stage."""
    chosen = params.load()
    digest = tokenizer.load("models/tokenizer.model").digest
    job = Job(
        config=chosen.model_config(),
        recipe=chosen.recipe,
        seed=chosen.seed,
        train=tokens.read("data/tokens/train.bin", digest),
        valid=tokens.read("data/tokens/valid.bin", digest),
        device=device.choose(chosen.compute),
    )
    if job.train.vocab_size != job.config.vocab_size:
        raise UserError(
            f"tokenizer.vocab_size is {job.config.vocab_size} and data/tokens/train.bin has "
            f"{job.train.vocab_size} pieces: run `dvc repro`, which makes it anew"
        )
    seconds = chosen.compute.checkpoint_seconds
    name = f"{chosen.model}-{chosen.recipe_name}"
    with training_run(job, Path("metrics"), seconds, PARENT, name=name) as result:
        about = {"size": chosen.model, "recipe": chosen.recipe_name, "seed": chosen.seed}
        details = {
            "corpus": chosen.corpus.source,
            "hyperparameters": asdict(chosen.recipe),
            "tokenizer_sha256": digest.hex(),
            # Without what it took: the same bits are the same file.
            "training": result.metrics,
        }
        folder = Path("models") / chosen.model
        save_model(folder, job.config, result.tensors, {**about, **details})
        costs = {**result.costs, **utilization(result.costs["flops_per_second"], job.device)}
        write_json("metrics/train.json", {**about, **result.metrics, **costs})


if __name__ == "__main__":
    main()
