"""The processor of this machine: its name, its instruction sets, the file name of its results."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from functools import cache

from storyllamas.cpuinfo import field

INSTRUCTION_SETS = {
    "amx_int8": "AMX",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx2": "AVX2",
    "sve2": "SVE2",
    "i8mm": "I8MM",
    "asimddp": "dot product",
    "asimd": "NEON",
}
"""Flag in /proc/cpuinfo and name of the instruction sets that decide the speed, best first."""


@cache
def name() -> str:
    """Return the name of the processor, or its architecture if the system has no name for it."""
    return (
        field("model name")
        or first_line("sysctl", "-n", "machdep.cpu.brand_string")
        or platform.machine()
    )


@cache
def flags() -> frozenset[str]:
    """Return the flags of /proc/cpuinfo, or nothing on systems without that file."""
    return frozenset((field("flags") or field("Features")).split())


def instruction_set() -> str:
    """Return the best of `INSTRUCTION_SETS`, or "" if it is not known.

    Clouds give processors of different generations the same name, such as "AMD EPYC", but their
    instruction sets differ.
    """
    return next((set for flag, set in INSTRUCTION_SETS.items() if flag in flags()), "")


def title() -> str:
    """Return a heading, such as "AMD EPYC (AVX2), 2 cores"."""
    set = instruction_set()
    return f"{name()}{f' ({set})' if set else ''}, {os.cpu_count()} cores"


def slug(text: str) -> str:
    """Return a title as a file name, such as "amd-epyc-avx2-2-cores"."""
    text = re.sub(r"\((?:r|tm)\)|\b(?:cpu|processor)\b|@ *[\d.]+ *ghz", " ", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def first_line(*command: str) -> str:
    """Return the first line that a command prints, or "" if it is not installed."""
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""
    return output.partition("\n")[0]
