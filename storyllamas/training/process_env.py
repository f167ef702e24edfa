"""Environment variables of fast training, which the libraries read when a process starts."""

from __future__ import annotations

import os
import sys


def variables() -> dict[str, str]:
    """Return the variables to set; none that the user has set.

    On Linux, they let glibc request huge pages, so that large activations cause fewer page faults.
    They let threads of GNU OpenMP spin for tens of microseconds, not milliseconds, before they
    sleep, which makes training twice as fast where another program uses a core.
    """
    if sys.platform != "linux":
        return {}
    missing = {}
    if "GLIBC_TUNABLES" not in os.environ:
        missing["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        missing["GOMP_SPINCOUNT"] = "10000"
    return missing


def prepare() -> None:
    """Restart the program with `variables`, if any is missing; call it before importing torch.

    The process keeps its id.
    """
    if missing := variables():
        os.environ.update(missing)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
