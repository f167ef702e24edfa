"""`make sizes` and `make sweep`: runs of the workflow as DVC experiments, one after the other.

Each runs in a temporary workspace, so that the one at hand stays as it is, and in the foreground,
so that Ctrl-C stops it. It shares the workspace's checkpoints: the same command goes on where a run
was stopped, and what is done is not done again.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from storyllamas import params
from storyllamas.errors import UserError, exit_on_user_error
from storyllamas.experiments import dvc, git, losses

CODE = ("dvc.yaml", "stages", "storyllamas", "csrc")


@dataclass(frozen=True)
class Experiment:
    """A run of the workflow.

    Attributes:
        name: in `dvc exp show`.
        changes: values of params.yaml by their full name.
    """

    name: str
    changes: Mapping[str, str | int | float]

    @property
    def reference(self) -> str:
        """Where git has it, once it has ended."""
        head = git.git("rev-parse", "HEAD").strip()
        return f"refs/exps/{head[:2]}/{head[2:]}/{self.name}"


def planned(
    sizes: Sequence[str],
    recipe: str,
    steps: int | None = None,
    rates: Sequence[float | None] = (None,),
) -> Iterator[Experiment]:
    """Each size with each learning rate, None being that of the recipe."""
    for size, rate in product(sizes, rates):
        name = f"{size}-{recipe}"
        changes: dict[str, str | int | float] = {"model": size, "recipe": recipe}
        if steps is not None:
            name += f"-steps-{steps}"
            changes["train.steps"] = steps
        if rate is not None:
            name += f"-rate-{rate:g}"
            changes["train.learning_rate"] = rate
        yield Experiment(name, changes)


def changed(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values of params.yaml with some of them changed, each given by its full name."""
    values = copy.deepcopy(dict(raw))
    for name, value in changes.items():
        *sections, key = name.split(".")
        section = values
        for each in sections:
            section = section[each]
        section[key] = value
    return values


def run(experiments: Sequence[Experiment], raw: Mapping[str, Any]) -> None:
    """Run what is not done yet.

    Args:
        experiments: in this order.
        raw: params.yaml as it was read.

    Raises:
        UserError: a value is impossible, git has no commit here, or a run did not end well.
    """
    for experiment in experiments:
        params.parse(changed(raw, experiment.changes))
    if not git.git("rev-parse", "HEAD"):
        raise UserError(
            "there is no git commit here, in which experiments are kept: clone the project"
        )
    for number, experiment in enumerate(experiments, 1):
        print(f"{experiment.name} ({number} of {len(experiments)})", flush=True)
        if _is_done(experiment, raw):
            print("done before", flush=True)
            continue
        if git.git("rev-parse", "--verify", "--quiet", experiment.reference):
            dvc.run("exp", "remove", "--quiet", experiment.name)
        changes = [f"--set-param={name}={value}" for name, value in experiment.changes.items()]
        if dvc.run("exp", "run", "--temp", f"--name={experiment.name}", *changes):
            raise UserError(f"{experiment.name} did not end: the same command goes on from there")


def _is_done(experiment: Experiment, raw: Mapping[str, Any]) -> bool:
    """Whether it has ended with the parameters and the code that the workspace has now."""
    text = git.git("show", f"{experiment.reference}:params.yaml")
    if not text or params.loads(text) != changed(raw, experiment.changes):
        return False
    same = ["git", "diff", "--quiet", experiment.reference, "--", *CODE]
    return subprocess.run(same, check=False).returncode == 0


def table(experiments: Sequence[Experiment]) -> str:
    """What the experiments gave, in Markdown."""
    lines = [
        "| size | recipe | steps | validation loss | bits per byte | tokens a second | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for experiment in experiments:
        trained = json.loads(git.read_at(experiment.reference, "metrics/train.json"))
        cells = [
            trained["size"],
            trained["recipe"],
            f"{trained['steps']:,}",
            f"{trained['validation_loss']:.4f}",
            f"{trained['framed_bits_per_byte']:.4f}",
            f"{trained['tokens_per_second']:,}",
            f"{trained['seconds'] / 60:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def curves(experiments: Sequence[Experiment]) -> list[losses.Run]:
    """The losses of the experiments, for a figure."""
    return [run for each in experiments if (run := losses.run_at(each.reference))]


def show() -> None:
    """Print what matters of `dvc exp show`, sorted by bits per byte of the validation stories.

    In Markdown, which is never cut to the width of a terminal.
    """
    wanted = (
        "Experiment",
        "train.learning_rate",
        "best_step",
        "validation_loss",
        "framed_bits_per_byte",
    )
    columns = "|".join(name.replace(".", "[.]") for name in wanted)
    dvc.run(
        *("exp", "show", "--md", "--hide-workspace", "--drop", ".*"),
        *("--keep", f"(.*:)?({columns})$", "--sort-by", "metrics/train.json:framed_bits_per_byte"),
    )


@exit_on_user_error
def main() -> None:
    """Run `sizes` or `sweep`."""
    parser = argparse.ArgumentParser(
        prog="python -m storyllamas.experiments.run", description=__doc__
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for name, about in (("sizes", "train sizes, draw and print"), ("sweep", "try learning rates")):
        kind = kinds.add_parser(name, help=about)
        kind.add_argument("--sizes", nargs="+", required=True)
        kind.add_argument("--recipe", help="default: that of params.yaml")
        kind.add_argument("--steps", type=int, help="default: those of the recipe")
    kind.add_argument("--rates", nargs="+", type=float, required=True)
    arguments = parser.parse_args()
    raw = params.read("params.yaml")
    recipe = arguments.recipe or params.parse(raw).recipe_name
    rates = arguments.rates if arguments.kind == "sweep" else (None,)
    experiments = [*planned(arguments.sizes, recipe, arguments.steps, rates)]
    run(experiments, raw)
    print()
    if arguments.kind == "sweep":
        show()
    else:
        losses.draw(curves(experiments))
        print(f"{table(experiments)}\n\n{losses.TARGET}")


if __name__ == "__main__":
    main()
