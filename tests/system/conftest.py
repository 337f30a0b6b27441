"""What tests of the installed program share: a directory of their own, and a way to say what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

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
