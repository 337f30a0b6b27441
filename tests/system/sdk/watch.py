"""The SDK's objects as the checks use them: every call is recorded, and asyncio clients look like the others.

Checks are written once. For an asyncio client the coroutine or async iterator that a call returns is run on a loop in
a thread, so the same check exercises both.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

KINDS = ("SandboxClient", "Sandbox", "Pty", "TcpTunnel", "Desktop", "PendingSandbox")


def kind(thing: Any) -> str:
    """The name of the class in the table: the same for an asyncio one."""
    name = (thing if inspect.isclass(thing) else type(thing)).__name__
    return str(name).removeprefix("Async")


class Loop:
    """An asyncio loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def call(self, function: Callable[[], Any]) -> Any:
        """Run a plain function on the loop: some objects of the SDK insist on a running one."""

        async def calling() -> Any:
            return function()

        return self.run(calling())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)


class Calls:
    """The calls of the check that is running."""

    def __init__(self, loop: Loop | None) -> None:
        self.loop = loop
        self.made: set[str] = set()

    def watch(self, thing: Any) -> Any:
        """The thing itself, or a recording stand-in for an object of the SDK."""
        thing = self._awaited(thing)
        return Watched(self, thing) if kind(thing) in KINDS else thing

    def _awaited(self, thing: Any) -> Any:
        if inspect.iscoroutine(thing):
            assert self.loop is not None
            return self.loop.run(thing)
        if inspect.isawaitable(thing):
            assert self.loop is not None
            waited = thing

            async def waiting() -> Any:
                return await waited

            return self.loop.run(waiting())
        if hasattr(thing, "__anext__"):
            return self._drawn(thing)
        return thing

    def _drawn(self, source: Any) -> Iterator[Any]:
        assert self.loop is not None

        async def following() -> Any:
            return await source.__anext__()

        while True:
            try:
                yield self.loop.run(following())
            except StopAsyncIteration:
                return


class Watched:
    """Passes everything on to an object (or class) of the SDK and notes what was asked of it."""

    def __init__(self, calls: Calls, thing: Any) -> None:
        self._calls = calls
        self._thing = thing

    def __getattr__(self, name: str) -> Any:
        self._calls.made.add(f"{kind(self._thing)}.{name}")
        value = self._calls.watch(getattr(self._thing, name))
        if not callable(value) or isinstance(value, Watched):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            plain = [each._thing if isinstance(each, Watched) else each for each in args]
            loop = self._calls.loop
            made = loop.call(lambda: value(*plain, **kwargs)) if loop else value(*plain, **kwargs)
            return self._calls.watch(made)

        return call
