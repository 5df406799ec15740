"""The one thing that pyproject.toml cannot say yet: the cffi extension module."""

from setuptools import setup

setup(cffi_modules=["crungo/runtime/native/builder.py:ffibuilder"])
