"""What tests of the installed program share: a directory of their own, and a way to say what was measured."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Generator, Iterator

import pytest

from tests.engine import Engine, require

from .harness import Site
from .stories import story


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure comes with what the nodes said of it."""
    report = yield
    made = getattr(item, "funcargs", {}).get("site")
    if report.when == "call" and report.failed and isinstance(made, Site):
        report.sections.append(("logs of the site", story(made.path, report.longreprtext)))
    return report


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
