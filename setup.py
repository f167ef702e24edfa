"""Adds the C engine's extension module to what pyproject.toml says."""

from setuptools import setup

setup(cffi_modules=["storyllamas/engine/build.py:ffibuilder"])
