"""`make sizes` and `make sweep`: run the workflow as DVC experiments, one after the other.

Each runs in a temporary workspace, so that this one stays unchanged, and in the foreground, so that
Ctrl-C stops it. All share this workspace's checkpoints: the same command resumes where a run was
stopped, and skips experiments that are finished.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from storyllamas import params
from storyllamas.errors import UserError, exit_on_user_error
from storyllamas.experiments import dvc, git, losses

CODE = ("dvc.yaml", "stages", "storyllamas", "csrc")
METRICS = "metrics/train.json"


@dataclass(frozen=True)
class Experiment:
    """A run of the workflow.

    Attributes:
        name: name in `dvc exp show`.
        changes: values of params.yaml, by dotted name.
    """

    name: str
    changes: Mapping[str, str | int | float]

    @property
    def reference(self) -> str:
        """The git reference where DVC stores the finished experiment."""
        head = git.head()
        return f"refs/exps/{head[:2]}/{head[2:]}/{self.name}"


def plan(
    sizes: Sequence[str],
    recipe: str,
    steps: int | None = None,
    rates: Sequence[float | None] = (None,),
) -> Iterator[Experiment]:
    """Yield an experiment for each size and learning rate.

    Args:
        sizes: keys of `sizes` in params.yaml.
        recipe: key of `recipes`.
        steps: optimizer steps; None: the recipe's.
        rates: learning rates; None: the recipe's.
    """
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


def apply_changes(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of params.yaml's values with `changes`, which have dotted names."""
    values = copy.deepcopy(dict(raw))
    for name, value in changes.items():
        *sections, key = name.split(".")
        section = values
        for each in sections:
            section = section[each]
        section[key] = value
    return values


def run(experiments: Sequence[Experiment], raw: Mapping[str, Any]) -> None:
    """Run the experiments that are not finished, in this order.

    Args:
        experiments: what to run.
        raw: the values of params.yaml, not checked.

    Raises:
        UserError: a value is invalid, the repository cannot store experiments, or an experiment
            failed or was not stored.
    """
    for experiment in experiments:
        params.parse(apply_changes(raw, experiment.changes))
    git.check_repository()
    for number, experiment in enumerate(experiments, 1):
        print(f"{experiment.name} ({number} of {len(experiments)})", flush=True)
        if _is_finished(experiment, raw):
            print("finished earlier", flush=True)
        else:
            _run(experiment)


def _run(experiment: Experiment) -> None:
    """Run an experiment in place of an earlier one of its name.

    DVC may exit with status 0 without a result: look for the result in git.
    """
    if git.exists(experiment.reference):
        dvc.run("exp", "remove", "--quiet", experiment.name)
        if git.exists(experiment.reference):
            raise UserError(f"DVC did not remove the experiment {experiment.name}: see its message")
    changes = [f"--set-param={name}={value}" for name, value in experiment.changes.items()]
    if dvc.run("exp", "run", "--temp", f"--name={experiment.name}", *changes):
        raise UserError(f"{experiment.name} did not finish: the same command resumes it")
    if not git.read_at(experiment.reference, METRICS):
        raise UserError(
            f"{experiment.name} finished, but DVC stored no result at {experiment.reference}: "
            "see its messages"
        )


def _is_finished(experiment: Experiment, raw: Mapping[str, Any]) -> bool:
    """Return whether it has a result for the parameters and the code of the workspace."""
    text = git.read_at(experiment.reference, "params.yaml")
    return (
        bool(text and git.read_at(experiment.reference, METRICS))
        and params.loads(text) == apply_changes(raw, experiment.changes)
        and not git.differs(experiment.reference, CODE)
    )


def table(experiments: Sequence[Experiment]) -> str:
    """Return the results of finished experiments as a Markdown table."""
    lines = [
        "| size | recipe | steps | validation loss | framed bits per byte | tokens per second "
        "| minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for experiment in experiments:
        metrics = json.loads(git.read_at(experiment.reference, METRICS))
        cells = [
            metrics["size"],
            metrics["recipe"],
            f"{metrics['steps']:,}",
            f"{metrics['validation_loss']:.4f}",
            f"{metrics['framed_bits_per_byte']:.4f}",
            f"{metrics['tokens_per_second']:,}",
            f"{metrics['seconds'] / 60:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def curves(experiments: Sequence[Experiment]) -> list[losses.Run]:
    """Return the losses of finished experiments, for the figure."""
    return [run for each in experiments if (run := losses.run_at(each.reference))]


def print_sweep() -> None:
    """Print the important columns of `dvc exp show`, sorted by framed bits per byte.

    Print Markdown, which is never cut to the width of a terminal.

    Raises:
        UserError: DVC cannot show them.
    """
    names = (
        "Experiment",
        "train.learning_rate",
        "best_step",
        "validation_loss",
        "framed_bits_per_byte",
    )
    columns = "|".join(name.replace(".", "[.]") for name in names)
    status = dvc.run(
        *("exp", "show", "--md", "--hide-workspace", "--drop", ".*"),
        *("--keep", f"(.*:)?({columns})$", "--sort-by", f"{METRICS}:framed_bits_per_byte"),
    )
    if status:
        raise UserError(f"`dvc exp show` failed with status {status}: see its message")


@exit_on_user_error
def main() -> None:
    """Run `sizes` or `sweep`."""
    parser = argparse.ArgumentParser(
        prog="python -m storyllamas.experiments.run", description=__doc__
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for name, help_text in (
        ("sizes", "train several sizes, draw and print the results"),
        ("sweep", "try several learning rates"),
    ):
        kind = kinds.add_parser(name, help=help_text)
        kind.add_argument("--sizes", nargs="+", required=True, help="keys of `sizes`")
        kind.add_argument("--recipe", help="default: that of params.yaml")
        kind.add_argument("--steps", type=int, help="default: those of the recipe")
    kind.add_argument("--rates", nargs="+", type=float, required=True, help="learning rates")
    arguments = parser.parse_args()
    raw = params.read("params.yaml")
    recipe = arguments.recipe or params.parse(raw).recipe_name
    rates = arguments.rates if arguments.kind == "sweep" else (None,)
    experiments = [*plan(arguments.sizes, recipe, arguments.steps, rates)]
    run(experiments, raw)
    print()
    if arguments.kind == "sweep":
        print_sweep()
    else:
        losses.draw(curves(experiments))
        print(f"{table(experiments)}\n\n{losses.TARGET}")


if __name__ == "__main__":
    main()
