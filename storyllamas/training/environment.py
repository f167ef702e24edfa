"""What has to be set before the process begins, so that memory is fast."""

from __future__ import annotations

import os
import sys

_TUNABLES = "GLIBC_TUNABLES"


def prepare() -> None:
    """Let glibc ask for huge pages, where that is possible and the user has not set its tunables.

    Large activations then cost fewer page faults. glibc reads its tunables once, so the program
    starts anew under the same process number; call this before torch is imported. Elsewhere than on
    Linux, and with other C libraries, nothing changes.
    """
    if sys.platform == "linux" and _TUNABLES not in os.environ:
        os.environ[_TUNABLES] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
