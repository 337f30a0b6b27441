"""What a check is, what it is given, and what it may say besides passing."""

from __future__ import annotations

import contextlib
import importlib
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .watch import Calls, Loop

SMALL = {"cpus": 0.1, "memory_mb": 128}
PATIENCE = 30.0

Release = tuple[int, ...]


class Given:
    """The SDK of one release in one flavour, and the product to drive with it."""

    def __init__(self, *, release: Release, asyncio: bool, api: str, proxy: str, directory: Path, full: bool) -> None:
        self.release, self.asyncio, self.api, self.full = release, asyncio, api, full
        self.sandbox_proxy = proxy
        self.directory = directory
        self.calls = Calls(Loop() if asyncio else None)
        self.refused: dict[str, str] = {}
        self.sdk: Any = importlib.import_module("tensorlake.sandbox")
        self.client = self.a("SandboxClient").for_localhost(api)
        self._shared: Any = None

    def a(self, name: str) -> Any:
        """A class of the SDK, of the asyncio flavour where this is it."""
        return self.calls.watch(getattr(self.sdk, ("Async" if self.asyncio else "") + name))

    @property
    def sandbox(self) -> Any:
        """One sandbox for all checks that leave nothing behind in it."""
        if self._shared is None:
            self._shared = self.client.create_and_connect(**SMALL)
        return self._shared

    @contextlib.contextmanager
    def own_sandbox(self, **wish: Any) -> Iterator[Any]:
        """A sandbox of the check's own."""
        sandbox = self.client.create_and_connect(**{**SMALL, **wish})
        identity = sandbox.sandbox_id
        try:
            yield sandbox
        finally:
            with contextlib.suppress(self.sdk.SandboxError):
                self.client.delete(identity)

    def fresh(self, name: str) -> str:
        """A path in the sandbox that nothing else uses."""
        return str(self.directory / f"{name}-{uuid.uuid4().hex[:8]}")

    def fails(self, act: Callable[[], Any], *expected: int | str) -> None:
        """It must fail with one of these HTTP statuses or texts. That it was made is no evidence that it works."""
        before = set(self.calls.made)
        try:
            answer = act()
        except Exception as error:
            status, text = getattr(error, "status_code", None), f"{type(error).__name__}: {error}"
            if status not in expected and not any(isinstance(each, str) and each in text for each in expected):
                raise AssertionError(f"failed with status {status}, {text}") from error
        else:
            raise AssertionError(f"was answered: {answer!r}")
        finally:
            self.calls.made = before

    def refuses(self, call: str, why: str, act: Callable[[], Any], *expected: int | str) -> None:
        """The product does not offer this call, and says so."""
        self.fails(act, *expected)
        self.refused[call] = why

    def close(self) -> None:
        if self._shared is not None:
            self._shared.terminate()
        self.client.close()
        if self.calls.loop is not None:
            self.calls.loop.close()


class Check:
    """A named function over the SDK, for the releases that have what it calls."""

    def __init__(self, run: Callable[[Given], None], *, since: Release, until: Release, flavours: str) -> None:
        self.run = run
        self.name = run.__name__
        self._since, self._until, self._flavours = since, until, flavours

    def applies(self, release: Release, asyncio: bool) -> bool:
        return self._since <= release < self._until and ("async" if asyncio else "sync") in self._flavours


CHECKS: list[Check] = []


def check(
    *, since: Release = (0,), until: Release = (9,), flavours: str = "sync async"
) -> Callable[[Callable[[Given], None]], Callable[[Given], None]]:
    """Add a function to the checks."""

    def add(run: Callable[[Given], None]) -> Callable[[Given], None]:
        CHECKS.append(Check(run, since=since, until=until, flavours=flavours))
        return run

    return add


def plain(answer: Any) -> Any:
    """What newer releases wrap together with a trace id."""
    return answer.value if type(answer).__name__ == "Traced" else answer


def content(given: Given, path: str) -> bytes:
    """A file of the sandbox. The oldest releases give it as a list of numbers."""
    return bytes(plain(given.sandbox.read_file(path)))


def valued(thing: Any, name: str) -> Any:
    """What is a property in one flavour and a method in the other."""
    value = getattr(thing, name)
    return value() if callable(value) else value


def same(got: Any, expected: Any) -> None:
    """Equal, or an error that shows both, cut where they are long."""
    if got != expected:
        raise AssertionError(f"got {str(got)[:400]!r}, expected {str(expected)[:400]!r}")


def until(what: str, ask: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Ask until the answer is true."""
    deadline = time.monotonic() + seconds
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} was not seen within {seconds:g} s; the last answer: {answer!r}")
        time.sleep(0.02)
