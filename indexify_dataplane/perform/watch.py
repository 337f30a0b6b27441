"""The watch over one running container: its exit, and its health every few seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from ..core.effects import Watch
from ..core.events import Event, Exited, Unhealthy
from ..core.model import ExitStatus, Kind
from ..drivers.base import DriverError
from ..metrics import Metrics
from ..reactor import Clock
from .containers import ContainerWork

log = Logger()

TICKS = 20
"""Questions are asked at so many moments of an interval: those of many containers share one turn of the loop, which
costs less than as many wake-ups; with 1,000 containers 50 go out at a time."""


class ContainerWatch:
    """Tells ``submit`` once of the exit, and once of ``threshold`` bad or missing health answers in a row.

    Every container is asked on its own, with a deadline: one that hangs delays nobody else.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        work: ContainerWork,
        effect: Watch,
        submit: Callable[[Event], Any],
        interval: float,
        threshold: int,
        metrics: Metrics,
    ) -> None:
        self._clock = clock
        self._work = work
        self._effect = effect
        self._submit = submit
        self._interval = interval
        self._threshold = threshold
        self._metrics = metrics
        self._bad = 0
        self._timer: Any = None
        self._asking: Deferred[None] | None = None
        self._stop_driver: Callable[[], None] | None = None
        self._stopped = False
        self._quiet = effect.frozen

    def start(self) -> None:
        handle = self._effect.handle
        stop = self._work.driver_of(handle).watch(handle, self._exited)
        if self._stopped:
            stop()
            return
        self._stop_driver = stop
        self._schedule()

    def stop(self) -> None:
        self._stopped = True
        self.stop_asking()
        if self._stop_driver is not None:
            self._stop_driver()
            self._stop_driver = None

    def stop_asking(self) -> None:
        """No more questions about its health; its exit is still told."""
        self._quiet = True
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._asking is not None:
            self._asking.cancel()

    def _exited(self, status: ExitStatus) -> None:
        if not self._stopped:
            self.stop()
            self._submit(Exited(self._effect.container_id, self._effect.handle.id, status))

    def _schedule(self) -> None:
        if not self._quiet:
            now, tick = self._clock.seconds(), self._interval / TICKS
            self._timer = self._clock.callLater((now + self._interval) // tick * tick - now, self._ask)

    def _ask(self) -> None:
        asking: Deferred[None] = Deferred.fromCoroutine(self._ask_once())
        if not asking.called:
            self._asking = asking
            asking.addBoth(self._asked)
        else:
            self._asked(None)

    def _asked(self, result: Any) -> None:
        self._asking = None
        self._schedule()

    async def _ask_once(self) -> None:
        effect = self._effect
        kind = "function_executor" if effect.spec.kind is Kind.FUNCTION else "sandbox"
        began = self._clock.seconds()
        try:
            healthy, problem = await self._work.healthy(effect.spec, effect.handle), "it says that it is unhealthy"
        except CancelledError:
            return
        except Exception as error:
            healthy, problem = False, str(error)
        self._metrics.histogram(f"{kind}.health_check_latency_seconds").observe(self._clock.seconds() - began)
        if healthy:
            self._bad = 0
            return
        self._bad += 1
        self._metrics.counter(f"{kind}.failed_health_checks").add()
        log.warn(
            "health check failed",
            container_id=effect.container_id,
            failures_in_a_row=self._bad,
            threshold=self._threshold,
            error=problem,
        )
        if self._bad >= self._threshold and not self._quiet:
            await self._judge(problem)

    async def _judge(self, problem: str) -> None:
        """A dead one does not answer either, and its driver's word about the end is on its way, or waits for an engine
        that is down itself: so the driver is asked first, and while it cannot tell nothing is said."""
        effect = self._effect
        try:
            status = await self._work.driver_of(effect.handle).inspect(effect.handle)
        except CancelledError:
            return
        except DriverError as error:
            log.warn(
                "a container that does not answer cannot be looked at; waiting for its driver",
                container_id=effect.container_id,
                error=str(error),
            )
            return
        if self._quiet:
            return
        if status is not None:
            self._exited(status)
        else:
            self._submit(Unhealthy(effect.container_id, effect.handle.id, problem))


class Watches:
    """The watches over all running containers, at most one each."""

    def __init__(
        self, *, clock: Clock, submit: Callable[[Event], Any], interval: float, threshold: int, metrics: Metrics
    ) -> None:
        self._common: dict[str, Any] = {
            "clock": clock,
            "submit": submit,
            "interval": interval,
            "threshold": threshold,
            "metrics": metrics,
        }
        self._watches: dict[str, ContainerWatch] = {}

    def begin(self, effect: Watch, work: ContainerWork) -> None:
        """Watch, instead of an earlier watch over the same container."""
        self.end(effect.container_id)
        watch = ContainerWatch(work=work, effect=effect, **self._common)
        self._watches[effect.container_id] = watch
        watch.start()

    def stop_asking(self, container_id: str) -> None:
        watch = self._watches.get(container_id)
        if watch is not None:
            watch.stop_asking()

    def end(self, container_id: str) -> None:
        watch = self._watches.pop(container_id, None)
        if watch is not None:
            watch.stop()

    def end_all(self) -> None:
        for container_id in list(self._watches):
            self.end(container_id)
