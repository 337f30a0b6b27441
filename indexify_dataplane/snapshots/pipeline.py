"""Two ends of a stream at work at the same time: the one that gives reads ahead of the one that takes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator

ROOM = 4
"""How many pieces may be under way between the two."""
AT_LEAST = 2 * 1024 * 1024
"""Smaller pieces are put together first: each costs a change of threads."""
LOOK_SECONDS = 0.1
JOIN_SECONDS = 5.0


def ahead(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The bytes of ``pieces``, which are made in a thread of their own, at most ``ROOM`` pieces ahead. What they raise
    is raised here. Closing this generator ends the thread with its next piece."""
    ready: queue.Queue[bytes | BaseException | None] = queue.Queue(ROOM)
    unwanted = threading.Event()

    def put(piece: bytes | BaseException | None) -> bool:
        while not unwanted.is_set():
            try:
                ready.put(piece, timeout=LOOK_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for piece in _larger(pieces):
                if not put(piece):
                    return
        except BaseException as error:
            put(error)
        else:
            put(None)

    thread = threading.Thread(target=make, name="snapshot reads ahead", daemon=True)
    thread.start()
    try:
        while (piece := ready.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        unwanted.set()
        # One that is stuck in a read ends when its source is closed, which is the caller's next step.
        thread.join(JOIN_SECONDS)


def _larger(pieces: Iterable[bytes]) -> Iterator[bytes]:
    gathered: list[bytes] = []
    size = 0
    for piece in pieces:
        gathered.append(piece)
        size += len(piece)
        if size >= AT_LEAST:
            yield b"".join(gathered)
            gathered, size = [], 0
    if size:
        yield b"".join(gathered)
