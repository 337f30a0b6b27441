"""What the two long polls have in common.

A poll acknowledges what its sequence's cursor holds, and the cursor moves when an item was accepted durably, in order.
Polls run in Ready alone; every change of the connection ends the one under way, so that none with an old ack is on the
wire when the server begins its numbering anew (``core.session`` tells the race).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from attrs import frozen
from google.protobuf.message import Message
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from ..core.backoff import Backoff, Rng
from ..core.events import Event
from ..core.outbox import Outbox
from ..core.session import Cursor, Link, Session, Verdict
from ..metrics import Metrics
from ..reactor import Clock
from .loop import LoopService
from .transport import ControlError, Method, Transport

log = Logger()

TIMEOUT = 330.0
"""Seconds; the server holds a poll for 300."""
INSTANT = 0.2
"""Seconds. A reply with nothing new that comes sooner was not held; to poll on at once would be a hot loop."""
SLICE = 0.005
"""Seconds of the loop that the items of one reply may take at a time; a full sync can bring a thousand commands."""
RECHECK = 0.5
"""Seconds between two looks at whether the node takes commands again."""


HELD = 2.0
"""Seconds without an answer after which a poll counts as held by a server that is well."""


@frozen
class Malformed:
    """An item that cannot be carried out; the labels are those of the metric."""

    command_type: str
    reason: str
    detail: str


class Poll(LoopService):
    """One of the two loops; a subclass names the call and knows its items.

    ``submit`` takes an event; its Deferred fires when the event is stored. ``accepting`` says whether the node takes
    any; it also waits while the outbox is nearly full, because every command makes reports.
    """

    loop_name: str
    method: Method

    def __init__(
        self,
        *,
        clock: Clock,
        transport: Transport,
        session: Session,
        outbox: Outbox,
        executor_id: str,
        submit: Callable[[Event], Deferred[Any]],
        accepting: Callable[[], bool],
        metrics: Metrics,
        rng: Rng,
    ) -> None:
        super().__init__(clock)
        self._transport = transport
        self._session = session
        self._outbox = outbox
        self._executor_id = executor_id
        self._submit = submit
        self._accepting = accepting
        self._metrics = metrics
        self._failures = Backoff(first=1.0, maximum=10.0, rng=rng)
        self._idling = Backoff(first=0.2, maximum=10.0, rng=rng)
        self._call: Deferred[Any] | None = None
        self._resting: Deferred[None] | None = None
        self._malformed_seq: int | None = None
        self._unsubscribe: Callable[[], None] = lambda: None
        self._failing = False
        self._asked_at = 0.0

    @property
    def healthy(self) -> bool:
        """The loop lives, and its last poll did not fail or the one after it is being held: that one may be held for
        minutes when there is nothing to tell, and a server that cannot be reached fails it at once."""
        held = self._call is not None and self._clock.seconds() - self._asked_at >= HELD
        return self.alive and (held or not self._failing)

    @property
    @abstractmethod
    def cursor(self) -> Cursor:
        """How far this poll's sequence was applied."""

    @abstractmethod
    def request(self, ack: int | None) -> Message:
        """The request that acknowledges everything up to ``ack``."""

    @abstractmethod
    def items(self, reply: Any) -> Sequence[Any]:
        """The items of a reply; each has a ``seq``."""

    @abstractmethod
    def take(self, item: Any) -> Deferred[Any] | None:
        """Hand the item over; None when there is nothing to wait for before it is acknowledged."""

    def startService(self) -> None:
        self._unsubscribe = self._session.subscribe(self._link_changed)
        super().startService()

    def stopService(self) -> Deferred[None] | None:
        self._unsubscribe()
        self._unsubscribe = lambda: None
        return super().stopService()

    async def run(self) -> None:
        while True:
            await self._until_allowed()
            began = self._clock.seconds()
            generation = self._session.generation
            try:
                reply = await self._ask()
            except ControlError as error:
                await self._failed(error)
                continue
            if reply is None or generation != self._session.generation:
                continue
            self._failing = False
            self._failures.reset()
            await self._apply(reply, generation, self._clock.seconds() - began)

    async def _ask(self) -> Any:
        """The reply; None when a change of the connection ended the call."""
        self._session.poll_began()
        try:
            self._asked_at = self._clock.seconds()
            self._call = self._transport.call(self.method, self.request(self.cursor.ack), TIMEOUT)
            return await self._call
        except CancelledError:
            if self._may_end:
                raise
            return None
        finally:
            self._call = None
            self._session.poll_ended()

    async def _apply(self, reply: Any, generation: int, held: float) -> None:
        cursor = self.cursor
        last = cursor.applied
        taken: list[tuple[int, Deferred[Any] | None]] = []
        gap = False
        slice_began = self._clock.seconds()
        for item in self.items(reply):
            if self._clock.seconds() - slice_began > SLICE:
                await self.pause(0)
                if generation != self._session.generation:
                    break
                slice_began = self._clock.seconds()
            verdict = cursor.judge(item.seq, last)
            if verdict is Verdict.REDELIVERED:
                continue
            if verdict is Verdict.GAP:
                gap = True
                log.warn("sequence gap", loop_name=self.loop_name, expected_seq=last + 1, observed_seq=int(item.seq))
                break
            last = int(item.seq)
            taken.append((last, self.take(item)))
        for seq, stored in taken:
            if stored is not None:
                await stored
            self._session.confirmed(cursor, generation, seq)
        if taken and not gap:
            self._idling.reset()
            return
        if gap and not taken and generation == self._session.generation:
            self._session.gap_seen(cursor)
        if gap or held < INSTANT:
            await self._rest(self._idling.next())
        else:
            self._idling.reset()

    async def _failed(self, error: ControlError) -> None:
        self._failing = True
        pause = self._failures.next()
        log.warn("poll failed", loop_name=self.loop_name, error=str(error), retry_in_secs=round(pause, 2))
        if error.code == "NOT_FOUND":
            # The server has dropped this executor. A registration that does not hold must not be repeated in a hot
            # loop, so this pause is not cut short by the new one.
            self._session.require_full_state("the server no longer knows this executor")
            await self.pause(pause)
        else:
            await self._rest(pause)

    def malformed(self, seq: int, fault: Malformed, **ids: str) -> None:
        """Count and log an item that is answered or dropped, but never carried out."""
        repeated = seq == self._malformed_seq
        self._malformed_seq = seq
        labels = {"command_type": fault.command_type, "reason": fault.reason}
        self._metrics.counter(f"{self.loop_name}.malformed_total", **labels).add()
        if repeated:
            self._metrics.counter(f"{self.loop_name}.malformed_repeated_seq_total", **labels).add()
        log.error(
            "malformed item from the server",
            executor_id=self._executor_id,
            loop_name=self.loop_name,
            seq=seq,
            repeated_seq=repeated,
            error=fault.detail,
            **labels,
            **ids,
        )

    async def _until_allowed(self) -> None:
        paused = False
        while True:
            ready = self._session.link is Link.READY
            if ready and self._accepting() and not self._outbox.nearly_full:
                break
            if not paused:
                paused = True
                self._log_pause("poll loop paused")
            await self._rest(RECHECK if ready else None)
        if paused:
            self._log_pause("poll loop resumed")

    def _log_pause(self, message: str) -> None:
        log.info(
            message,
            executor_id=self._executor_id,
            loop_name=self.loop_name,
            state=self._session.link.value,
            outbox_nearly_full=self._outbox.nearly_full,
        )

    async def _rest(self, seconds: float | None) -> None:
        """Sleep, at most until the connection changes; None is until then."""
        resting: Deferred[None] = Deferred()
        timer = None if seconds is None else self._clock.callLater(seconds, resting.callback, None)
        self._resting = resting
        try:
            await resting
        finally:
            self._resting = None
            if timer is not None and timer.active():
                timer.cancel()

    def _link_changed(self, old: Link, new: Link, reason: str) -> None:
        if old is new:
            return
        if new is not Link.READY and self._call is not None:
            self._call.cancel()
        if self._resting is not None and not self._resting.called:
            self._resting.callback(None)
