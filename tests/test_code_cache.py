"""The code cache: verified, downloaded once, bounded."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attrs import evolve
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import TestCase

from indexify_dataplane.blobs.base import BlobError
from indexify_dataplane.blobs.local import LocalStore
from indexify_dataplane.blobs.stores import Blobs
from indexify_dataplane.code_cache import STALE_SECONDS, CodeCache, CodeError
from indexify_dataplane.core.model import Payload
from indexify_dataplane.metrics import Metrics

FILE_LIMIT = 32 << 20
"""More than the log of a whole test run, which the limit holds for as well."""


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writing more into any file fails, as it does on a full disk (EFBIG instead of ENOSPC)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


class Held:
    """A pool whose calls run when the test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Deferred[None], Any]] = []
        self.held = False

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def run(self, call: Any, /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        if not self.held:
            return maybeDeferred(call, *args, **kwargs)
        turn: Deferred[None] = Deferred()
        turn.addCallback(lambda _: call(*args, **kwargs))
        self.waiting.append((turn, call))
        return turn

    def release(self) -> None:
        waiting, self.waiting = self.waiting, []
        for turn, _ in waiting:
            if not turn.called:
                turn.callback(None)


class Caching(TestCase):
    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.metrics = Metrics()
        self.pool = Held()
        self.cache = self.make(10_000)

    def make(self, limit_bytes: int) -> CodeCache:
        blobs = Blobs(clock=Clock(), calls=self.pool, metrics=self.metrics)
        return CodeCache(
            clock=Clock(),
            calls=self.pool,
            blobs=blobs,
            metrics=self.metrics,
            root=self.folder / "cache",
            limit_bytes=limit_bytes,
        )

    def payload(self, code: bytes, name: str = "code") -> Payload:
        uri = f"file://{self.folder}/{name}"
        LocalStore().write(uri, [code])
        return Payload(uri=uri, size=len(code), sha256=hashlib.sha256(code).hexdigest())

    def files(self) -> list[Path]:
        return sorted((self.folder / "cache/by_hash").glob("*"))

    def count(self, name: str) -> float:
        return self.metrics.counter(name).value

    async def test_downloaded_once_and_found_again_by_another_node(self) -> None:
        payload = self.payload(b"code")
        self.assertEqual(await self.cache.load(payload), b"code")
        os.unlink(self.folder / "code")
        upper = evolve(payload, sha256=payload.sha256.upper(), uri="file:///elsewhere")
        self.assertEqual(await self.make(10_000).load(upper), b"code")
        self.assertEqual((self.count("application_downloads"), self.count("application_downloads_from_cache")), (1, 1))

    async def test_a_damaged_file_is_downloaded_again(self) -> None:
        payload = self.payload(b"code")
        await self.cache.load(payload)
        self.files()[0].write_bytes(b"evil")
        self.assertEqual(await self.cache.load(payload), b"code")
        self.assertEqual(self.files()[0].read_bytes(), b"code")

    async def test_whatever_else_is_in_the_place_of_a_file_is_replaced(self) -> None:
        payload = self.payload(b"code")
        place = self.folder / "cache/by_hash" / payload.sha256
        elsewhere = self.folder / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "kept").write_bytes(b"")

        def folder() -> None:
            (place / "deep").mkdir(parents=True)
            (place / "deep/file").write_bytes(b"x")

        for plant in (
            folder,
            lambda: place.symlink_to(elsewhere),
            lambda: place.symlink_to(self.folder / "nowhere"),
            lambda: os.mkfifo(place),
        ):
            plant()
            self.assertEqual(await self.cache.load(payload), b"code")
            self.assertEqual([path.name for path in self.files()], [payload.sha256])
            self.assertFalse(place.is_symlink())
            self.assertEqual(place.read_bytes(), b"code")
            place.unlink()
        self.assertTrue((elsewhere / "kept").exists())

    async def test_a_cache_that_cannot_be_written_is_told_once_and_fails_no_start(self) -> None:
        (self.folder / "cache").write_bytes(b"in the way")
        one, two = self.payload(b"one", "1"), self.payload(b"two", "2")
        with capturedLogs() as events:
            self.assertEqual(await self.cache.load(one), b"one")
            self.assertEqual(await self.cache.load(two), b"two")
            self.assertEqual(await self.cache.load(one), b"one")
        (warning,) = (each for each in events if each["log_level"] is LogLevel.warn)
        self.assertIn(str(self.folder / "cache"), warning["folder"])
        self.assertIn("Not a directory", warning["error"])
        (self.folder / "cache").unlink()
        await self.cache.load(one)
        self.assertEqual(self.files()[0].read_bytes(), b"one")

    async def test_code_on_a_full_disk_is_used_and_leaves_nothing_half_written(self) -> None:
        code = bytes(FILE_LIMIT + 1)
        payload = self.payload(code)
        with file_size_limit(FILE_LIMIT):
            self.assertTrue(await self.cache.load(payload) == code)
        self.assertEqual(self.files(), [])
        with self.assertRaises(CodeError):
            await self.cache.load(evolve(payload, sha256="0" * 64))

    async def test_code_that_is_not_what_was_announced_is_refused_and_not_kept(self) -> None:
        for changed in ({"sha256": "0" * 64}, {"size": 3}):
            with self.assertRaises(CodeError):
                await self.cache.load(evolve(self.payload(b"code"), **changed))
        self.assertEqual(self.files(), [])
        for wrong in (None, "", "../../etc/passwd", "0" * 63 + "/"):
            with self.assertRaises(CodeError):
                await self.cache.load(evolve(self.payload(b"code"), sha256=wrong))
        with self.assertRaises(BlobError):
            await self.cache.load(evolve(self.payload(b"code"), uri=f"file://{self.folder}/missing"))
        self.assertEqual(self.count("application_download_errors"), 3)

    def test_many_ask_and_one_download_is_made(self) -> None:
        payload = self.payload(b"code")
        self.pool.held = True
        asking = [Deferred.fromCoroutine(self.cache.load(payload)) for _ in range(3)]
        asking[0].cancel()
        self.failureResultOf(asking[0], CancelledError)
        self.pool.release()
        self.pool.release()
        self.assertEqual([self.successResultOf(each) for each in asking[1:]], [b"code", b"code"])
        self.assertEqual(self.count("application_downloads"), 1)

    def test_a_failed_download_is_told_to_all_and_tried_anew(self) -> None:
        payload = self.payload(b"code")
        os.unlink(self.folder / "code")
        self.pool.held = True
        asking = [Deferred.fromCoroutine(self.cache.load(payload)) for _ in range(2)]
        self.pool.release()
        self.pool.release()
        for each in asking:
            self.failureResultOf(each, BlobError)
        self.pool.held = False
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(self.cache.load(self.payload(b"code")))), b"code")

    def test_closing_ends_what_is_under_way(self) -> None:
        self.pool.held = True
        asking = Deferred.fromCoroutine(self.cache.load(self.payload(b"code")))
        self.successResultOf(Deferred.fromCoroutine(self.cache.close()))
        self.failureResultOf(asking, CancelledError)

    async def test_the_least_recently_used_is_dropped_first(self) -> None:
        cache = self.make(25)
        one, two, three = (self.payload(bytes([number]) * 10, str(number)) for number in range(3))
        for number, payload in enumerate((one, two)):
            await cache.load(payload)
            os.utime(self.folder / "cache/by_hash" / payload.sha256, (number, number))
        await cache.load(one)
        await cache.load(three)
        self.assertEqual({path.name for path in self.files()}, {one.sha256, three.sha256})

    async def test_code_larger_than_the_limit_is_kept_until_the_next(self) -> None:
        cache = self.make(5)
        await cache.load(self.payload(b"0123456789"))
        self.assertEqual(len(self.files()), 1)

    async def test_downloads_that_died_with_their_node_are_removed(self) -> None:
        await self.cache.load(self.payload(b"one", "1"))
        stale, fresh = (self.folder / "cache/by_hash" / f".{name}.download" for name in ("stale", "fresh"))
        for path in (stale, fresh):
            path.write_bytes(b"half")
        old = stale.stat().st_mtime - STALE_SECONDS - 1
        os.utime(stale, (old, old))
        await self.cache.load(self.payload(b"two", "2"))
        self.assertEqual((stale.exists(), fresh.exists()), (False, True))
