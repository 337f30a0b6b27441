"""What waits for an executor in sequence, and the polls that are held open for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from indexify_dataplane.reactor import Clock

RESPONSE_BYTES = 8 * 1024 * 1024
"""The most that one poll response carries (spec: server limits); at least one item goes in any case."""


class Sequenced(Protocol):
    """A message with a sequence number."""

    seq: int

    def ByteSize(self) -> int: ...


M = TypeVar("M", bound=Sequenced)


class Outbox(Generic[M]):
    """Items numbered from 1 upwards, kept until they are acknowledged, and the polls that wait for them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._items: deque[M] = deque()
        self._held: dict[Deferred[list[M]], Callable[[], None]] = {}
        self.next_seq = 1

    def __len__(self) -> int:
        return len(self._items)

    @property
    def held(self) -> int:
        """How many polls are held open."""
        return len(self._held)

    def reset(self) -> None:
        """Forget all items and begin again at 1, as after a registration. Held polls stay held."""
        self._items.clear()
        self.next_seq = 1

    def put(self, item: M) -> None:
        """Number ``item`` and queue it. Call ``wake`` when the batch is complete."""
        item.seq = self.next_seq
        self.next_seq += 1
        self._items.append(item)

    def put_as(self, item: M) -> None:
        """Queue ``item`` under the number that it carries already (a fault: redelivery or disorder)."""
        self._items.append(item)

    def acknowledge(self, seq: int) -> list[M]:
        """Drop and return everything up to ``seq``."""
        dropped = [item for item in self._items if item.seq <= seq]
        if dropped:
            self._items = deque(item for item in self._items if item.seq > seq)
        return dropped

    def prefix(self) -> list[M]:
        """The longest run of items from the front that fits into one response."""
        size = 0
        found: list[M] = []
        for item in self._items:
            size += item.ByteSize()
            if found and size > RESPONSE_BYTES:
                break
            found.append(item)
        return found

    def hold(self, seconds: float) -> Deferred[list[M]]:
        """What is pending, now if there is something, else when ``wake`` is called or after ``seconds``, possibly
        nothing. Cancelling the Deferred ends the poll."""
        pending = self.prefix()
        answer: Deferred[list[M]] = Deferred(lambda poll: self._let_go(poll))
        if pending:
            answer.callback(pending)
            return answer

        def ripe() -> None:
            self._held.pop(answer)
            answer.callback(self.prefix())

        timer = self._clock.callLater(seconds, ripe)
        self._held[answer] = timer.cancel
        return answer

    def _let_go(self, poll: Deferred[list[M]]) -> None:
        stop_timer = self._held.pop(poll, None)
        if stop_timer is not None:
            stop_timer()

    def wake(self) -> None:
        """Answer every held poll with what is pending."""
        held, self._held = self._held, {}
        for poll, stop_timer in held.items():
            stop_timer()
            poll.callback(self.prefix())

    def fail(self, error: Exception) -> None:
        """End every held poll with ``error``."""
        held, self._held = self._held, {}
        for poll, stop_timer in held.items():
            stop_timer()
            poll.errback(Failure(error))
