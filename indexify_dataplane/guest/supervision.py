"""Keeps a managed process up: restarts with back-off, health checks, and a gentle stop.

One task per managed process goes round: wait for the end of the child (or a verdict of the health check), decide,
wait out the back-off, start again. Everything that may be asked of it from outside (stop, restart) only sets a wish
and wakes the task, so no two of them can ever act on the child at once.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .health_check import HealthCheck, HealthCheckOrder
from .logs import Log

if TYPE_CHECKING:
    from .process import Ended, Process

STEADY_SECONDS = 60.0
"""A child that ran this long starts the back-off anew."""


@dataclass(frozen=True)
class SupervisionOrder:
    """What a start request says about management. Times in milliseconds; ``max_restarts`` None: no limit."""

    name: str | None = None
    policy: str = "on_failure"
    max_restarts: int | None = None
    initial_backoff_ms: int = 500
    max_backoff_ms: int = 30_000
    stop_grace_ms: int = 10_000
    health_check: HealthCheckOrder | None = None


class Supervision:
    """See the module's text. ``status``: starting, running, backing_off or stopped; ``over`` is set with the last."""

    def __init__(
        self, *, order: SupervisionOrder, process: Process, restarted: Callable[[Process], None], log: Log
    ) -> None:
        self.order = order
        self.id = order.name if order.name is not None else "p-" + os.urandom(8).hex()
        self.status = "starting"
        self.restart_count = 0
        self.last_exit: Ended | None = None
        self.last_error: str | None = None
        self.next_restart_at: int | None = None
        self.over = asyncio.Event()
        self.health = HealthCheck(order=order.health_check) if order.health_check is not None else None
        self._process = process
        self._restarted = restarted
        self._log = log
        self._failures = 0
        self._wish: str | None = None  # "stop" or "restart"
        self._woken = asyncio.Event()
        self._again: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def active(self) -> bool:
        return not self.over.is_set()

    def open(self) -> None:
        """Start the first child. Raises OSError."""
        self._process.keep_log_open = True
        self._process.start()
        self.status = "running"
        self._task = asyncio.get_running_loop().create_task(self._keep_up())

    async def stop(self) -> None:
        """No more restarts; the child gets SIGTERM, and SIGKILL after the grace. Returns when it is over."""
        self._ask("stop")
        await self.over.wait()

    async def restart(self) -> None:
        """Stop the child and start it at once, back-off or not. Raises OSError when the start fails."""
        if not self.active:
            self._process.start()
            self.over.clear()
            self._wish = None
            self._failures = 0
            self.restart_count += 1
            self._process.reopen_log()
            self._restarted(self._process)
            self.status = "running"
            self._task = asyncio.get_running_loop().create_task(self._keep_up())
            return
        done = asyncio.get_running_loop().create_future()
        self._again.append(done)
        self._ask("restart")
        await done

    def give_up(self) -> None:
        """Leave the child alone from now on: the daemon ends it."""
        if self._task is not None:
            self._task.cancel()
        self._finish(OSError(errno.ECANCELED, "the sandbox is shutting down"))

    def _ask(self, wish: str) -> None:
        if self._wish != "stop":
            self._wish = wish
        self._woken.set()

    async def _keep_up(self) -> None:
        try:
            while True:
                began = time.monotonic()
                ended = await self._watch_child()
                self.last_exit = ended
                if time.monotonic() - began >= STEADY_SECONDS:
                    self._failures = 0
                if not self._goes_on(ended):
                    break
                if self._wish != "restart":
                    await self._back_off()
                if self._wish == "stop":
                    break
                while not self._start_again():
                    if self._exhausted():
                        return
                    await self._back_off()
                    if self._wish == "stop":
                        return
        except Exception as error:
            self._log.failure("supervision broke off", error, process=self.id)
            self.last_error = f"{type(error).__name__}: {error}"
        finally:
            self._finish(OSError(errno.ECANCELED, "the process was stopped"))

    async def _watch_child(self) -> Ended:
        """Wait for the end of the child; bring it about when that is wished or the child is unhealthy."""
        loop = asyncio.get_running_loop()
        checking = loop.create_task(self.health.watch()) if self.health is not None else None
        end = self._process.end
        try:
            while True:
                waking = loop.create_task(self._woken.wait())
                try:
                    waits: set[asyncio.Future[Any]] = {end, waking} if checking is None else {end, waking, checking}
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waking.cancel()
                self._woken.clear()
                if end.done():
                    return end.result()
                if checking is not None and checking.done() and self._wish is None:
                    checking.result()
                    self.last_error = "the health check failed"
                    if self.order.policy == "never":
                        checking = None
                        continue
                    return await self._end_child()
                if self._wish is not None:
                    return await self._end_child()
        finally:
            if checking is not None:
                checking.cancel()

    async def _end_child(self) -> Ended:
        process = self._process
        if process.alive:
            try:
                process.signal_group(signal.SIGTERM)
            except PermissionError as error:
                self._log.warn("SIGTERM failed", process=self.id, error=error.strerror)
            await asyncio.wait([process.end], timeout=self.order.stop_grace_ms / 1000)
        if process.alive:
            await process.kill_tree()
        return await asyncio.shield(process.end)

    def _goes_on(self, ended: Ended) -> bool:
        if self._wish is not None:
            return self._wish == "restart"
        unhealthy = self.health is not None and self.health.status == "unhealthy"
        failed = ended.exit_code != 0 or unhealthy
        if self.order.policy == "never" or (self.order.policy == "on_failure" and not failed):
            return False
        return not self._exhausted()

    def _exhausted(self) -> bool:
        if self.order.max_restarts is None or self.restart_count < self.order.max_restarts:
            return False
        self.last_error = f"restarted {self.restart_count} times, which is the limit"
        return True

    async def _back_off(self) -> None:
        delay_ms = min(self.order.initial_backoff_ms * 2 ** min(self._failures, 40), self.order.max_backoff_ms)
        self._failures += 1
        self.status = "backing_off"
        self.next_restart_at = int(time.time() * 1000) + delay_ms
        try:
            async with asyncio.timeout(delay_ms / 1000):
                await self._woken.wait()
        except TimeoutError:
            return
        finally:
            self._woken.clear()
            self.next_restart_at = None

    def _start_again(self) -> bool:
        self.status = "starting"
        self.restart_count += 1
        wished, self._wish = self._wish == "restart", None
        if wished:
            self._failures = 0
        try:
            self._process.start()
        except OSError as error:
            self.last_error = f"start failed: {error}"
            self._log.warn("managed process could not be started", process=self.id, error=str(error))
            self._answer(error)
            return False
        self._restarted(self._process)
        self.status = "running"
        self._log.info("managed process restarted", process=self.id, pid=self._process.pid, count=self.restart_count)
        self._answer(None)
        return True

    def _answer(self, error: OSError | None) -> None:
        waiting, self._again = self._again, []
        for done in waiting:
            if done.done():
                continue
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

    def _finish(self, error: OSError) -> None:
        if self.over.is_set():
            return
        self.status = "stopped"
        self._answer(error)
        self._process.close_log_when_drained()
        self.over.set()
