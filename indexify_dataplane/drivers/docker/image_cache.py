"""Images on the engine's disk: those that are to be there always, and room made by removing what nobody used for long.

Only images that this node pulled are ever removed, by the very name it pulled them with, never one that any container
uses, and not while its name means another image by now. The engine itself refuses to remove what is in use.

Interleaving that matters: a start finds an image, an eviction removes it, the start makes a container of it. So a start
says ``using`` before it looks: that marks the image as fresh under the lock under which evictions remove, and ``fresh``
images are left alone for ``FRESH_SECS``, which is much longer than a start needs to make its container.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import frozen
from docker.errors import APIError, ImageNotFound, NotFound
from twisted.logger import Logger

from ..base import DriverError
from .failures import EXPECTED
from .image_records import ImageRecords, PulledImage

log = Logger()

FRESH_SECS = 60.0


@frozen
class Watermarks:
    """When room is made: above ``high`` percent of the engine's disk in use, until below ``low``; and whenever the
    images that this node pulled are larger than ``max_bytes`` together. ``high`` 100 and ``max_bytes`` None: never."""

    high: float = 85.0
    low: float = 80.0
    max_bytes: int | None = None


@frozen
class Room:
    """The disk of the engine's images, in bytes."""

    used: int
    total: int

    @property
    def percent(self) -> float:
        return 100.0 * self.used / self.total if self.total else 0.0


class ImageCache:
    """``client`` is docker-py's low-level one. ``room`` measures the engine's disk, None where it cannot be seen from
    here. ``removed`` is called after each removal, before anybody may look again. ``wall`` gives seconds since the
    epoch. Blocking; used from several threads."""

    def __init__(
        self,
        *,
        client: Any,
        records: ImageRecords,
        watermarks: Watermarks,
        keep: Sequence[str] = (),
        room: Callable[[], Room | None],
        removed: Callable[[], None] = lambda: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._records = records
        self._watermarks = watermarks
        self._keep = frozenset(keep)
        self._room = room
        self._removed = removed
        self._wall = wall
        self._lock = threading.Lock()
        self._used: dict[str, float] = {}
        self._unwritten: set[str] = set()

    # What starts tell

    def using(self, reference: str) -> None:
        """A start is about to look for the image: it is not removed from now on. Waits for a removal under way."""
        with self._lock:
            self._used[reference] = self._wall()
            self._unwritten.add(reference)

    @contextmanager
    def pulling(self, reference: str, *, absent: bool) -> Iterator[None]:
        """Around a pull. The image is ours afterwards if it was ``absent``, and if it has been ours. Starts do not
        depend on the list: when it cannot be written the image is taken for somebody else's."""
        try:
            mine = absent or any(each.reference == reference for each in self._records.all())
            if absent:
                self._records.begins(reference, self._wall())
        except DriverError as error:
            log.error("a pulled image will not be removed by itself", image=reference, error=str(error))
            yield
            return
        try:
            yield
        except BaseException:
            if absent:
                self._note(reference, lambda: self._records.forget(reference))
            raise
        if mine:
            self._note(reference, lambda: self._records.pulled(reference, self._id(reference) or "", self._wall()))

    def _note(self, reference: str, write: Callable[[], None]) -> None:
        """What came of a pull. The list is tidied up later, by ``_ours``."""
        try:
            write()
        except (DriverError, *EXPECTED) as error:
            log.warn("the list of pulled images is behind", image=reference, error=str(error))

    # Making room

    def make_room(self) -> list[str]:
        """Remove what has to go, the longest unused first; the references that were removed. Raises DriverError."""
        self._write_down()
        gone: list[str] = []
        try:
            ours = self._ours()
            busy = {str(each.get("ImageID")) for each in self._client.containers(all=True)}
            sizes = {each.reference: self._size(each.reference) for each in ours}
            for image in ours:
                if not self._too_full(sizes, begun=bool(gone)):
                    break
                if image.reference not in self._keep and image.image not in busy and self._remove(image):
                    gone.append(image.reference)
                    sizes.pop(image.reference, None)
        except EXPECTED as error:
            raise DriverError(f"images cannot be looked after: {error}") from error
        return gone

    def missing(self) -> list[str]:
        """Images that are to be there always and are not."""
        try:
            return [reference for reference in sorted(self._keep) if self._id(reference) is None]
        except EXPECTED as error:
            raise DriverError(f"images cannot be looked after: {error}") from error

    def _ours(self) -> list[PulledImage]:
        """Records that are true: names that still mean the image that we pulled."""
        found = []
        for record in self._records.all():
            there = self._id(record.reference)
            if there is None or (record.image and record.image != there):
                # Gone, or pulled again by somebody else: not ours any more. A pull under way has no image yet.
                if record.image is not None or self._wall() - record.used > 86400:
                    self._records.forget(record.reference)
                continue
            if not record.image:
                self._records.pulled(record.reference, there, record.used)
            found.append(PulledImage(record.reference, there, record.used))
        return found

    def _too_full(self, sizes: Mapping[str, int], *, begun: bool) -> bool:
        marks, room = self._watermarks, self._room()
        # Once begun it goes on to the lower mark, so that it need not begin again with the next pull.
        if room is not None and marks.high < 100 and room.percent > (marks.low if begun else marks.high):
            return True
        return marks.max_bytes is not None and sum(sizes.values()) > marks.max_bytes

    def _remove(self, image: PulledImage) -> bool:
        with self._lock:
            if self._wall() - max(image.used, self._used.get(image.reference, 0.0)) < FRESH_SECS:
                return False
            try:
                self._client.remove_image(image.reference)
            except (ImageNotFound, NotFound):
                log.debug("image was gone already", image=image.reference)
            except APIError as error:
                if error.status_code != 409:
                    raise
                log.debug("image is in use after all", image=image.reference, said=str(error.explanation))
                return False
            self._used.pop(image.reference, None)
            self._removed()
        self._records.forget(image.reference)
        idle = round(self._wall() - image.used)
        log.info("image removed to make room", image=image.reference, unused_secs=idle)
        return True

    def _write_down(self) -> None:
        with self._lock:
            fresh = {reference: self._used[reference] for reference in self._unwritten if reference in self._used}
            self._unwritten.clear()
        if fresh:
            self._records.used(fresh)

    def _id(self, reference: str) -> str | None:
        try:
            return str(self._client.inspect_image(reference)["Id"])
        except (ImageNotFound, NotFound):
            return None

    def _size(self, reference: str) -> int:
        try:
            return int(self._client.inspect_image(reference).get("Size", 0))
        except (ImageNotFound, NotFound):
            return 0
