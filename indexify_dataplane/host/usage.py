"""The gauges of free CPU, memory and disk, refreshed on the node's clock. Overrides do not change them."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ..metrics import Metrics
from ..reactor import Calls, Clock
from . import probes
from .resources import Files, disk_space

log = Logger()


@frozen
class Free:
    """What was free at one look. ``cpu`` are the raw ticks that the next look is compared with."""

    cpu: probes.CpuTime | None
    memory_bytes: int | None
    disk_bytes: int


def look(*, disks: Sequence[str], root: str = "/") -> Free:
    """Blocking. OSError when a directory of ``disks`` cannot be asked."""
    files = Files(root)
    return Free(
        cpu=probes.cpu_time(files.read(files.proc / "stat")),
        memory_bytes=probes.memory(files.read(files.proc / "meminfo"), "MemAvailable"),
        disk_bytes=disk_space(disks).available,
    )


class FreeResources(Service):
    """Keeps the three ``resources.free_*`` gauges fresh, ``interval`` seconds apart. ``calls`` is somebody else's: a
    hung file system takes one of its threads and nothing more."""

    name = "free-resources"

    def __init__(
        self,
        *,
        clock: Clock,
        calls: Calls,
        metrics: Metrics,
        disks: Sequence[str],
        root: str = "/",
        interval: float = 5.0,
    ) -> None:
        self.cpu_percent = 100.0
        self.memory_bytes = 0
        self.disk_bytes = 0
        self._calls = calls
        self._metrics = metrics
        self._disks = tuple(disks)
        self._root = root
        self._interval = interval
        self._last: probes.CpuTime | None = None
        self._failed = False
        self._looking: Deferred[None] | None = None
        self._loop = LoopingCall(self._refresh)
        self._loop.clock = clock  # type: ignore[assignment]

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._loop.start(self._interval, now=True)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._loop.running:
            self._loop.stop()
        if self._looking is not None:
            self._looking.cancel()

    def _refresh(self) -> Deferred[None]:
        self._looking = Deferred.fromCoroutine(self._look())
        return self._looking

    async def _look(self) -> None:
        try:
            free = await self._calls.run(look, disks=self._disks, root=self._root)
        except CancelledError:
            return
        except Exception as error:
            if not self._failed:
                log.warn("free resources cannot be read, the gauges stay as they are", error=str(error))
            self._failed = True
            return
        finally:
            self._looking = None
        self._failed = False
        # A gauge appears with its first value: a zero that nobody measured would raise alarms.
        self.disk_bytes = free.disk_bytes
        self._metrics.gauge("resources.free_disk_bytes", lambda: self.disk_bytes)
        if free.memory_bytes is not None:
            self.memory_bytes = free.memory_bytes
            self._metrics.gauge("resources.free_memory_bytes", lambda: self.memory_bytes)
        if free.cpu is not None:
            self._metrics.gauge("resources.free_cpu_percent", lambda: self.cpu_percent)
            percent = free.cpu.free_percent_since(self._last) if self._last is not None else None
            if percent is not None:
                self.cpu_percent = percent
            self._last = free.cpu
