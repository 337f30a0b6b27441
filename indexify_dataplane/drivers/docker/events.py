"""The engine's event stream: which containers may have ended, which images have changed.

A stream that breaks is opened again where it ended. An engine keeps only its last few hundred events, and none over a
restart, so after every opening everything that is watched has to be looked at once (``EVERYTHING``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from twisted.logger import Logger

from ..blocking import EVERYTHING, Cancelled
from .ends import exit_code
from .failures import EXPECTED, sentence_of

log = Logger()

ENDS = frozenset({"die", "oom", "destroy"})
CHANGES = frozenset({"tag", "untag", "delete", "pull", "import", "load"})
CREATED = "create"
FILTERS = {"type": ["container", "image"], "event": sorted(ENDS | CHANGES | {CREATED})}
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0


class Events:
    """One listener. ``since`` is where to begin, in seconds on the engine's clock. ``image_changed`` is told of images,
    ``heard`` whether the stream is open, ``ended`` of the action (``die``, ``oom``, ``destroy``), the id of a
    container, the time on the engine's clock and the exit code before its id is yielded, ``created`` of the id and the
    labels of a new container."""

    def __init__(
        self,
        *,
        client: Any,
        since: str,
        image_changed: Callable[[], None],
        heard: Callable[[bool], None],
        ended: Callable[[str, str, float, int | None], None],
        created: Callable[[str, Mapping[str, str]], None],
    ) -> None:
        self._client = client
        self._image_changed = image_changed
        self._heard = heard
        self._ended = ended
        self._created = created
        self._since = since

    def listen(self, stopped: Cancelled) -> Iterator[str]:
        """Container ids, until ``stopped`` is set."""
        pause = FIRST_PAUSE
        lost = False
        while not stopped.is_set():
            try:
                stream = self._client.events(since=self._since, filters=FILTERS, decode=True)
            except EXPECTED as error:
                if not lost:
                    lost = True
                    log.warn("the engine's events cannot be heard, trying again", error=sentence_of(error))
                stopped.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            with stopped.calling(partial(_close, stream)):
                if lost:
                    log.info("the engine's events are heard again")
                lost, pause = True, FIRST_PAUSE
                self._heard(True)
                yield EVERYTHING
                try:
                    yield from self._read(stream)
                except EXPECTED as error:
                    log.debug("the engine's event stream broke", error=sentence_of(error))
            self._heard(False)
            if not stopped.is_set():
                log.warn("the engine's event stream has ended, opening it again")
                stopped.wait(FIRST_PAUSE)

    def _read(self, stream: Any) -> Iterator[str]:
        for event in stream:
            nanoseconds = int(event.get("timeNano") or 0)
            if nanoseconds:
                self._since = f"{nanoseconds // 10**9}.{nanoseconds % 10**9:09d}"
            action = str(event.get("Action") or event.get("status") or "")
            actor = event.get("Actor") or {}
            if event.get("Type") == "image":
                self._image_changed()
            elif action in ENDS:
                identity = str(actor.get("ID") or event.get("id") or "")
                self._ended(action, identity, nanoseconds / 1e9 or float(event.get("time") or 0), exit_code(event))
                yield identity
            elif action == CREATED:
                self._created(str(actor.get("ID") or ""), actor.get("Attributes") or {})


def _close(stream: Any) -> None:
    try:
        stream.close()
    except EXPECTED as error:
        log.debug("the engine's event stream was closed already", error=sentence_of(error))
