"""Export and restore on a real engine, through the Docker driver."""

from __future__ import annotations

import ast
import io
import os
import shutil
import tarfile
import tempfile
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
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase

from indexify_dataplane.core.model import Handle
from indexify_dataplane.drivers.base import DriverError, SnapshotImpossible, StartOrder, StoredRoot
from indexify_dataplane.drivers.blocking import Cancelled
from indexify_dataplane.snapshots.archive import SnapshotDamaged, Transfer, pack, unpack
from indexify_dataplane.snapshots.docker import REPOSITORY, Exports, tag_of
from indexify_dataplane.snapshots.host_files import files_of
from tests.contracts.driver import order
from tests.contracts.driver_docker import DockerPlace
from tests.engine import require
from tests.guestbundle.sources import real_daemon

from . import tree


class Sandboxes(TestCase):
    """A driver of its own; ``runtime`` None is runc."""

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

    async def filled(self) -> tuple[Handle, dict[str, tree.Entry]]:
        handle = await self.driver.start(order("a"))
        await deferToThread(tree.fill, self.root(handle))
        return handle, await deferToThread(tree.describe, self.root(handle))

    async def check_restored(self, pieces: list[bytes], before: dict[str, tree.Entry]) -> None:
        restored = await self.driver.start(order("b", snapshot=self.stored(pieces)))
        after = await deferToThread(tree.describe, self.root(restored))
        self.assertEqual(sorted(after), sorted(before))
        for name, entry in before.items():
            self.assertEqual(after[name], entry, name)

    async def failing(self, work: Any, error: type[Exception] = DriverError) -> str:
        try:
            result = await work
        except error as raised:
            return str(raised)
        raise AssertionError(f"no {error.__name__}, but {str(result)[:200]}")


class DockerSnapshots(Sandboxes):
    async def test_the_tree_is_identical(self) -> None:
        first, before = await self.filled()
        self.assertGreater(len(before), 40)
        self.assertGreaterEqual(len([each for each in before.values() if each.attributes]), 10)
        pieces = await deferToThread(self.copied, first)
        await self.driver.kill(first)
        await self.check_restored(pieces, before)

    async def test_an_attribute_that_no_tar_can_hold_is_told(self) -> None:
        handle = await self.driver.start(order("a"))
        for name in (b"odd \xff", b"odder"):
            path = os.path.join(os.fsencode(self.root(handle)), name)
            with open(path, "wb"):
                os.setxattr(path, "user.a=b", b"1")
        with capturedLogs() as events:
            pieces = await deferToThread(self.copied, handle)
        self.assertIn("odder", [each.name for each in self.members(pieces)])
        (told,) = [event for event in events if "extended attributes of some" in event["log_format"]]
        self.assertEqual((told["files"], told["first"]), (2, "odd \\xff"))

    async def test_the_tree_of_one_that_has_ended_is_identical(self) -> None:
        """Its root is not mounted any more: its layers tell the attributes."""
        first, before = await self.filled()
        self.api.kill(first.id)
        self.api.wait(first.id)
        await self.check_restored(await deferToThread(self.copied, first), before)

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


class Elsewhere:
    """An engine that does not tell where a container's files are, as with most storage drivers; ``pid`` is what it says
    of the first process."""

    def __init__(self, client: APIClient, pid: int | None = None) -> None:
        self._client = client
        self._pid = pid

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def inspect_container(self, identity: str) -> dict[str, Any]:
        found: dict[str, Any] = self._client.inspect_container(identity)
        found["GraphDriver"] = {"Name": "vfs", "Data": None}
        if self._pid is not None:
            found["State"]["Pid"] = self._pid
        return found


class WhereFilesAre(Sandboxes):
    """The ways to a container's files that ``overlay2`` does not need."""

    def copied_by(self, engine: Elsewhere, handle: Handle) -> list[bytes]:
        exports = Exports(client=engine)
        for _ in range(2):
            with exports.exported(handle, Cancelled()) as tar:
                pieces = list(pack(tar, Transfer()))
        return pieces

    def attributes_in(self, pieces: list[bytes]) -> list[str]:
        return [each.name for each in self.members(pieces) if "SCHILY.xattr.user.kept" in each.pax_headers]

    async def one_with_an_attribute(self) -> Handle:
        handle = await self.driver.start(order("a"))
        (self.root(handle) / "kept").touch()
        os.setxattr(self.root(handle) / "kept", "user.kept", b"1")
        os.setxattr(self.root(handle) / "etc", "user.kept", b"1")
        return handle

    async def test_the_first_process_leads_to_the_files(self) -> None:
        first, before = await self.filled()
        pieces = await deferToThread(self.copied_by, Elsewhere(self.api), first)
        await self.check_restored(pieces, before)

    async def test_a_process_of_somebody_else_does_not_and_that_is_told_once(self) -> None:
        handle = await self.one_with_an_attribute()
        told: list[str] = []
        with capturedLogs() as events:
            for pid in (os.getpid(), 1, 1 << 30, 0):
                pieces = await deferToThread(self.copied_by, Elsewhere(self.api, pid), handle)
                self.assertEqual(self.attributes_in(pieces), [])
                told += [str(event["reason"]) for event in events if "without extended attr" in event["log_format"]]
                events.clear()
        self.assertEqual(len(told), 4, "once for each engine")
        self.assertIn(f"/proc/{1 << 30}/cgroup: No such file", told[2])

    async def test_a_node_in_a_container_sees_processes_elsewhere(self) -> None:
        handle = await self.one_with_an_attribute()
        place = os.path.join(tempfile.mkdtemp(), "proc")
        self.addCleanup(shutil.rmtree, os.path.dirname(place))
        os.symlink("/proc", place)
        found = Elsewhere(self.api).inspect_container(handle.id)
        files, _ = files_of(found, [tempfile.gettempdir(), "/nowhere", place])
        assert files is not None
        self.addCleanup(files.close)
        self.assertEqual(files.attributes(b"kept"), [(b"user.kept", b"1")])
        files, problem = files_of(found, [tempfile.gettempdir()])
        self.assertIsNone(files)
        self.assertIn("cgroup: No such file", problem)

    async def test_both_ways_are_taken(self) -> None:
        handle = await self.one_with_an_attribute()
        for engine in (self.api, Elsewhere(self.api)):
            pieces = await deferToThread(self.copied_by, engine, handle)
            self.assertEqual(self.attributes_in(pieces), ["etc", "kept"])


class Gvisor(Sandboxes):
    """The installed runsc has no command to write what it keeps in memory, so the engine's export is used. Inside,
    neither extended attributes nor devices can be made; those that the image has are kept."""

    runtime = "runsc"

    def inside(self, handle: Handle, what: str) -> Any:
        """Run ``tree`` in the sandbox."""
        command = ["python3", "-c", Path(tree.__file__).read_text(), what]
        run = self.api.exec_create(handle.id, command)
        output: bytes = self.api.exec_start(run["Id"])
        self.assertEqual(self.api.exec_inspect(run["Id"])["ExitCode"], 0, output.decode(errors="replace"))
        return ast.literal_eval(output.decode()) if output else None

    async def test_the_tree_of_an_image_is_identical(self) -> None:
        first, before = await self.filled()
        await self.check_restored(await deferToThread(self.copied, first), before)

    async def test_what_was_made_inside_is_identical(self) -> None:
        image = self.engine.image("debian")
        first = await self.driver.start(order("a", image=image))
        await deferToThread(self.inside, first, "fill")
        seen = await deferToThread(self.inside, first, "describe")
        before = await deferToThread(tree.describe, self.root(first))
        self.assertGreater(len(before), 30)
        pieces = await deferToThread(self.copied, first)
        await self.driver.kill(first)
        second = await self.driver.start(order("b", image=image, snapshot=self.stored(pieces)))
        after = await deferToThread(tree.describe, self.root(second))
        self.assertEqual(after, before)
        again = await deferToThread(self.inside, second, "describe")
        # This runsc keeps pipes in its memory.
        self.assertEqual({**again, "tree/pipe": seen["tree/pipe"]}, seen)


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
        if self.path.endswith("/json"):
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")
            return
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
                    Exports(client=client).exported(handle, Cancelled()) as tar,
                ):
                    for _ in tar:
                        continue
                self.assertEqual(kind.calls, ["pause", "unpause"])
                client.close()
            finally:
                server.shutdown()
                serving.join()
                server.server_close()
