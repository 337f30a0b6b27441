"""The heartbeat: liveness, the full state when it is needed, and every report until the server has it.

**A report that the server refuses.** The server applies what it can of a heartbeat and answers INTERNAL for the
rest, without a word about which item it was. So a refused heartbeat is repeated at once without its items. If that one
is accepted, the items are to blame: the node stays Ready, goes on polling and sending bare heartbeats, and the outbox
halves the batch until the bad item stands alone. If the bare one fails as well, the server is unwell, and nothing is
held against the items.

**Stopping.** ``stop`` closes the session first, which ends the polls, so that nothing new comes in while the outbox
drains and nothing follows STOPPED on the wire.

**When a report goes out.** Somebody waits for an outcome or a call: the author of a request, or the function that
called. They go at once if the last heartbeat began ``GAP`` ago, else as soon as that is so, and take along what else is
there.
What only acknowledges waits a little, so that as a rule the outcome of a short allocation takes it along.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.logger import Logger

from ..core.backoff import Backoff, Rng
from ..core.model import Container
from ..core.outbox import Batch, Item, Outbox, ReportKind
from ..core.session import Link, Session
from ..metrics import Metrics
from ..reactor import Clock
from ..wireproto import executor_api_pb2 as pb
from .heartbeat_call import HeartbeatCall
from .loop import LoopService
from .transport import ControlError, Transport
from .wire_reports import replacement, summarize

log = Logger()

INTERVAL = 5.0
QUIET_TIMEOUT = 5.0
COALESCE = (0.02, 0.05)
"""How long a report waits for others that nobody is waiting for either."""
GAP = 0.01
"""Least time between the beginnings of two heartbeats: one node asks for 100 a second at most."""


@frozen
class _Pause:
    """How long to wait for the next heartbeat; new reports shorten it unless it is ``firm``."""

    seconds: float
    firm: bool = False


class Heartbeat(LoopService):
    """Sends heartbeats.

    ``identity`` gives the full sync without containers, ``full_state`` all containers. ``delivered`` is told the ids
    of reports that need not be kept any longer, ``replaced`` what takes the place of one that the server refuses.
    ``idle`` says that a full sync would disturb nothing (nothing runs
    here and nothing waits for a result); if it is given, one is sent about every ``resync_interval`` seconds, to heal
    silent drift. Times are seconds.
    """

    name = "heartbeat"

    def __init__(
        self,
        *,
        clock: Clock,
        transport: Transport,
        session: Session,
        outbox: Outbox,
        executor_id: str,
        identity: Callable[[], pb.DataplaneStateFullSync],
        full_state: Callable[[], Iterable[Container]],
        delivered: Callable[[tuple[int, ...]], Deferred[Any] | None],
        metrics: Metrics,
        rng: Rng,
        replaced: Callable[[int, bytes], None] | None = None,
        idle: Callable[[], bool] | None = None,
        interval: float = INTERVAL,
        resync_interval: float = 1800.0,
    ) -> None:
        super().__init__(clock)
        self._call = HeartbeatCall(
            clock=clock,
            transport=transport,
            executor_id=executor_id,
            identity=identity,
            full_state=full_state,
            metrics=metrics,
        )
        self._session = session
        self._outbox = outbox
        self._executor_id = executor_id
        self._delivered = delivered
        self._replaced = replaced
        self._metrics = metrics
        self._rng = rng
        self._idle = idle
        self._interval = interval
        self._resync_interval = resync_interval
        self._next_resync = 0.0
        self._retry = Backoff(first=1.0, maximum=5.0, rng=rng)
        self._asked_again = Backoff(first=1.0, maximum=5.0, rng=rng)
        self._search = Backoff(first=0.5, maximum=2.0, rng=rng)
        self._waiting: Deferred[None] | None = None
        self._timer: Any | None = None
        self._firm = False
        self._wanted_at: float | None = None
        self._began = -GAP
        self._polls_ended: Deferred[None] | None = None
        self._unsubscribe: tuple[Callable[[], None], ...] = ()
        metrics.gauge("outbox.reports", lambda: len(outbox))
        metrics.gauge("outbox.bytes", lambda: outbox.bytes)

    @property
    def ever_answered(self) -> bool:
        """Some heartbeat was answered, if only by the wish for state. Never goes back."""
        return self._session.ever_answered

    @property
    def healthy(self) -> bool:
        """The server accepted the last heartbeat."""
        return self._session.healthy

    @property
    def last_report_summary(self) -> str:
        """The last attempt in one line of ``key=value``."""
        return self._call.summary

    def startService(self) -> None:
        self._unsubscribe = (self._session.subscribe(self._link_changed), self._outbox.subscribe(self._reported))
        super().startService()

    def stopService(self) -> Deferred[None] | None:
        """End at once, without a farewell; ``stop`` comes first where there is time."""
        unsubscribe, self._unsubscribe = self._unsubscribe, ()
        for end in unsubscribe:
            end()
        return super().stopService()

    def wake(self) -> None:
        """Send a heartbeat soon: 20 to 50 ms from now, together with all that is reported until then."""
        self._want_at(self._clock.seconds() + self._rng.uniform(*COALESCE))

    def _reported(self, kind: ReportKind) -> None:
        if kind is ReportKind.RESPONSE:
            self.wake()
        else:
            self._want_at(max(self._clock.seconds(), self._began + GAP))

    def _want_at(self, at: float) -> None:
        if self._wanted_at is not None and self._wanted_at <= at:
            return
        self._wanted_at = at
        if self._waiting is not None and not self._firm:
            # The clock has gone on since ``at`` was read from it.
            self._arm(max(0.0, at - self._clock.seconds()))

    async def stop(self, *, stopped: bool, deadline: float) -> None:
        """Deliver what is in the outbox until ``deadline`` (a time of the clock); then, if ``stopped``, tell the
        server that this executor is gone, which makes it end every sandbox of it. No call is made after this."""
        if self._may_end:
            return
        self._may_end = True
        self._session.close()
        if self._waiting is not None:
            self._waiting.callback(None)
        if not await self._in_time(deadline, self.when_ended()) and self._loop is not None:
            self._loop.cancel()
            await self.when_ended()
        await self._in_time(deadline, Deferred.fromCoroutine(self._drain()))
        if stopped:
            await self._until_quiet()
            await self._say_stopped()
        if len(self._outbox):
            log.warn("undelivered reports stay in the store for the next start", reports=len(self._outbox))

    async def run(self) -> None:
        while not self._may_end:
            pause = await self._beat()
            if not self._may_end:
                await self._wait(pause)

    async def _beat(self) -> _Pause:
        """One heartbeat with the fragments that follow it; returns when the next one is due."""
        began = self._clock.seconds()
        self._resync_if_due(began)
        while True:
            full = self._session.needs_full_state
            if full:
                await self._until_quiet()
                log.info("sending full state", executor_id=self._executor_id, reason=self._session.why_full_state)
            self._wanted_at, self._began = None, self._clock.seconds()
            batch = self._outbox.take()
            try:
                reply, blamed = await self._send(batch, full, began)
            except ControlError as error:
                return self._failed(error)
            self._retry.reset()
            if reply.send_state:
                return self._asked_for_state(full, batch)
            self._asked_again.reset()
            if full:
                self._next_resync = self._clock.seconds() + self._resync_interval * self._rng.uniform(0.8, 1.2)
            if blamed is None:
                self._outbox.accepted(batch)
            self._session.heartbeat_accepted(full_state=full)
            if blamed is not None:
                return self._refused(batch, blamed)
            if batch.items:
                self._search.reset()
                self._tell_delivered(batch.ids)
            if not batch.more and not self._session.needs_full_state:
                return _Pause(self._interval * self._rng.uniform(0.9, 1.0))
            self._metrics.counter("state_report_message_fragmentations").add()

    async def _send(self, batch: Batch, full: bool, began: float) -> tuple[pb.HeartbeatResponse, ControlError | None]:
        """The reply, and the error that the items earned if it is the reply to a heartbeat without them."""
        try:
            return await self._call.running(batch, full=full, began=began), None
        except ControlError as error:
            if not batch.items or not error.about_the_request:
                raise
            log.warn("heartbeat refused; trying without its reports", error=str(error), reports=len(batch.items))
            return await self._call.running(Batch(), full=full, began=began), error

    def _failed(self, error: ControlError) -> _Pause:
        pause = self._retry.next()
        log.warn("heartbeat failed", error=str(error), retryable=error.retryable, retry_in_secs=round(pause, 2))
        self._session.heartbeat_failed(str(error))
        return _Pause(pause, firm=True)

    def _asked_for_state(self, full: bool, batch: Batch) -> _Pause:
        log.info(
            "the server asks for the full state; reports are kept",
            resp_count=len(batch.of(ReportKind.RESPONSE)),
            out_count=len(batch.of(ReportKind.OUTCOME)),
            log_count=len(batch.of(ReportKind.LOG)),
        )
        self._session.state_requested()
        return _Pause(self._asked_again.next() if full else 0.0, firm=True)

    def _refused(self, batch: Batch, error: ControlError) -> _Pause:
        item = self._outbox.refused(batch)
        if item is not None:
            self._put_right(item, error)
            self._search.reset()
        return _Pause(self._search.next(), firm=True)

    def _put_right(self, item: Item, error: ControlError) -> None:
        ids = summarize(item.kind, item.encoded)
        substitute = replacement(item.kind, item.encoded)
        if substitute is not None:
            log.error("the server refuses an outcome; a plainer one takes its place", error=str(error), **ids)
            self._outbox.replace(item, substitute)
            if self._replaced is not None:
                self._replaced(item.id, substitute)
            return
        log.error("the server refuses a report for ever; it is given up", error=str(error), **ids)
        self._outbox.remove(item)
        self._tell_delivered((item.id,))

    def _tell_delivered(self, ids: tuple[int, ...]) -> None:
        told = self._delivered(ids)
        if told is not None:
            # Not waited for: a slow store must not cost the node its liveness. What stays in the store by a
            # failure here is sent again after the next start, which the server tolerates.
            told.addErrback(lambda failure: log.error("delivered reports stay in the store", error=str(failure.value)))

    def _resync_if_due(self, now: float) -> None:
        if self._idle is None or self._session.link is not Link.READY or now < self._next_resync:
            return
        if not len(self._outbox) and self._idle():
            self._session.require_full_state("regular comparison")

    async def _drain(self) -> None:
        while len(self._outbox):
            pause = await self._beat()
            if pause.firm:
                await self.pause(pause.seconds)

    async def _say_stopped(self) -> None:
        batch = self._outbox.take()
        known = not self._session.needs_full_state
        try:
            await self._call.stopped(batch)
        except ControlError as error:
            log.warn("the server was not told of the stop", executor_id=self._executor_id, error=str(error))
            return
        log.info("the server was told of the stop", executor_id=self._executor_id)
        # A server that does not know this executor throws the items away and says nothing of it.
        if known and batch.items:
            self._outbox.accepted(batch)
            self._tell_delivered(batch.ids)

    async def _in_time(self, deadline: float, work: Deferred[None]) -> bool:
        """Wait for ``work``; False, and it is cancelled, when ``deadline`` comes first."""
        try:
            await self.limit(work, deadline - self._clock.seconds())
        except DeferredTimeout:
            return False
        return True

    async def _wait(self, pause: _Pause) -> None:
        self._waiting = Deferred()
        self._firm = pause.firm
        seconds = pause.seconds
        if self._wanted_at is not None and not pause.firm:
            seconds = min(seconds, max(0.0, self._wanted_at - self._clock.seconds()))
        self._arm(seconds)
        try:
            await self._waiting
        finally:
            self._waiting = None
            if self._timer is not None and self._timer.active():
                self._timer.cancel()
            self._timer = None

    def _arm(self, seconds: float) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        assert self._waiting is not None
        self._timer = self._clock.callLater(max(0.0, seconds), self._waiting.callback, None)

    async def _until_quiet(self) -> None:
        """Wait until both polls have ended; see ``core.session`` for the race."""
        if self._session.quiet:
            return
        self._polls_ended = Deferred()
        try:
            await self.limit(self._polls_ended, QUIET_TIMEOUT)
        except DeferredTimeout:
            log.warn("a poll does not end; it is not waited for any longer", waited_secs=QUIET_TIMEOUT)
        finally:
            self._polls_ended = None

    def _link_changed(self, old: Link, new: Link, reason: str) -> None:
        if old is not new:
            named = {"from": old.value, "to": new.value}
            log.info("connection state changed", executor_id=self._executor_id, reason=reason, **named)
            if new is Link.REGISTERING:
                self.wake()
        if self._session.quiet and self._polls_ended is not None and not self._polls_ended.called:
            self._polls_ended.callback(None)
