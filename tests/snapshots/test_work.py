"""The way of a snapshot from a driver into a blob store and back: files and S3, and everything that breaks it off."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase

from indexify_dataplane.blobs.s3 import S3Settings, S3Store
from indexify_dataplane.blobs.stores import Blobs
from indexify_dataplane.core.effects import SweepUploads, TakeSnapshot
from indexify_dataplane.core.events import SnapshotAttemptFailed, Snapshotted, Swept
from indexify_dataplane.core.model import Handle
from indexify_dataplane.drivers.base import DriverError, SnapshotImpossible
from indexify_dataplane.drivers.blocking import Cancelled
from indexify_dataplane.metrics import Metrics
from indexify_dataplane.perform.snapshots import SnapshotWork
from indexify_dataplane.reactor import Pool
from tests.blobs.moto_server import ENVIRONMENT, REGION, endpoint, new_bucket, set_environment

MIB = 1 << 20
HANDLE = Handle("source", "h")
FILES = random.Random(3).randbytes(20 * MIB)


class Source:
    """A driver as far as its export goes. ``error`` is raised after ``good`` bytes; ``gate`` is waited for there."""

    name = "source"

    def __init__(self) -> None:
        self.good = len(FILES)
        self.error: Exception | None = None
        self.gate: threading.Event | None = None
        self.opened = 0
        self.closed = 0

    @contextmanager
    def export(self, handle: Handle, cancelled: Cancelled) -> Iterator[Iterable[bytes]]:
        self.opened += 1
        try:
            yield self._pieces(cancelled)
        finally:
            self.closed += 1

    def _pieces(self, cancelled: Cancelled) -> Iterator[bytes]:
        gate = self.gate
        for begin in range(0, self.good, MIB):
            yield FILES[begin : min(begin + MIB, self.good)]
        if gate is not None:
            while not gate.wait(0.01) and not cancelled.is_set():
                continue
        if self.error is not None:
            raise self.error


class Work(TestCase):
    """On the file system; ``Remote`` on S3."""

    def setUp(self) -> None:
        self.source = Source()
        self.metrics = Metrics()
        self.pool = Pool(reactor, "snapshots", 2)
        self.pool.start()
        self.addCleanup(lambda: deferToThread(self.pool.stop))
        self.base, settings = self.place()
        self.blobs = Blobs(clock=reactor, calls=self.pool, metrics=self.metrics, s3=settings)  # type: ignore[arg-type]
        self.work = self.work_on(self.blobs)
        self.uri = f"{self.base}/snapshots/ns/one.tar.zst"

    def work_on(self, blobs: Blobs) -> SnapshotWork:
        driver: Any = self.source
        return SnapshotWork(clock=reactor, blobs=blobs, driver_of=lambda handle: driver, metrics=self.metrics)  # type: ignore[arg-type]

    def place(self) -> tuple[str, S3Settings | None]:
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        return f"file://{folder}", None

    def order(self, uri: str | None = None, *, op: int = 1, attempt: int = 1, timeout: float = 60.0) -> TakeSnapshot:
        return TakeSnapshot("c", op, HANDLE, "s", uri or self.uri, attempt, timeout)

    async def failed(self, work: Deferred[Any], retryable: bool) -> str:
        event = await work
        assert isinstance(event, SnapshotAttemptFailed), event
        self.assertEqual(event.retryable, retryable, event.message)
        self.assertEqual(self.source.closed, self.source.opened, "the container stays frozen")
        return event.message

    def uploads(self) -> list[str]:
        return [each.upload_id for each in self.blobs.store_of(self.uri).open_uploads(self.uri)]

    def exists(self) -> bool:
        try:
            return self.blobs.store_of(self.uri).size(self.uri) >= 0
        except Exception:
            return False

    def value(self, name: str) -> float:
        return self.metrics.gauges[name, ()]()

    async def test_there_and_back(self) -> None:
        event = await self.work.take(self.order())
        assert isinstance(event, Snapshotted)
        self.assertEqual(event.size_bytes, self.blobs.store_of(self.uri).size(self.uri))
        self.assertEqual((self.value("snapshots.read_bytes"), self.source.closed), (len(FILES), 1))
        self.assertEqual(self.value("snapshots.stored_bytes"), event.size_bytes)
        root = self.work.stored_root(self.uri)
        for _ in range(2):
            back = await deferToThread(lambda: b"".join(root.read(lambda: None)))
            self.assertTrue(back == FILES)
        self.assertEqual(self.value("snapshots.restored_bytes"), 2 * len(FILES))

    async def test_what_the_driver_cannot_give(self) -> None:
        for error, retryable in ((DriverError("the engine is away"), True), (SnapshotImpossible("gone"), False)):
            self.source.error = error
            self.assertEqual(await self.failed(self.work.take(self.order()), retryable), str(error))
            self.assertEqual((self.exists(), self.uploads()), (False, []))

    async def test_a_surprise_ends_nothing_but_the_attempt(self) -> None:
        self.source.error = ZeroDivisionError("oops")
        self.assertIn("ZeroDivisionError", await self.failed(self.work.take(self.order()), False))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.uploads(), [])

    async def test_one_that_is_given_up_leaves_nothing(self) -> None:
        self.source.gate = threading.Event()
        taking = self.work.take(self.order())
        while self.value("snapshots.read_bytes") < len(FILES):
            await self.soon()
        self.assertEqual(self.value("snapshots.in_progress"), 1)
        self.work.cancel(1)
        await self.failed(taking, False)
        self.assertEqual((self.exists(), self.uploads()), (False, []))
        self.assertEqual(self.value("snapshots.in_progress"), 0)

    async def test_time_is_bounded(self) -> None:
        self.source.gate = threading.Event()
        message = await self.failed(self.work.take(self.order(timeout=0.3)), False)
        self.assertIn("not done after 0.3 s", message)
        self.assertEqual((self.exists(), self.uploads()), (False, []))

    async def test_what_a_dead_node_left_is_aborted_by_the_next_attempt_or_by_the_sweep(self) -> None:
        store = self.blobs.store_of(self.uri)
        other = f"{self.uri}.other"
        kept = store.create_upload(other)
        for way in ("attempt", "sweep"):
            self.leave_an_upload()
            self.assertEqual(len([each for each in store.open_uploads(self.uri) if each.uri == self.uri]), 1)
            if way == "attempt":
                self.assertIsInstance(await self.work.take(self.order(attempt=2)), Snapshotted)
            else:
                swept = await self.work.sweep(SweepUploads("c", self.uri))
                self.assertEqual((swept, self.exists()), (Swept("c", self.uri), False))
            self.assertEqual([each for each in store.open_uploads(self.uri) if each.uri == self.uri], [])
        store.abort_upload(other, kept)

    def leave_an_upload(self) -> None:
        folder, name = os.path.split(self.uri.removeprefix("file://"))
        os.makedirs(folder, exist_ok=True)
        Path(folder, f".{name}.0123456789.upload").write_bytes(b"half")

    async def test_a_sweep_waits_for_the_attempt_that_was_given_up(self) -> None:
        self.source.gate = threading.Event()
        taking = self.work.take(self.order())
        while self.value("snapshots.read_bytes") < len(FILES):
            await self.soon()
        self.work.cancel(1)
        swept: list[Any] = []
        sweeping = Deferred.fromCoroutine(self.work.sweep(SweepUploads("c", self.uri)))
        sweeping.addCallback(lambda event: swept.append((event, taking.called)))
        await self.failed(taking, False)
        await sweeping
        self.assertEqual(swept, [(Swept("c", self.uri), True)])

    async def test_a_place_that_is_none_is_no_use_trying_again(self) -> None:
        for uri in ("http://h/presigned?x=1", "file://relative", "s3://bucket", "file:///a/../b", "nothing"):
            self.assertIn(uri, await self.failed(self.work.take(self.order(uri)), False))

    async def test_a_snapshot_that_is_missing_or_damaged_is_not_restored(self) -> None:
        store = self.blobs.store_of(self.uri)

        def read() -> bytes:
            return b"".join(self.work.stored_root(self.uri).read(lambda: None))

        with self.assertRaisesRegex(DriverError, f"snapshot {self.uri} cannot be restored: "):
            await deferToThread(read)
        await self.work.take(self.order())
        whole = b"".join(store.read(self.uri))
        for broken in (whole[:-1], whole[: len(whole) // 2], whole[:99] + b"\0" + whole[100:], b"", whole[:-1] + b"x"):
            store.write(self.uri, [broken])
            with self.assertRaisesRegex(DriverError, "cannot be restored: it is "):
                await deferToThread(read)
        self.assertEqual(self.value("snapshots.restore_errors"), 6)

    async def soon(self) -> None:
        waiting: Deferred[None] = Deferred()
        reactor.callLater(0.01, waiting.callback, None)  # type: ignore[attr-defined]
        await waiting

    async def test_a_slow_one_delays_no_other(self) -> None:
        self.source.gate = threading.Event()
        slow = self.work.take(self.order())
        while self.value("snapshots.read_bytes") < len(FILES):
            await self.soon()
        gate, self.source.gate = self.source.gate, None
        self.assertIsInstance(await self.work.take(self.order(f"{self.uri}.2", op=2)), Snapshotted)
        self.assertFalse(slow.called)
        gate.set()
        self.assertIsInstance(await slow, Snapshotted)


class FullDisk(TestCase):
    async def test_a_full_disk_leaves_nothing_and_is_tried_again(self) -> None:
        if os.getuid():
            raise SkipTest("mounting a small file system needs root")
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "small", folder], check=True)
        self.addCleanup(subprocess.run, ["umount", folder], check=True)
        pool = Pool(reactor, "snapshots", 1)
        pool.start()
        self.addCleanup(lambda: deferToThread(pool.stop))
        metrics, driver = Metrics(), Source()
        blobs = Blobs(clock=reactor, calls=pool, metrics=metrics)  # type: ignore[arg-type]
        found: Any = driver
        work = SnapshotWork(clock=reactor, blobs=blobs, driver_of=lambda handle: found, metrics=metrics)  # type: ignore[arg-type]
        event = await work.take(TakeSnapshot("c", 1, HANDLE, "s", f"file://{folder}/s.tar.zst", 1, 60.0))
        assert isinstance(event, SnapshotAttemptFailed)
        self.assertEqual((event.retryable, os.listdir(folder), driver.closed), (True, [], 1))
        self.assertIn("No space left on device", event.message)


class Remote(Work):
    """On S3, in several parts."""

    def place(self) -> tuple[str, S3Settings | None]:
        set_environment(ENVIRONMENT, self.addCleanup)
        return f"s3://{new_bucket()}", S3Settings(region=REGION, endpoint_url=endpoint())

    def leave_an_upload(self) -> None:
        self.blobs.store_of(self.uri).create_upload(self.uri)

    async def test_a_store_that_is_down_is_tried_again(self) -> None:
        away = S3Store(S3Settings(region=REGION, endpoint_url="http://127.0.0.1:1", attempts=1))
        stores = {"s3": away}
        blobs = Blobs(clock=reactor, calls=self.pool, metrics=self.metrics, stores=stores)  # type: ignore[arg-type]
        message = await self.failed(self.work_on(blobs).take(self.order()), True)
        self.assertIn("127.0.0.1:1", message)

    async def test_a_bucket_that_is_not_there_is_no_use_trying_again(self) -> None:
        await self.failed(self.work.take(self.order("s3://no-such-bucket/one")), False)
