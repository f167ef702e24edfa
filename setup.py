"""Adds the C engine's extension module to what pyproject.toml says."""

from setuptools import setup

setup(cffi_modules=["storyllamas/engine_build.py:ffibuilder"])
