"""Experiments: real processes under a load whose answers are checked, and what may happen to them."""

from tests.e2e.conftest import pytest_runtest_makereport, system

__all__ = ("pytest_runtest_makereport", "system")
