"""Numbers for Prometheus."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Counters:
    """Totals since the server has started; the names are those of /metrics."""

    requests: int = 0
    requests_rejected: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


MEANINGS = {
    "requests": "requests for completions",
    "requests_rejected": "requests that were rejected",
    "prompt_tokens": "tokens of prompts",
    "completion_tokens": "generated tokens",
    "sequences_running": "sequences that have a slot",
    "sequences_waiting": "sequences that wait for a slot",
    "slots": "sequences that can have a slot",
}


def exposition(counters: Counters, gauges: dict[str, int]) -> str:
    """Return the numbers in Prometheus' text format, version 0.0.4."""
    totals = {name: (value, "counter") for name, value in asdict(counters).items()}
    values = totals | {name: (value, "gauge") for name, value in gauges.items()}
    lines = []
    for name, (value, kind) in values.items():
        full = f"storyllamas_{name}" + "_total" * (kind == "counter")
        lines += [f"# HELP {full} {MEANINGS[name]}", f"# TYPE {full} {kind}", f"{full} {value}"]
    return "\n".join(lines) + "\n"
