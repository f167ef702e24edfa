"""Adds the C engine's extension module to what pyproject.toml says."""

import sysconfig

from setuptools import setup

# cffi builds for the limited API, except for Python without the global interpreter lock. A wheel of
# the limited API serves Python 3.10 and all later versions.
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    cffi_modules=["storyllamas/engine/build.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if limited else {},
)
