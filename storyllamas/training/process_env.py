"""What has to be set before the process begins, so that memory and threads are fast."""

from __future__ import annotations

import os
import sys


def variables() -> dict[str, str]:
    """Environment variables that training wants; none over what the user has set.

    On Linux glibc asks for huge pages, so that large activations cost fewer page faults, and the
    threads of GNU OpenMP wait for each other some tens of microseconds before they sleep, not
    milliseconds: where another program takes a core, training is then twice as fast.
    """
    if sys.platform != "linux":
        return {}
    wanted = {}
    if "GLIBC_TUNABLES" not in os.environ:
        wanted["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        wanted["GOMP_SPINCOUNT"] = "10000"
    return wanted


def prepare() -> None:
    """Start the program anew with `variables`, if one is missing; call it before importing torch.

    The libraries read them when a process begins. The process keeps its number.
    """
    if wanted := variables():
        os.environ.update(wanted)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
