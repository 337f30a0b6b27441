"""The store: what survives, who holds it, and what its errors advise."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.core.model import (
    Allocation,
    Container,
    Done,
    Executing,
    Preparing,
    Running,
    Terminated,
    TerminationReason,
)
from indexify_dataplane.records import encode_allocation, encode_container
from indexify_dataplane.store import (
    DROP_REPORT,
    PUT_ALLOCATION,
    PUT_CONTAINER,
    PUT_REPORT,
    Loaded,
    Store,
    StoreError,
    control_socket,
    place,
)
from tests.core.build import allocation, handle, sandbox


class Inline:
    """Blocking calls at once."""

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """Nothing to stop."""

    def run(self, call: Any, /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        try:
            return succeed(call(*args, **kwargs))
        except Exception:
            return fail(Failure())


class Stores(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, directory)
        self.path = Path(directory) / "state" / "store.db"

    def store(self, *, others: bool = False, executor_id: str | None = None) -> Store:
        store = Store(reactor=Clock(), path=self.path, others=others, executor_id=executor_id, pool=Inline())
        store.wall_offset = lambda: 1000.0  # type: ignore[method-assign]
        self.addCleanup(store._close)
        return store

    def test_a_store_from_before_snapshots_is_taken_over(self) -> None:
        """Schema 1: its container records lack what snapshots brought."""
        first = self.store()
        self.successResultOf(Deferred.fromCoroutine(first.open()))
        container = Container(sandbox(), Running(handle(), 0.0))
        record = json.loads(encode_container(container, 1000.0))
        del record["answered"], record["unswept"]
        self.successResultOf(first.commit([(PUT_CONTAINER, ("sb", json.dumps(record).encode()))]))
        self.successResultOf(Deferred.fromCoroutine(first.close()))
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            connection.execute("PRAGMA user_version=1")
        second = self.store()
        loaded = self.successResultOf(Deferred.fromCoroutine(second.open()))
        self.assertEqual(loaded.containers, (container,))
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            self.assertEqual(connection.execute("PRAGMA user_version").fetchone(), (2,))

    def open(self, store: Store) -> Loaded:
        return self.successResultOf(Deferred.fromCoroutine(store.open()))

    def close(self, store: Store) -> None:
        self.successResultOf(Deferred.fromCoroutine(store.close()))

    def refusal(self, store: Store) -> str:
        return str(self.failureResultOf(Deferred.fromCoroutine(store.open()), StoreError).value)

    def test_what_is_committed_comes_back_on_the_new_clock(self) -> None:
        store = self.store()
        loaded = self.open(store)
        running = Container(sandbox(timeout=60), Running(handle(), 5.0), op=7, claimed_at=4.0)
        dead = Container(sandbox("dead"), Terminated(TerminationReason.OOM, 6.0, report=3), op=9)
        done = Allocation(allocation(), Done(4))
        begun = Allocation(allocation("a2"), Executing(0.0), (("s3://bucket/state/key", "upload-1"),))
        waiting = Allocation(allocation("a3"), Preparing(0.0))
        store.commit(
            [
                *loaded.identity,
                (PUT_CONTAINER, ("sb", encode_container(running, 1000.0))),
                (PUT_CONTAINER, ("dead", encode_container(dead, 1000.0))),
                (PUT_ALLOCATION, ("a1", encode_allocation(done))),
                (PUT_ALLOCATION, ("a2", encode_allocation(begun))),
                (PUT_ALLOCATION, ("a3", encode_allocation(waiting))),
                (PUT_REPORT, (3, 1, b"r")),
                (PUT_REPORT, (8, 2, b"s")),
                (DROP_REPORT, (3,)),
            ]
        )
        self.close(store)
        again = self.store()
        again.wall_offset = lambda: 1100.0  # type: ignore[method-assign]  # the process began 100 s later
        found = self.open(again)
        by_id = {each.id: each for each in found.containers}
        self.assertEqual(by_id["sb"].claimed_at, -96.0)
        self.assertEqual(by_id["sb"].expires_at, -36.0)
        self.assertEqual(by_id["dead"].state, Terminated(TerminationReason.OOM, -94.0, report=3))
        self.assertEqual(found.allocations, (done, begun, waiting))
        self.assertEqual([(each.id, each.kind, each.body) for each in found.reports], [(8, 2, b"s")])
        self.assertEqual((found.next_report, found.next_op, found.executor_id), (9, 10, loaded.executor_id))

    def test_the_identity_survives_the_loss_of_the_store(self) -> None:
        store = self.store()
        first = self.open(store)
        self.close(store)
        for name in os.listdir(self.path.parent):
            if name.startswith("store.db"):
                os.unlink(self.path.parent / name)
        self.assertEqual(self.open(self.store()).executor_id, first.executor_id)

    def test_a_changed_identity_is_found_again_until_it_is_acted_on(self) -> None:
        store = self.store(executor_id="before")
        store.commit(self.open(store).identity)
        self.close(store)
        for _ in range(2):  # the first start dies before its decisions are stored
            store = self.store(executor_id="after")
            loaded = self.open(store)
            self.assertEqual((loaded.renamed, loaded.earlier_executor_ids), (True, ("before",)))
            self.close(store)
        store = self.store(executor_id="after")
        store.commit(self.open(store).identity)
        self.close(store)
        loaded = self.open(self.store(executor_id="after"))
        self.assertEqual((loaded.renamed, loaded.earlier_executor_ids), (False, ("before",)))

    def test_a_store_that_is_held_is_refused_or_another_is_taken(self) -> None:
        self.open(self.store())
        self.assertIn(f"pid {os.getpid()}", self.refusal(self.store()))
        second = self.store(others=True)
        self.open(second)
        self.assertEqual(second.path.name, "store-2.db")

    def test_modes(self) -> None:
        store = self.store()
        self.open(store)
        self.assertEqual(os.stat(self.path).st_mode & 0o777, 0o600)
        self.assertEqual(os.stat(self.path.parent).st_mode & 0o777, 0o700)

    def test_advice_by_what_is_wrong(self) -> None:
        store = self.store()
        self.open(store)
        self.close(store)
        self.path.write_bytes(b"this is no database" * 100)
        self.assertIn("is damaged", self.refusal(self.store()))
        self.path.unlink()
        connection = sqlite3.connect(self.path)
        connection.execute("PRAGMA user_version=99")
        connection.close()
        self.assertIn("newer version", self.refusal(self.store()))

    def test_a_full_disk_is_not_taken_for_damage(self) -> None:
        store = self.store()
        self.open(store)
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL  # type: ignore[misc]
        text = store._problem(error)
        self.assertIn("make room", text)
        self.assertNotIn("move it away", text)

    def test_a_row_that_cannot_be_read_does_not_keep_the_node_from_starting(self) -> None:
        store = self.store()
        self.open(store)
        good = encode_container(Container(sandbox("good"), Running(handle("good"), 1.0)), 0.0)
        store.commit([(PUT_CONTAINER, ("bad", b"{}")), (PUT_CONTAINER, ("good", good))])
        self.close(store)
        self.assertEqual([each.id for each in self.open(self.store()).containers], ["good"])

    def test_nothing_of_a_failed_transaction_is_kept(self) -> None:
        store = self.store()
        self.open(store)
        failed = store.commit([(PUT_REPORT, (1, 1, b"")), (PUT_REPORT, (1, 1, b""))])
        self.failureResultOf(failed, StoreError)
        self.assertFalse(store.writable)
        self.successResultOf(store.commit([(PUT_REPORT, (1, 1, b""))]))
        self.assertTrue(store.writable)

    def test_places(self) -> None:
        self.assertEqual(place("/s", None), Path("/s/store.db"))
        self.assertEqual(place("/s", "/x/node.json"), Path("/x/node.json.db"))
        self.assertEqual(control_socket(Path("/s/store.db")), Path("/s/ctl.sock"))
        self.assertEqual(control_socket(Path("/s/store-2.db")), Path("/s/store-2.ctl.sock"))
