"""Oracles from other libraries, imported only by the tests that compare with them."""

import importlib
import warnings

import pytest


def quietly(name):
    """The module; importing it runs code of its dependencies that jax has deprecated since."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module(name)


@pytest.fixture(scope="session")
def distrax():
    return quietly("distrax")


@pytest.fixture(scope="session")
def rlax():
    return quietly("rlax")
