"""Taking away what a start has made: at once, or for as long as that takes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from docker.errors import NotFound
from twisted.logger import Logger

from ..base import DriverError
from ..blocking import Cancelled
from .absence import Absence
from .failures import EXPECTED, OTHER, EngineAway, engine_call, failure, sentence_of, status_of

log = Logger()

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0


class Removals:
    """What failed starts have left is taken away again and again, until it is gone or the driver is closed: then the
    next life of the node finds it. Where the engine is away for longer than the start may wait, or the start is given
    up, that goes on in a thread of its own, and the start fails."""

    def __init__(self, *, closed: Cancelled) -> None:
        self._closed = closed

    def until_gone(self, what: str, remove: Callable[[], None], absence: Absence) -> None:
        """``what`` stands in messages; ``remove`` raises DriverError, and nothing if there is nothing."""
        pause = FIRST_PAUSE
        while True:
            try:
                remove()
                return
            except EngineAway as error:
                if absence.over(error):
                    continue
                if not self._closed.is_set():
                    log.warn("what a start has made stays until the Docker engine is back", what=what, error=str(error))
                    threading.Thread(
                        target=self._later, args=(what, remove), name="docker removal", daemon=True
                    ).start()
                return
            except DriverError as error:
                log.warn("what a start has made cannot be removed, trying again", what=what, error=str(error))
            if self._closed.wait(pause):
                return
            pause = min(2 * pause, LONGEST_PAUSE)

    def _later(self, what: str, remove: Callable[[], None]) -> None:
        pause = FIRST_PAUSE
        while not self._closed.wait(pause):
            try:
                remove()
            except DriverError as error:
                log.debug("what a start has made cannot be removed yet", what=what, error=str(error))
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            log.info("what a start has made is gone", what=what)
            return


def remove(client: Any, identity: str) -> None:
    """End it and remove it with its anonymous volumes. One that is gone is no error. Raises DriverError."""
    try:
        client.remove_container(identity, v=True, force=True)
    except NotFound:
        return
    except EXPECTED as error:
        if status_of(error) == 409 and "in progress" in sentence_of(error):
            _wait_gone(client, identity)
            return
        raise failure(
            OTHER, f"container {identity[:12]} cannot be removed", sentence_of(error), status_of(error)
        ) from error


def _wait_gone(client: Any, identity: str) -> None:
    """Somebody else is removing it."""
    with engine_call(OTHER, f"container {identity[:12]} is being removed, but does not go"):
        try:
            client.wait(identity, condition="removed", timeout=30)
        except NotFound:
            return
