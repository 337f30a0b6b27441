"""The overlay of gVisor, with a stand-in for runsc: no release with the command was at hand."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.core.model import Handle, Kind
from indexify_dataplane.drivers.base import DriverError, SnapshotImpossible, StartOrder, StoredRoot, UpperLayer
from indexify_dataplane.drivers.blocking import Cancelled
from indexify_dataplane.snapshots.archive import UPPER, Transfer, note_of, pack, unpack
from indexify_dataplane.snapshots.gvisor import ANNOTATION, Uppers, offers_upper, path_of

HANDLE = Handle("docker", "f" * 64, opaque="box")
RUNSC = """#!/bin/sh
[ "$1" = help ] && { echo "Subcommands:"; echo "	tar              writes a tar"; exit 0; }
[ "$1" = --root ] && [ "$3" = tar ] && [ "$4" = rootfs-upper ] && [ "$5" = --file ] || { echo "bad: $*" >&2; exit 2; }
[ -e "$2/$7" ] || { echo "no container $7 below $2" >&2; exit 128; }
[ -e "$2/slow" ] && exec sleep 60
exec tar -C "$2/$7" -cf "$6" .
"""


class Overlay(SynchronousTestCase):
    def setUp(self) -> None:
        self.place = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.place)
        self.runsc = self.program("runsc", RUNSC)
        (self.place / "root" / HANDLE.id).mkdir(parents=True)
        (self.place / "root" / HANDLE.id / "written").write_text("by the sandbox")
        self.uppers = self.make("1.43")
        self.uppers.open()

    def program(self, name: str, text: str) -> str:
        path = self.place / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def make(self, api_version: str) -> Uppers:
        return Uppers(
            runsc=self.runsc,
            root=str(self.place / "root"),
            scratch=str(self.place / "scratch"),
            mark="mark",
            api_version=api_version,
        )

    def order(self, read: Callable[[Callable[[], None]], Iterator[bytes]]) -> StartOrder:
        return StartOrder("box", "executor", Kind.SANDBOX, snapshot=StoredRoot("file:///s", read, lambda: True))

    def scratch(self) -> list[str]:
        return sorted(os.listdir(self.place / "scratch"))

    def test_a_runsc_is_asked_for_what_it_offers(self) -> None:
        self.assertTrue(offers_upper(self.runsc))
        self.assertFalse(offers_upper(self.program("old", "#!/bin/sh\necho '	state   get the state'\n")))
        self.assertFalse(offers_upper(str(self.place / "missing")))
        known = {"Runtimes": {"runsc": {"path": self.runsc}, "runc": {"path": "runc"}, "gone": {"path": "/gone"}}}
        self.assertEqual(path_of("runsc", known), self.runsc)
        for runtime in (None, "runc", "gone", "unknown"):
            self.assertIsNone(path_of(runtime, known))

    def test_there_and_back(self) -> None:
        transfer = Transfer()
        with self.uppers.exported(HANDLE, Cancelled()) as tar:
            self.assertIsInstance(tar, UpperLayer)
            stored = b"".join(pack(tar, transfer, note=UPPER))
        self.assertEqual(self.scratch(), [])
        self.assertEqual(note_of(stored[: 8 + len(UPPER)]), UPPER)
        self.assertEqual(transfer.stored_bytes, len(stored))
        body: dict[str, Any] = {"HostConfig": {}}
        order = self.order(lambda check: unpack([stored], Transfer(), check))
        self.uppers.begin_with(order, body, Cancelled())
        file = body["HostConfig"]["Annotations"][ANNOTATION]
        with tarfile.open(file) as written:
            self.assertIn("./written", written.getnames())
        self.assertEqual(os.stat(file).st_mode & 0o777, 0o600)
        self.uppers.forget("box")
        self.uppers.forget("box")
        self.assertEqual(self.scratch(), [])

    def test_a_plain_snapshot_has_no_note(self) -> None:
        stored = b"".join(pack([b"x" * 1000], Transfer()))
        self.assertEqual(note_of(stored[:40]), b"")
        self.assertEqual(note_of(b""), b"")

    def test_what_runsc_says_is_told(self) -> None:
        other = Handle("docker", "0" * 64, opaque="other")
        with (
            self.assertRaisesRegex(DriverError, "container other .*runsc ended with 128: no container"),
            self.uppers.exported(other, Cancelled()),
        ):
            raise AssertionError("it has nothing")
        self.assertEqual(self.scratch(), [])

    def test_it_can_be_given_up(self) -> None:
        (self.place / "root" / "slow").touch()
        cancelled = Cancelled()
        cancelled.set()
        with self.assertRaises(DriverError), self.uppers.exported(HANDLE, cancelled):
            raise AssertionError("it was given up")

    def test_an_engine_without_annotations_cannot_restore_it(self) -> None:
        with self.assertRaisesRegex(SnapshotImpossible, r"API 1\.43 or newer"):
            self.make("1.41").begin_with(self.order(lambda check: iter([b"x"])), {"HostConfig": {}}, Cancelled())

    def test_leftovers_of_this_node_alone_are_swept(self) -> None:
        for name in ("mark-taken-a.tar", "mark-restored-b.tar", "other-taken-c.tar"):
            (self.place / "scratch" / name).touch()
        self.make("1.43").open()
        self.assertEqual(self.scratch(), ["other-taken-c.tar"])

    def test_a_scratch_directory_of_somebody_else_is_refused(self) -> None:
        os.rename(self.place / "scratch", self.place / "elsewhere")
        os.symlink(self.place / "elsewhere", self.place / "scratch")
        with self.assertRaisesRegex(DriverError, "belongs to somebody else"):
            self.uppers.open()
