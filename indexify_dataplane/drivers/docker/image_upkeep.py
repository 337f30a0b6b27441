"""Keeps the images of one engine as the configuration wants them: pulls those that are to be there, makes room."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ...reactor import Calls, Clock
from ..base import DriverError
from ..blocking import Cancelled
from .image_cache import ImageCache, Room

log = Logger()

Pull = Callable[[str, Cancelled], None]


class ImageUpkeep(Service):
    """One round at once and then every ``interval`` seconds; the next one waits for the one before. ``pull`` is the
    driver's own, so that a start and the upkeep share one pull of the same image. ``calls`` is a pool of its own: a
    pull that takes long delays nothing but the next round. ``cache`` is asked for when it is used: it belongs to an
    open driver."""

    name = "image-upkeep"

    def __init__(
        self, *, clock: Clock, calls: Calls, cache: Callable[[], ImageCache], pull: Pull, interval: float
    ) -> None:
        self._calls = calls
        self._cache = cache
        self._pull = pull
        self._interval = interval
        self._told: dict[str, str] = {}
        self._stopped = Cancelled()
        self._round: Deferred[None] | None = None
        self._loop = LoopingCall(self._begin)
        self._loop.clock = clock  # type: ignore[assignment]

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._calls.start()
        self._loop.start(self._interval, now=True)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        self._stopped.set()
        if self._loop.running:
            self._loop.stop()
        if self._round is not None:
            self._round.cancel()
        # Joining blocks, and a call in a hung engine would keep the process.
        threading.Thread(target=self._calls.stop, name="image upkeep stop", daemon=True).start()

    def _begin(self) -> Deferred[None]:
        self._round = Deferred.fromCoroutine(self._all())
        return self._round

    async def _all(self) -> None:
        try:
            for reference in await self._try("images", lambda: self._cache().missing()) or ():
                await self._try(reference, partial(self._pull, reference, self._stopped))
            await self._try("room", lambda: self._cache().make_room())
        except CancelledError:
            return
        finally:
            self._round = None

    async def _try(self, what: str, call: Callable[[], list[str] | None]) -> list[str] | None:
        """One step; what goes wrong is told when it begins, not every round."""
        try:
            result = await self._calls.run(call)
        except DriverError as error:
            if self._told.get(what) != str(error) and not self._stopped.is_set():
                log.error("the image cache cannot be kept, trying again", what=what, error=str(error))
            self._told[what] = str(error)
            return None
        except Exception:
            # A round that ended so would be the last one.
            log.failure("unexpected error while looking after images", what=what)
            return None
        if self._told.pop(what, None) is not None:
            log.info("the image cache is kept again", what=what)
        return result


def room_of(directory: str, *, root: str = "/") -> Room | None:
    """The file system that holds the engine's ``directory``; None where it cannot be seen: a remote engine, or a node
    in a container without the host's ``/proc``."""
    host = os.path.join(root, "host/proc/1/root", directory.lstrip("/"))
    for place in (host, os.path.join(root, directory.lstrip("/"))):
        try:
            found = os.statvfs(place)
        except OSError:
            continue
        # As df counts: what is kept for root is neither used nor to be had.
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        return Room(used=used, total=used + found.f_bavail * found.f_frsize)
    return None
