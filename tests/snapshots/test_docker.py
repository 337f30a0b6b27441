"""Export and restore on a real engine, through the Docker driver."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from attrs import evolve
from docker import APIClient
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from indexify_dataplane.core.model import Handle
from indexify_dataplane.drivers.base import DriverError, SnapshotImpossible, StartOrder, StoredRoot
from indexify_dataplane.drivers.blocking import Cancelled
from indexify_dataplane.snapshots.archive import SnapshotDamaged, Transfer, pack, unpack
from indexify_dataplane.snapshots.docker import REPOSITORY, exported, tag_of
from tests.contracts.driver import order
from tests.contracts.driver_docker import DockerPlace
from tests.engine import require
from tests.guestbundle.sources import real_daemon

from . import tree


class DockerSnapshots(TestCase):
    """``runtime`` None is runc."""

    runtime: str | None = None

    def setUp(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._set_up())

    async def _set_up(self) -> None:
        self.engine = require(self)
        self.api = self.engine.client.api
        self.place = DockerPlace(reactor, self.engine, real_daemon(), runtime=self.runtime)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.place.close()))
        self.driver = await self.place.open()

    def root(self, handle: Handle) -> Path:
        """The container's file system as the host sees it."""
        return Path(self.api.inspect_container(handle.id)["GraphDriver"]["Data"]["MergedDir"])

    def state(self, handle: Handle) -> str:
        return str(self.api.inspect_container(handle.id)["State"]["Status"])

    def restored_images(self) -> list[str]:
        """Tags of this test's own."""
        found = [tag for image in self.api.images(name=REPOSITORY) for tag in image["RepoTags"] or ()]
        return sorted(tag for tag in found if tag.startswith(f"{REPOSITORY}:{self.place.prefix}"))

    def copied(self, handle: Handle, during: Callable[[], None] = lambda: None) -> list[bytes]:
        """In a thread: the stored form of the container's files."""
        pieces = []
        with self.driver.export(handle, Cancelled()) as tar:
            for piece in pack(tar, Transfer()):
                pieces.append(piece)
                during()
        return pieces

    def members(self, pieces: list[bytes]) -> list[tarfile.TarInfo]:
        with tarfile.open(fileobj=io.BytesIO(b"".join(unpack(iter(pieces), Transfer())))) as tar:
            return tar.getmembers()

    def stored(self, pieces: list[bytes], transfer: Transfer | None = None) -> StoredRoot:
        def read(check: Callable[[], None]) -> Iterator[bytes]:
            return unpack(iter(pieces), transfer or Transfer(), check)

        return StoredRoot("file:///a-snapshot", read)

    async def failing(self, work: Any, error: type[Exception] = DriverError) -> str:
        try:
            result = await work
        except error as raised:
            return str(raised)
        raise AssertionError(f"no {error.__name__}, but {str(result)[:200]}")

    async def test_the_tree_is_identical(self) -> None:
        first = await self.driver.start(order("a"))
        await deferToThread(tree.fill, self.root(first))
        before = await deferToThread(tree.describe, self.root(first))
        self.assertGreater(len(before), 30)
        pieces = await deferToThread(self.copied, first)
        await self.driver.kill(first)
        second = await self.driver.start(order("b", snapshot=self.stored(pieces)))
        after = await deferToThread(tree.describe, self.root(second))
        self.assertEqual(sorted(after), sorted(before))
        for name, entry in before.items():
            self.assertEqual(after[name], entry, name)

    async def test_the_sandbox_is_frozen_while_it_is_copied_and_goes_on_afterwards(self) -> None:
        handle = await self.driver.start(order("a"))
        seen: set[str] = set()
        await deferToThread(self.copied, handle, lambda: seen.add(self.state(handle)))
        self.assertEqual(seen, {"paused"})
        self.assertEqual(self.state(handle), "running")
        await self.place.tell(handle, "ready?")

    async def test_one_that_was_left_frozen_is_copied_and_thawed(self) -> None:
        handle = await self.driver.start(order("a"))
        self.api.pause(handle.id)
        self.assertTrue(await deferToThread(self.copied, handle))
        self.assertEqual(self.state(handle), "running")

    async def test_what_the_node_mounts_is_not_in_it(self) -> None:
        handle = await self.driver.start(order("a"))
        pieces = await deferToThread(self.copied, handle)
        members = self.members(pieces)
        for member in members:
            top = member.name.partition("/")[0]
            below = "/" in member.name
            self.assertFalse(below and top in ("proc", "sys", ".indexify", "indexify-guest", "standin"), member.name)
        self.assertLess(sum(member.size for member in members), 8 << 20, "the bundle is larger")

    async def test_one_that_has_ended_is_copied(self) -> None:
        handle = await self.driver.start(order("a"))
        (self.root(handle) / "kept").write_text("so")
        self.api.kill(handle.id)
        self.api.wait(handle.id)
        pieces = await deferToThread(self.copied, handle)
        self.assertIn("kept", [member.name for member in self.members(pieces)])

    async def test_one_that_is_gone_cannot_be_copied(self) -> None:
        handle = await self.driver.start(order("a"))
        await self.driver.kill(handle)
        await self.failing(deferToThread(self.copied, handle), SnapshotImpossible)
        await self.failing(deferToThread(self.copied, evolve(handle, id="x")), SnapshotImpossible)

    async def test_a_cancelled_export_ends_and_thaws(self) -> None:
        handle = await self.driver.start(order("a"))
        cancelled = Cancelled()

        def copy() -> None:
            with self.driver.export(handle, cancelled) as tar:
                for _ in pack(tar, Transfer(), cancelled.check):
                    cancelled.set()

        await self.failing(deferToThread(copy))
        self.assertEqual(self.state(handle), "running")

    async def test_the_configuration_is_the_images(self) -> None:
        image = self.engine.image(
            "busybox", 'ENV GREETING="hello $HOME"', "USER 1000:1000", "WORKDIR /srv/work",
        )  # fmt: skip
        first = await self.driver.start(order("a", image=image))
        pieces = await deferToThread(self.copied, first)
        second = await self.driver.start(order("b", image=image, snapshot=self.stored(pieces)))
        one, two = (self.api.inspect_container(each.id)["Config"] for each in (first, second))
        for name in ("WorkingDir", "User", "Entrypoint", "Cmd"):
            self.assertEqual(two[name], one[name], name)
        without_token = [
            [entry for entry in each["Env"] if not entry.startswith("INDEXIFY_SANDBOX_TOKEN=")] for each in (one, two)
        ]
        self.assertEqual(*map(sorted, without_token))
        self.assertEqual(two["WorkingDir"], "/srv/work")
        self.assertNotEqual(two["Image"], one["Image"])

    async def test_the_image_goes_with_its_container(self) -> None:
        first = await self.driver.start(order("a"))
        pieces = await deferToThread(self.copied, first)
        second = await self.driver.start(order("b", snapshot=self.stored(pieces)))
        third = await self.driver.start(order("c", snapshot=self.stored(pieces)))
        self.assertEqual(len(self.restored_images()), 2)
        await self.driver.kill(second)
        self.assertEqual(self.restored_images(), [f"{REPOSITORY}:{self.place.prefix}c"])
        await self.driver.kill(second)
        await self.driver.kill(third)
        self.assertEqual(self.restored_images(), [])

    async def test_a_damaged_snapshot_fails_the_start_and_leaves_nothing(self) -> None:
        first = await self.driver.start(order("a"))
        pieces = await deferToThread(self.copied, first)
        whole = b"".join(pieces)
        for stored in (whole[: len(whole) // 2], whole[:-3], whole[:5000] + b"x" + whole[5001:], b"", b"no snapshot"):
            await self.failing(self.driver.start(order("b", snapshot=self.stored([stored]))), SnapshotDamaged)
            self.assertEqual(self.restored_images(), [])
        self.assertEqual([name for name in await self._names() if name.endswith("b")], [])

    async def _names(self) -> list[str]:
        return [each.container_id for each in await self.driver.list_containers()]

    async def test_a_start_that_fails_or_is_cancelled_leaves_no_image(self) -> None:
        first = await self.driver.start(order("a"))
        pieces = await deferToThread(self.copied, first)

        async def start(changed: StartOrder) -> Handle:
            return await self.driver.start(changed)

        await self.failing(start(self.place.failing(order("b", snapshot=self.stored(pieces)))))
        self.assertEqual(self.restored_images(), [])
        hanging = self.place.hanging(order("c", snapshot=self.stored(pieces)))
        starting = Deferred.fromCoroutine(start(hanging))
        while not self.restored_images():
            waiting: Deferred[None] = Deferred()
            reactor.callLater(0.02, waiting.callback, None)  # type: ignore[attr-defined]
            await waiting
        starting.cancel()
        await self.failing(starting, CancelledError)
        self.assertEqual(self.restored_images(), [])

    async def test_what_a_killed_node_left_is_swept_at_the_next_start(self) -> None:
        first = await self.driver.start(order("a"))
        pieces = await deferToThread(self.copied, first)
        kept = await self.driver.start(order("b", snapshot=self.stored(pieces)))
        left = await self.driver.start(order("c", snapshot=self.stored(pieces)))
        foreign = f"{self.place.prefix}foreign"
        self.api.import_image_from_data(b"".join(unpack(iter(pieces), Transfer())), repository=REPOSITORY, tag=foreign)
        self.addCleanup(self.api.remove_image, f"{REPOSITORY}:{foreign}")
        self.api.remove_container(left.id, force=True)
        await self.place.drop(self.driver)
        again = await self.place.open()
        expected = sorted(f"{REPOSITORY}:{self.place.prefix}{name}" for name in ("b", "foreign"))
        self.assertEqual(self.restored_images(), expected)
        await again.kill(kept)
        self.assertEqual(self.restored_images(), [f"{REPOSITORY}:{foreign}"])

    def test_every_id_has_a_tag(self) -> None:
        self.assertEqual(tag_of("abc_1.x-Y"), "abc_1.x-Y")
        for odd in ("-a", "a b", "a" * 129, "ü", "a/b", ""):
            self.assertRegex(tag_of(odd), r"\Ax[0-9a-f]{40}\Z")
        self.assertNotEqual(tag_of("a b"), tag_of("a  b"))


class BrokenEngine(BaseHTTPRequestHandler):
    """Answers like an engine whose export ends too early: as if it were whole, or with the connection."""

    protocol_version = "HTTP/1.1"
    abrupt = False
    calls: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.calls.append(self.path.rpartition("/")[2])
        self.send_response(204)
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"5000\r\n" + b"x" * 0x5000 + b"\r\n")
        if not self.abrupt:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        return


class Abrupt(BrokenEngine):
    abrupt = True


class BrokenOff(TestCase):
    def test_an_export_that_ends_too_early_is_an_error_and_thaws(self) -> None:
        for kind in (BrokenEngine, Abrupt):
            server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
            serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            serving.start()
            try:
                client = APIClient(f"tcp://127.0.0.1:{server.server_address[1]}", version="1.41")
                kind.calls.clear()
                handle = Handle("docker", "0" * 64, opaque="a")
                with (
                    self.assertRaisesRegex(DriverError, "container a .*20480 bytes"),
                    exported(client, handle, Cancelled()) as tar,
                ):
                    for _ in tar:
                        continue
                self.assertEqual(kind.calls, ["pause", "unpause"])
                client.close()
            finally:
                server.shutdown()
                serving.join()
                server.server_close()
