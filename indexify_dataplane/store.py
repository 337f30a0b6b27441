"""The write-ahead record of the node: SQLite in WAL mode, on a thread of its own.

What is in here survives a kill -9 between any two instructions and, because every commit is synced
(``synchronous=FULL``), a loss of power: the executor id, a record per container, a row per accepted allocation, and
the reports that the server has not accepted yet.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from .core.model import Allocation, Container
from .reactor import Calls, Clock, Pool
from .records import decode_allocation, decode_container

log = Logger()

SCHEMA = 2
"""Raised with every change that an older version could not read; 2 has snapshots. ``records`` reads all of them."""

Change = tuple[str, tuple[Any, ...]]

PUT_CONTAINER = (
    "INSERT INTO containers(id, record) VALUES (?, ?) ON CONFLICT(id) DO UPDATE SET record = excluded.record"
)
DROP_CONTAINER = "DELETE FROM containers WHERE id = ?"
PUT_ALLOCATION = (
    "INSERT INTO allocations(id, record) VALUES (?, ?) ON CONFLICT(id) DO UPDATE SET record = excluded.record"
)
DROP_ALLOCATION = "DELETE FROM allocations WHERE id = ?"
PUT_REPORT = "INSERT INTO reports(id, kind, body) VALUES (?, ?, ?)"
DROP_REPORT = "DELETE FROM reports WHERE id = ?"
REPLACE_REPORT = "UPDATE reports SET body = ? WHERE id = ?"
COUNT_DEATH = (
    "INSERT INTO deaths(call_id, count, at) VALUES (?, ?, ?) "
    "ON CONFLICT(call_id) DO UPDATE SET count = excluded.count, at = excluded.at"
)
PUT_META = "INSERT INTO meta(key, value) VALUES (?, ?) ON CONFLICT(key) DO UPDATE SET value = excluded.value"

TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS containers (id TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS allocations (id TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS reports (id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS deaths (call_id TEXT PRIMARY KEY, count INTEGER NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
"""

DEATHS_KEPT_SECS = 86400.0
"""A function call that was not running at a death of the node for so long is forgotten."""


class StoreError(Exception):
    """The store cannot be opened or written; the text names the file and what to do."""


@frozen
class StoredReport:
    """An undelivered report: its id, its kind (number of ``core.outbox``) and its encoded message."""

    id: int
    kind: int
    body: bytes


@frozen
class Loaded:
    """What the store held.

    ``earlier_executor_ids`` are ids from before the configuration changed; ``renamed`` says that it changed since the
    last start. ``identity`` (with the removal of what is too old)
    must be committed together with what recovery decides, so that a crash in between finds the change again.
    """

    executor_id: str
    earlier_executor_ids: tuple[str, ...]
    renamed: bool
    identity: tuple[Change, ...]
    containers: tuple[Container, ...]
    allocations: tuple[Allocation, ...]
    reports: tuple[StoredReport, ...]
    deaths: dict[str, int]

    @property
    def next_report(self) -> int:
        return max((report.id for report in self.reports), default=0) + 1

    @property
    def next_op(self) -> int:
        return max((container.op for container in self.containers), default=0) + 1


def place(state_dir: str, state_file: str | None) -> Path:
    """Where the store is: beside ``state_file`` if that is configured, else in the state directory."""
    return Path(f"{state_file}.db") if state_file else Path(state_dir) / "store.db"


def control_socket(store: Path) -> Path:
    """Where the control socket of the node with this store is: ``ctl.sock`` beside ``store.db``, else named alike."""
    return store.with_name("ctl.sock" if store.name == "store.db" else f"{store.stem}.ctl.sock")


class Store:
    """Open it, load it once, then commit changes. One transaction per call, in the order of the calls."""

    def __init__(
        self, *, reactor: Clock, path: Path, others: bool, executor_id: str | None, pool: Calls | None = None
    ) -> None:
        """``others``: when another live node holds the file, take a numbered one beside it instead of failing.
        ``executor_id``: the configured one; without it the stored one holds, else a new one is made."""
        self._reactor = reactor
        self._wanted = path
        self._others = others
        self._configured_id = executor_id
        self._pool: Calls = pool or Pool(reactor, "store", 1)
        self._connection: sqlite3.Connection | None = None
        self._lock: int | None = None
        self.path = path
        self.writable = True

    def wall_offset(self) -> float:
        """Wall clock minus the reactor's clock, in seconds: turns times of the core into times that can be kept."""
        return time.time() - self._reactor.seconds()

    async def open(self) -> Loaded:
        """Raises StoreError."""
        self._pool.start()
        offset = self.wall_offset()
        return await self._pool.run(self._open, offset)

    def commit(self, changes: Sequence[Change]) -> Deferred[None]:
        """Write ``changes`` in one synced transaction. Errs back with StoreError; nothing of it is written then."""
        return self._pool.run(self._commit, changes)

    async def close(self) -> None:
        await self._pool.run(self._close)
        self._pool.stop()

    def _open(self, offset: float) -> Loaded:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take_lock()
            self._connect()
            return self._load(offset)
        except StoreError:
            self._close()
            raise
        except sqlite3.DatabaseError as error:
            self._close()
            raise StoreError(self._problem(error)) from error
        except OSError as error:
            self._close()
            raise StoreError(f"the store {self.path} cannot be opened: {error}") from error

    def _problem(self, error: sqlite3.DatabaseError) -> str:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return (
                f"the store {self.path} is damaged: {error}; move it away, without {self._identity_file.name}, "
                "to start empty (its containers are then stopped as orphans)"
            )
        return (
            f"the store {self.path} cannot be used now: {error}; nothing is wrong with its content: make room or mend "
            "the disk and start again, its containers are then adopted"
        )

    @property
    def _identity_file(self) -> Path:
        """Keeps the executor id beside the store: should the store get lost, its containers are still known as ours."""
        return self.path.with_suffix(".executor-id")

    def _remembered_id(self) -> str | None:
        try:
            return self._identity_file.read_text().strip() or None
        except FileNotFoundError:
            return None

    def _remember(self, executor_id: str) -> None:
        unfinished = self._identity_file.with_suffix(".executor-id.new")
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{executor_id}\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(self._identity_file)

    def _take_lock(self) -> None:
        for candidate in _candidates(self._wanted) if self._others else (self._wanted,):
            descriptor = os.open(f"{candidate}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 200).decode(errors="replace").strip()
                os.close(descriptor)
                if not self._others:
                    raise StoreError(
                        f"the store {candidate} is in use by another dataplane ({holder or 'unknown'}); "
                        "stop it, or give this one a state_dir of its own"
                    ) from None
                continue
            if candidate != self._wanted:
                log.warn("another dataplane holds the store, a second one is used", wanted=str(self._wanted),
                         path=str(candidate))  # fmt: skip
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()}\n".encode(), 0)
            self._lock, self.path = descriptor, candidate
            return
        raise StoreError(f"no store beside {self._wanted} is free")

    def _connect(self) -> None:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=5.0)
        self._connection = connection
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA journal_size_limit=4194304")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA:
            raise StoreError(
                f"the store {self.path} was written by a newer version (schema {version}, this one reads {SCHEMA})"
            )
        if version < SCHEMA:
            connection.executescript(f"BEGIN; {TABLES} PRAGMA user_version={SCHEMA}; COMMIT;")

    def _load(self, offset: float) -> Loaded:
        connection = self._connected()
        meta = dict(connection.execute("SELECT key, value FROM meta"))
        remembered = self._remembered_id()
        if "executor_id" not in meta and remembered is not None:
            meta["executor_id"] = remembered
        stored = meta.get("executor_id")
        executor_id, earlier = _identity(meta, self._configured_id)
        if executor_id != remembered:
            self._remember(executor_id)
        assert self._lock is not None
        os.pwrite(self._lock, f"pid {os.getpid()}, executor {executor_id}\n".encode(), 0)
        return Loaded(
            executor_id=executor_id,
            earlier_executor_ids=tuple(earlier),
            renamed=stored is not None and stored != executor_id,
            identity=(
                (PUT_META, ("executor_id", executor_id)),
                (PUT_META, ("earlier_executor_ids", json.dumps(earlier))),
                ("DELETE FROM deaths WHERE at <= ?", (time.time() - DEATHS_KEPT_SECS,)),
            ),
            containers=tuple(_readable(connection, "containers", lambda data: decode_container(data, offset))),
            allocations=tuple(_readable(connection, "allocations", decode_allocation)),
            deaths=dict(
                connection.execute("SELECT call_id, count FROM deaths WHERE at > ?", (time.time() - DEATHS_KEPT_SECS,))
            ),
            reports=tuple(
                StoredReport(*row) for row in connection.execute("SELECT id, kind, body FROM reports ORDER BY id")
            ),
        )

    def _commit(self, changes: Iterable[Change]) -> None:
        try:
            with _transaction(self._connected()) as connection:
                for statement, values in changes:
                    connection.execute(statement, values)
        except (sqlite3.Error, OSError) as error:
            self.writable = False
            raise StoreError(f"the store {self.path} cannot be written: {error}") from error
        self.writable = True

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(f"the store {self.path} is closed")
        return self._connection


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Any:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):  # a failed COMMIT may have rolled back already
            connection.execute("ROLLBACK")
        raise


def _candidates(path: Path) -> Iterable[Path]:
    yield path
    for number in range(2, 100):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


def _identity(meta: dict[str, str], configured: str | None) -> tuple[str, list[str]]:
    stored = meta.get("executor_id")
    earlier = json.loads(meta.get("earlier_executor_ids", "[]"))
    executor_id = configured or stored or str(uuid.uuid4())
    if stored is not None and stored != executor_id and stored not in earlier:
        earlier.append(stored)
    return executor_id, [each for each in earlier if each != executor_id]


def _readable(connection: sqlite3.Connection, table: str, decode: Any) -> Iterable[Any]:
    for name, data in connection.execute(f"SELECT id, record FROM {table} ORDER BY id").fetchall():
        try:
            yield decode(data)
        except Exception as error:  # one unreadable row must not keep the node from starting
            log.error("a record cannot be read and is left out", table=table, id=name, error=repr(error))
