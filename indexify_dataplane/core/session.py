"""What the node knows of its connection to the server: state, registration, cursors. Pure; no clock and no I/O.

**Registrations.** The server numbers commands and results from 1 after every full sync that it accepted. A poll that
was sent before must not touch the cursors after:

    poll(ack=7) ──▶ server ............ held ........... reply [#8]          the reply is of the old numbering
    heartbeat(full_state) ──▶ server: sequences restart at 1 ──▶ ok          cursors go to 0
                                                         reply applied       cursor 8: the new #1 to #8 are skipped

So each accepted full sync begins a new *generation*; a reply or a late confirmation of an older one is discarded. The
other direction, an old ack that reaches the server after the restart and deletes fresh commands, is closed by the
heartbeat: it leaves Ready, which ends both polls, and sends the full state only when none is under way (``quiet``).
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from attrs import define, field


class Link(enum.Enum):
    """The state of the connection; polls run in READY alone. CLOSED is final: the node is leaving."""

    REGISTERING = "Registering"
    READY = "Ready"
    UNHEALTHY = "Unhealthy"
    CLOSED = "Closed"


class Verdict(enum.Enum):
    """What to do with an item of a poll's reply."""

    APPLY = "apply"
    REDELIVERED = "redelivered"
    GAP = "gap"


@define
class Cursor:
    """How far one of the two sequences was applied, in the numbering of the current generation."""

    applied: int = 0
    gaps: int = 0

    @property
    def ack(self) -> int | None:
        """What the next poll acknowledges; None when nothing is applied yet."""
        return self.applied or None

    def judge(self, seq: int, last: int) -> Verdict:
        """``last`` is the highest sequence number taken over so far, confirmed or not."""
        if seq <= last:
            return Verdict.REDELIVERED
        return Verdict.APPLY if seq == last + 1 else Verdict.GAP


GAPS_BEFORE_SYNC = 3


@define
class Session:
    """See the module's text. ``subscribe`` tells of each change of ``link``."""

    link: Link = Link.REGISTERING
    generation: int = 0
    needs_full_state: bool = True
    why_full_state: str = "start of the process"
    commands: Cursor = field(factory=Cursor)
    results: Cursor = field(factory=Cursor)
    ever_answered: bool = False
    _polls: int = 0
    _gaps_allowed: int = GAPS_BEFORE_SYNC
    _listeners: list[Callable[[Link, Link, str], None]] = field(factory=list)

    @property
    def healthy(self) -> bool:
        """The last heartbeat was accepted."""
        return self.link is Link.READY

    @property
    def quiet(self) -> bool:
        """No poll is under way."""
        return self._polls == 0

    def subscribe(self, listener: Callable[[Link, Link, str], None]) -> Callable[[], None]:
        """Call ``listener(old, new, reason)`` at each change, and also when the last poll ends (old is new then).
        Returns a function that ends this."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def require_full_state(self, reason: str) -> None:
        """The next heartbeat must carry the full state; polls stop until it was accepted."""
        self.needs_full_state = True
        self.why_full_state = reason
        self._go(Link.REGISTERING, reason)

    def heartbeat_accepted(self, *, full_state: bool) -> None:
        """The server took a heartbeat and did not ask for state."""
        self.ever_answered = True
        if full_state:
            self.generation += 1
            self.commands.applied = self.results.applied = 0
            self.commands.gaps = self.results.gaps = 0
            self.needs_full_state = False
        if not self.needs_full_state:
            self._go(Link.READY, "full state accepted" if full_state else "heartbeat accepted")

    def state_requested(self) -> None:
        """The server took a heartbeat, threw its reports away and asks for the full state."""
        self.ever_answered = True
        self.require_full_state("the server asks for it")

    def heartbeat_failed(self, reason: str) -> None:
        self._go(Link.UNHEALTHY, reason)

    def close(self) -> None:
        """No poll may run any more, whatever heartbeats still achieve."""
        self._go(Link.CLOSED, "the node is leaving")

    def poll_began(self) -> int:
        """A poll is sent; returns the generation that its reply belongs to."""
        self._polls += 1
        return self.generation

    def poll_ended(self) -> None:
        self._polls -= 1
        if self._polls == 0:
            self._tell(self.link, self.link, "no poll is under way")

    def confirmed(self, cursor: Cursor, generation: int, seq: int) -> bool:
        """``seq`` is stored; False when the numbering has changed since, and nothing was moved."""
        if generation != self.generation:
            return False
        cursor.applied = seq
        cursor.gaps = 0
        self._gaps_allowed = GAPS_BEFORE_SYNC
        return True

    def gap_seen(self, cursor: Cursor) -> None:
        """A reply did not begin where the last one ended. After a few of them the numbering is begun anew; should
        that not help, the next attempt is made later and later."""
        cursor.gaps += 1
        if cursor.gaps >= self._gaps_allowed:
            cursor.gaps = 0
            self._gaps_allowed = min(self._gaps_allowed * 2, 96)
            self.require_full_state("repeated gaps in a sequence of the server")

    def _go(self, new: Link, reason: str) -> None:
        old = self.link
        if old is new or old is Link.CLOSED:
            return
        self.link = new
        self._tell(old, new, reason)

    def _tell(self, old: Link, new: Link, reason: str) -> None:
        for listener in tuple(self._listeners):
            listener(old, new, reason)
