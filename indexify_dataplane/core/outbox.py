"""Reports that the server has not accepted yet: what goes into the next heartbeat, and what may leave.

An item leaves only when a heartbeat that carried it was accepted, or when it was isolated as one that the server
refuses for ever. Nothing is dropped for want of room: ``nearly_full`` asks for fewer commands instead. Nothing is
coalesced either, because each report says something that the others do not.

**Refusals.** One item that the server cannot ingest makes it refuse the whole heartbeat. The caller tells
``refused(batch)`` when the same heartbeat without its items was accepted. The second refusal in a row makes the batch
the list of suspects; from then on ``take`` yields half of the suspects until one is left. An accepted half clears
itself and leaves the guilty one among the others. An item that stood alone and was refused ``ALONE`` times in a row is
given back to be replaced: a server that answers INTERNAL at random must not cost an outcome.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterable
from heapq import merge
from itertools import islice

from attrs import frozen

MIB = 1024 * 1024
BATCH_BYTES = 10 * MIB
"""Soft limit of the items in one heartbeat."""
HARD_BYTES = 24 * MIB
"""What one heartbeat may hold at most next to its full state; the server takes 32 MiB."""
BATCH_ITEMS = 2000
"""Keeps the encoding of one heartbeat to a few milliseconds of the loop."""

ALONE = 8
"""Refusals of one item. Should a server fail half of all calls, an innocent one is hit once in 60,000 times."""


class ReportKind(enum.IntEnum):
    """The field of the heartbeat that an item belongs to. The numbers are kept in the store."""

    RESPONSE = 1
    OUTCOME = 2
    LOG = 3


@frozen
class Item:
    """One encoded report; ``id`` is the store's."""

    id: int
    kind: ReportKind
    encoded: bytes


@frozen
class Batch:
    """The items of one heartbeat. ``more`` says that another one should follow at once."""

    items: tuple[Item, ...] = ()
    more: bool = False

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(item.id for item in self.items)

    def of(self, kind: ReportKind) -> list[Item]:
        return [item for item in self.items if item.kind is kind]


class Outbox:
    """See the module's text. At most one batch is under way at a time."""

    def __init__(self, *, max_items: int = 50_000, max_bytes: int = 256 * MIB) -> None:
        self._queues: dict[ReportKind, deque[Item]] = {kind: deque() for kind in ReportKind}
        self._suspects: tuple[int, ...] = ()
        self._refusals = 0
        self._refused_alone = 0
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._listeners: list[Callable[[ReportKind], None]] = []
        self.bytes = 0

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    @property
    def nearly_full(self) -> bool:
        """Four fifths of what it should hold at most: no more commands should be asked for."""
        return len(self) * 5 >= self._max_items * 4 or self.bytes * 5 >= self._max_bytes * 4

    @property
    def isolating(self) -> bool:
        """Whether an item that the server refuses is being searched for."""
        return bool(self._suspects)

    def subscribe(self, listener: Callable[[ReportKind], None]) -> Callable[[], None]:
        """Call ``listener`` with its kind after each addition; returns a function that ends this."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def add(self, id: int, kind: ReportKind, encoded: bytes) -> None:
        """Append a report; called in the order in which they were made."""
        self._queues[kind].append(Item(id, kind, encoded))
        self.bytes += len(encoded)
        for listener in tuple(self._listeners):
            listener(kind)

    def take(self, limit: int = BATCH_BYTES) -> Batch:
        """What the next heartbeat carries; nothing leaves the outbox by it.

        The first item of each kind goes along whatever its size, as long as the server can take the whole; a further
        one while the sum stays below ``limit``. Responses come first. An outcome stays here as long as a log entry does
        that was made before it: the server must have heard of the calls that an outcome speaks of.
        """
        if self._suspects:
            return self._take_suspects()
        taken: list[Item] = []
        total = 0

        def left(items: Iterable[Item]) -> Item | None:
            """Take of ``items`` what there is room for; the first one that there is not."""
            nonlocal total
            for item in items:
                size = len(item.encoded)
                first = item is self._queues[item.kind][0]
                fits = total + size < (HARD_BYTES if first else limit) or not taken
                if not fits or len(taken) >= BATCH_ITEMS:
                    return item
                taken.append(item)
                total += size
            return None

        responses, later = self._in_order()
        rest = [left(responses), left(later)]
        if rest[1] is not None and rest[1].kind is ReportKind.OUTCOME:
            entries = self._queues[ReportKind.LOG]
            rest.append(left(islice(entries, sum(item.kind is ReportKind.LOG for item in taken), None)))
        return Batch(tuple(taken), any(rest))

    def _in_order(self) -> tuple[Iterable[Item], Iterable[Item]]:
        """Responses; then outcomes and log entries as they were made."""
        queues = self._queues
        outcomes, entries = queues[ReportKind.OUTCOME], queues[ReportKind.LOG]
        later = merge(outcomes, entries, key=lambda item: item.id) if outcomes and entries else outcomes or entries
        return queues[ReportKind.RESPONSE], later

    def accepted(self, batch: Batch) -> None:
        """The server has the batch: its items leave."""
        gone = frozenset(batch.ids)
        self._suspects = tuple(id for id in self._suspects if id not in gone)
        self._remove(gone)
        self._refusals = self._refused_alone = 0

    def refused(self, batch: Batch) -> Item | None:
        """The server refuses the batch although it accepts heartbeats without it. Returns the guilty item once it is
        known; the caller then calls ``replace`` or ``remove``."""
        self._refusals += 1
        if self._refusals < 2 and not self._suspects:
            return None
        if not self._suspects or len(batch.items) > 1:
            self._suspects = batch.ids
            return None
        self._refused_alone += 1
        if self._refused_alone < ALONE:
            return None
        self._refused_alone = 0
        return batch.items[0]

    def replace(self, item: Item, encoded: bytes) -> None:
        """Put ``encoded`` in the place of a refused item; it is under suspicion until it was accepted."""
        queue = self._queues[item.kind]
        for position, queued in enumerate(queue):
            if queued.id == item.id:
                queue[position] = Item(item.id, item.kind, encoded)
                self.bytes += len(encoded) - len(queued.encoded)
                return
        raise KeyError(item.id)

    def remove(self, item: Item) -> None:
        """Give up a refused item that nothing can replace."""
        self._remove(frozenset((item.id,)))
        self._end_search()

    def _end_search(self) -> None:
        self._suspects = ()
        self._refusals = self._refused_alone = 0

    def _take_suspects(self) -> Batch:
        chosen = set(self._suspects[: max(1, len(self._suspects) // 2)])
        items = tuple(item for each in self._in_order() for item in each if item.id in chosen)
        return Batch(items, more=len(self) > len(items))

    def _remove(self, ids: frozenset[int]) -> None:
        # A batch, a half of the suspects and the guilty one are all at the front of their queues.
        for queue in self._queues.values():
            while queue and queue[0].id in ids:
                self.bytes -= len(queue.popleft().encoded)
