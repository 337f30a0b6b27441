"""What tests of the installed program share: a directory of their own, and a way to say what was measured."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterator

import pytest

from tests.engine import Engine, require

from .harness import Site


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a line although the test passes."""

    def say(line: str) -> None:
        with capsys.disabled():
            print(f"    {line}", flush=True)

    return say


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The shared test engine; skips where there is none, fails in CI."""
    try:
        return require(unittest.TestCase())
    except unittest.SkipTest as skipped:
        pytest.skip(str(skipped))
