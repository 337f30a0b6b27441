"""Which images this node pulled, and when each was last used: a small SQLite file of its own in the state directory.

What is not in here was pulled by somebody else and is never removed. A row is written before its pull begins, so that
an image of a pull that the node did not outlive is known as well. Blocking; used from several threads.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

from attrs import frozen

from ..base import DriverError

TABLE = """
CREATE TABLE IF NOT EXISTS images (
  engine TEXT NOT NULL, reference TEXT NOT NULL, image TEXT, used REAL NOT NULL, PRIMARY KEY (engine, reference)
) WITHOUT ROWID
"""


@frozen
class PulledImage:
    """``image`` is the engine's id of it, None for a pull whose end was not seen; ``used`` is in seconds since the
    epoch."""

    reference: str
    image: str | None
    used: float


class ImageRecords:
    """The rows of one engine, told apart by the id that it gave itself. Raises DriverError where the file cannot be
    used."""

    def __init__(self, *, path: Path, engine: str) -> None:
        self._path = path
        self._engine = engine
        self._lock = threading.Lock()

    def all(self) -> list[PulledImage]:
        rows = self._do("SELECT reference, image, used FROM images WHERE engine = ? ORDER BY used", [(self._engine,)])
        return [PulledImage(*row) for row in rows]

    def begins(self, reference: str, now: float) -> None:
        """A pull begins; the image is not there yet."""
        self._put(reference, None, now)

    def pulled(self, reference: str, image: str, now: float) -> None:
        self._put(reference, image, now)

    def forget(self, reference: str) -> None:
        self._do("DELETE FROM images WHERE engine = ? AND reference = ?", [(self._engine, reference)])

    def used(self, moments: Mapping[str, float]) -> None:
        """Remember when these were used; those that are not ours are left out."""
        update = "UPDATE images SET used = max(used, ?) WHERE engine = ? AND reference = ?"
        self._do(update, [(at, self._engine, reference) for reference, at in moments.items()])

    def _put(self, reference: str, image: str | None, now: float) -> None:
        row = (self._engine, reference, image, now)
        self._do("INSERT OR REPLACE INTO images(engine, reference, image, used) VALUES (?, ?, ?, ?)", [row])

    def _do(self, statement: str, rows: Iterable[tuple[object, ...]]) -> list[tuple[str, str | None, float]]:
        try:
            with self._lock, closing(sqlite3.connect(self._path, timeout=10)) as connection, connection:
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute(TABLE)
                found: list[tuple[str, str | None, float]] = []
                for row in rows:
                    found += connection.execute(statement, row).fetchall()
                return found
        except sqlite3.Error as error:
            raise DriverError(f"the list of pulled images {self._path} cannot be used: {error}") from error
