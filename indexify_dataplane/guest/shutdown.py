"""SIGTERM and SIGINT: the first asks for an orderly shutdown, a second one for a quick one."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from typing import Any

from .logs import Log

LONGEST_SECONDS = 8.0
"""Engines give a container ten seconds between SIGTERM and SIGKILL."""


class Shutdown:
    """``asked`` at the first signal. ``grace_over`` says how long to wait for an orderly end."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop, timeout: float, log: Log) -> None:
        self._loop = loop
        self._timeout = min(timeout, LONGEST_SECONDS)
        self._log = log
        self._hurried = asyncio.Event()
        self.asked = asyncio.Event()

    def open(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._signalled, number)

    def close(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.remove_signal_handler(number)

    async def within_grace(self, ends: Sequence[asyncio.Future[Any]]) -> None:
        """Return when all ``ends`` are done, the grace is over or somebody is in a hurry."""
        if not ends:
            return
        hurried: asyncio.Future[Any] = self._loop.create_task(self._hurried.wait())
        waiting: asyncio.Future[Any] = asyncio.gather(*map(_quietly, ends))
        try:
            await asyncio.wait({hurried, waiting}, timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurried.cancel()
            waiting.cancel()

    def _signalled(self, number: int) -> None:
        if self.asked.is_set():
            self._log.warn("second signal: killing what is left", signal=signal.Signals(number).name)
            self._hurried.set()
        else:
            self._log.info("shutting down", signal=signal.Signals(number).name, grace_secs=self._timeout)
            self.asked.set()


async def _quietly(end: asyncio.Future[Any]) -> None:
    await asyncio.wait([end])
