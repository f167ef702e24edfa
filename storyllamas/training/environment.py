"""What has to be set before the process begins, so that memory is fast."""

from __future__ import annotations

import os
import sys

_TUNABLES = "GLIBC_TUNABLES"


def variables() -> dict[str, str]:
    """Environment variables that training wants; none that the user has set.

    On Linux glibc asks for huge pages, so that large activations cost fewer page faults. Other C
    libraries do not read the variable.
    """
    if sys.platform != "linux" or _TUNABLES in os.environ:
        return {}
    return {_TUNABLES: "glibc.malloc.hugetlb=1"}


def prepare() -> None:
    """Start the program anew with `variables`, if one is missing; call it before importing torch.

    The C library reads them when a process begins. The process keeps its number.
    """
    if wanted := variables():
        os.environ.update(wanted)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
