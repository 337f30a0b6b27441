"""Keeps the images of one engine as the configuration wants them: pulls those that are to be there, makes room."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from ...reactor import Calls, Clock
from ..base import DriverError
from ..blocking import Cancelled
from .image_cache import ImageCache, Room
from .rounds import Rounds

log = Logger()

Pull = Callable[[str, Cancelled], None]


class ImageUpkeep(Rounds):
    """``pull`` is the driver's own, so that a start and the upkeep share one pull of the same image. ``cache`` is asked
    for when it is used: it belongs to an open driver."""

    name = "image-upkeep"

    def __init__(
        self, *, clock: Clock, calls: Calls, cache: Callable[[], ImageCache], pull: Pull, interval: float
    ) -> None:
        super().__init__(clock=clock, calls=calls, interval=interval, at_once=True)
        self._cache = cache
        self._pull = pull
        self._told: dict[str, str] = {}
        self._stopped = Cancelled()

    def stopService(self) -> None:
        self._stopped.set()
        super().stopService()

    async def round(self) -> None:
        for reference in await self._try("images", lambda: self._cache().missing()) or ():
            await self._try(reference, partial(self._pull, reference, self._stopped))
        await self._try("room", lambda: self._cache().make_room())

    async def _try(self, what: str, call: Callable[[], list[str] | None]) -> list[str] | None:
        """One step; what goes wrong is told when it begins, not every round."""
        try:
            result = await self._calls.run(call)
        except CancelledError:
            raise
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
