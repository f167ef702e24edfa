"""Adds the C engine's extension module to what pyproject.toml says."""

import sys
import sysconfig

from setuptools import setup
from setuptools.command.build_ext import build_ext

# cffi builds for the limited API, except for Python without the global interpreter lock. A wheel of
# the limited API serves Python 3.10 and all later versions.
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")


class BuildWithClang(build_ext):
    """Compiles with clang-cl on Windows, since Microsoft's compiler has no vector types."""

    def build_extensions(self):
        """Build all extension modules."""
        self.compiler.initialize()
        self.compiler.cc = "clang-cl.exe"
        super().build_extensions()


setup(
    cmdclass={"build_ext": BuildWithClang} if sys.platform == "win32" else {},
    cffi_modules=["storyllamas/engine/build.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if limited else {},
)
