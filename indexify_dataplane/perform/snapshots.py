"""Takes snapshots: from a driver's export through the compressor into the blob store, in threads of their own.

Interleavings that matter: an attempt is given up (cancelled, or over its time) while its thread is at work. The thread
is told and ends at the next piece, which aborts the upload; the caller does not wait for a store that hangs. An upload
that is complete all the same is deleted, because the snapshot was answered as failed.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..blobs.base import BlobError, BlobNotFound
from ..blobs.stores import Blobs
from ..core.effects import SweepUploads, TakeSnapshot
from ..core.events import Event, SnapshotAttemptFailed, Snapshotted, Swept
from ..core.model import Handle
from ..drivers.base import Driver, DriverError, SnapshotImpossible, StoredRoot, UpperLayer
from ..drivers.blocking import Cancelled
from ..metrics import Metrics
from ..reactor import Clock
from ..snapshots.archive import UPPER, SnapshotDamaged, Transfer, note_of, pack, unpack
from ..snapshots.pipeline import ahead

log = Logger()

PATIENCE = 5.0
"""Seconds that a thread gets to end after it was told to."""
SWEEPS = 6
"""How often leftovers of a snapshot that was given up are looked for when the store does not answer."""


class SnapshotWork:
    """Performs the effects on snapshots, and reads stored ones. ``blobs`` have a pool of their own: a slow store then
    delays nothing but snapshots."""

    def __init__(self, *, clock: Clock, blobs: Blobs, driver_of: Callable[[Handle], Driver], metrics: Metrics) -> None:
        self._clock: Any = clock
        self._blobs = blobs
        self._driver_of = driver_of
        self._metrics = metrics
        self._taking: dict[int, Deferred[Event]] = {}
        self._writing: Counter[str] = Counter()
        """How many attempts are at work on each place, those included that were told to end."""
        self._taken = _Totals()
        self._restored = _Totals()
        metrics.gauge("snapshots.in_progress", lambda: len(self._taking))
        metrics.gauge("snapshots.read_bytes", lambda: self._taken.sum("plain_bytes"))
        metrics.gauge("snapshots.stored_bytes", lambda: self._taken.sum("stored_bytes"))
        metrics.gauge("snapshots.restored_bytes", lambda: self._restored.sum("plain_bytes"))
        metrics.gauge("snapshots.restores", lambda: self._restored.begun)
        metrics.gauge("snapshots.restore_errors", lambda: self._restored.failed)

    def take(self, effect: TakeSnapshot) -> Deferred[Event]:
        work: Deferred[Event] = Deferred.fromCoroutine(self._take(effect))
        if not work.called:
            self._taking[effect.op] = work
            work.addBoth(self._done, effect.op)
        return work

    def _done(self, result: Any, op: int) -> Any:
        self._taking.pop(op, None)
        return result

    def cancel(self, op: int) -> None:
        """Give the attempt up; its answer comes soon and is of no interest."""
        work = self._taking.pop(op, None)
        if work is not None:
            work.cancel()

    async def _take(self, effect: TakeSnapshot) -> Event:
        self._writing[effect.upload_uri] += 1
        try:
            return await self._attempt(effect)
        finally:
            self._writing[effect.upload_uri] -= 1
            self._writing += Counter()  # forgets places that nobody writes to

    async def _attempt(self, effect: TakeSnapshot) -> Event:
        cancelled, transfer = Cancelled(), Transfer()
        try:
            if effect.attempt > 1:
                await self._abort_uploads(effect.upload_uri)
            size = await self._copy(effect, transfer, cancelled)
        except CancelledError:
            return SnapshotAttemptFailed(effect.container_id, effect.op, "the snapshot was given up", False)
        except TimeoutError:
            problem = f"not done after {effect.timeout:g} s, at {transfer.plain_bytes} bytes"
            return SnapshotAttemptFailed(effect.container_id, effect.op, problem, False)
        except BlobError as error:
            return SnapshotAttemptFailed(effect.container_id, effect.op, str(error), error.retryable)
        except DriverError as error:
            retryable = not isinstance(error, SnapshotImpossible)
            return SnapshotAttemptFailed(effect.container_id, effect.op, str(error), retryable)
        except Exception as error:
            log.failure("a snapshot failed in a way that nobody foresaw", container_id=effect.container_id)
            problem = f"{type(error).__name__}: {error}"
            return SnapshotAttemptFailed(effect.container_id, effect.op, problem, False)
        return Snapshotted(effect.container_id, effect.op, size, transfer.sha256)

    async def _copy(self, effect: TakeSnapshot, transfer: Transfer, cancelled: Cancelled) -> int:
        driver = self._driver_of(effect.handle)

        @contextmanager
        def source() -> Iterator[Iterator[bytes]]:
            cancelled.check()
            with (
                driver.export(effect.handle, cancelled) as tar,
                closing(ahead(tar)) as read,  # type: ignore[type-var]
                closing(ahead(pack(read, transfer, cancelled.check, _note(tar)))) as pieces,  # type: ignore[type-var]
            ):
                yield pieces

        with self._taken.counting(transfer):
            return await self._within(
                Deferred.fromCoroutine(self._blobs.put_from(effect.upload_uri, source)), effect, cancelled
            )

    async def _within(self, work: Deferred[int], effect: TakeSnapshot, cancelled: Cancelled) -> int:
        results: list[Any] = []
        over: Deferred[None] = Deferred()

        def ended(result: Any) -> None:
            results.append(result)
            if not over.called:
                over.callback(None)

        work.addBoth(ended)
        try:
            await over.addTimeout(effect.timeout, self._clock)
        except (CancelledError, TimeoutError):
            cancelled.set()
            over = Deferred()
            if not results:
                try:
                    await over.addTimeout(PATIENCE, self._clock)
                except (CancelledError, TimeoutError):
                    log.warn("a snapshot that was given up does not end", container_id=effect.container_id)
            if results and not isinstance(results[0], Failure):
                await self._blobs.delete(effect.upload_uri)
            raise
        if isinstance(results[0], Failure):
            results[0].raiseException()
        size: int = results[0]
        return size

    async def sweep(self, effect: SweepUploads) -> Event:
        """Abort what is unfinished, and remove a blob that was finished when the node died; a store that is away is
        asked again for a minute."""
        uri, pause = effect.upload_uri, 1.0
        while self._writing[uri]:
            await self._sleep(pause)
        for left in reversed(range(SWEEPS)):
            try:
                await self._abort_uploads(uri)
                await self._blobs.delete(uri)
                break
            except BlobError as error:
                if not error.retryable or not left:
                    log.warn("something of a snapshot that failed may be left in the store", uri=uri, error=str(error))
                    break
            await self._sleep(pause)
            pause *= 2
        return Swept(effect.container_id, uri)

    async def _abort_uploads(self, uri: str) -> None:
        for upload in await self._blobs.open_uploads(uri):
            if upload.uri == uri:
                await self._blobs.abort_upload(uri, upload.upload_id)
                log.info("unfinished upload of a snapshot aborted", uri=uri, upload_id=upload.upload_id)

    async def _sleep(self, seconds: float) -> None:
        waiting: Deferred[None] = Deferred()
        timer = self._clock.callLater(seconds, waiting.callback, None)
        try:
            await waiting
        finally:
            if timer.active():
                timer.cancel()

    def stored_root(self, uri: str) -> StoredRoot:
        """The snapshot at ``uri``, for a driver to start from."""

        def read(check: Callable[[], None]) -> Iterator[bytes]:
            transfer = Transfer()
            with self._restored.counting(transfer):
                try:
                    yield from unpack(self._blobs.store_of(uri).read(uri), transfer, check)
                except (BlobError, SnapshotDamaged) as error:
                    self._restored.failed += 1
                    raise DriverError(f"snapshot {uri} cannot be restored: {error}") from error

        def is_upper() -> bool:
            try:
                head = b"".join(self._blobs.store_of(uri).read(uri, 0, 8 + len(UPPER)))
            except BlobError as error:
                if not isinstance(error, BlobNotFound) and not error.retryable:
                    return False  # it is shorter than a note
                raise DriverError(f"snapshot {uri} cannot be restored: {error}") from error
            return note_of(head) == UPPER

        return StoredRoot(uri, read, is_upper)


def _note(tar: Iterable[bytes]) -> bytes:
    return UPPER if isinstance(tar, UpperLayer) else b""


class _Totals:
    """What all transfers of one direction have moved, those under way included. Thread-safe."""

    def __init__(self) -> None:
        self.begun = 0
        self.failed = 0
        self._lock = threading.Lock()
        self._active: set[Transfer] = set()
        self._over = {"plain_bytes": 0, "stored_bytes": 0}

    @contextmanager
    def counting(self, transfer: Transfer) -> Iterator[None]:
        with self._lock:
            self.begun += 1
            self._active.add(transfer)
        try:
            yield
        finally:
            with self._lock:
                self._active.discard(transfer)
                for name in self._over:
                    self._over[name] += getattr(transfer, name)

    def sum(self, name: str) -> int:
        with self._lock:
            moving: int = sum(getattr(each, name) for each in self._active)
            return self._over[name] + moving
