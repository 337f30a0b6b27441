"""The order in which function runs get their places."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .state import FunctionRun


class Line:
    """Runs of one function that wait for a place: those for which the most callers wait come first, and of those the
    one that came first.

    What was begun ends before something new begins, and depth before breadth: a caller keeps its container while it
    waits, so any other order would have more and more of them at the same time.
    """

    def __init__(self) -> None:
        self._by_depth: dict[int, dict[FunctionRun, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_depth)

    def __iter__(self) -> Iterator[FunctionRun]:
        """The runs that are in line now; joining and leaving meanwhile is fine."""
        for depth in sorted(self._by_depth, reverse=True):
            yield from list(self._by_depth.get(depth, ()))

    def join(self, run: FunctionRun) -> None:
        self._by_depth.setdefault(run.depth, {})[run] = None

    def leave(self, run: FunctionRun) -> None:
        """Take the run out; one that is not in line is fine."""
        others = self._by_depth.get(run.depth)
        if others is not None:
            others.pop(run, None)
            if not others:
                del self._by_depth[run.depth]
