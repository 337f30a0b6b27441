"""The service that owns the Node: events in, one at a time; effects out, stored before they are performed.

A step runs at once when an event comes in, so that decisions never wait. What it wants stored is collected over one
turn of the reactor and committed in one transaction; what it wants done, and everybody who asked to be told when the
event is durable, waits for that commit.

Interleaving: while a commit is on its way further events are stepped and collected; their batch is committed next.
So effects are performed in the order of the events that wanted them, but for those in ``UNSTORED``. If a commit fails,
the batch is kept and tried again: nothing is performed or acknowledged that is not written, and ``accepting`` says that
no new commands are wanted meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from .alarms import Alarms
from .control.wire import InvalidReport, encode_report
from .core.effects import (
    Adopt,
    Alarm,
    CancelRun,
    CancelSnapshot,
    CancelStart,
    Conform,
    CountDeath,
    Deliver,
    Discard,
    Effect,
    Finalize,
    Forget,
    ForgetAllocation,
    Kill,
    KillOrphan,
    Prepare,
    Run,
    Save,
    SaveAllocation,
    Send,
    Start,
    SweepUploads,
    TakeSnapshot,
    Terminate,
    Unwatch,
    Watch,
    WorldEffect,
    story,
)
from .core.events import Commanded, Event, Swept
from .core.model import Report
from .core.node import Node
from .core.outbox import Outbox, ReportKind
from .core.step import step
from .logs import bound
from .metrics import Metrics
from .perform.watch import Watches
from .perform.work import Work
from .reactor import Clock
from .records import encode_allocation, encode_container
from .store import (
    COUNT_DEATH,
    DROP_ALLOCATION,
    DROP_CONTAINER,
    DROP_REPORT,
    PUT_ALLOCATION,
    PUT_CONTAINER,
    PUT_REPORT,
    REPLACE_REPORT,
    Change,
    Store,
    StoreError,
)

log = Logger()

UNSTORED = (Run, Finalize)
"""Done at once when an event wants nothing more than these and its allocation's row: that was stored when it was
accepted, a crash fails it from then on whether they were done or not, and each commit would only cost time. Not for a
command: what it ends may have come with it, and be begun by the commit that is still to come."""

Transition = Callable[[Node, Event, Node, float], None]
Decide = Callable[[Node, Event, float], tuple[Node, tuple[Effect, ...]]]


@define
class Batch:
    """What the steps of one reactor turn want: written first, then done, then told."""

    changes: list[Change] = field(factory=list)
    reports: list[tuple[Report, ReportKind, bytes]] = field(factory=list)
    effects: list[WorldEffect] = field(factory=list)
    waiting: list[Deferred[None]] = field(factory=list)


class Reconciliation(Service):
    """``submit`` is the only way in. ``node`` is the latest decision, ahead of the store by at most one commit."""

    name = "reconciliation"

    def __init__(
        self,
        *,
        clock: Clock,
        store: Store,
        outbox: Outbox,
        node: Node,
        metrics: Metrics,
        health_interval: float,
        health_threshold: int,
        observers: Iterable[Transition] = (),
        store_retry: float = 1.0,
        decide: Decide = step,
    ) -> None:
        self.node = node
        self.died: Deferred[None] = Deferred()
        self.work: Work | None = None
        self._clock = clock
        self._store = store
        self._outbox = outbox
        self._metrics = metrics
        self._observers = tuple(observers)
        self._store_retry = store_retry
        self._decide = decide
        self._alarms: Alarms[Event] = Alarms(clock=clock, ring=self.submit)
        self._watches = Watches(
            clock=clock, submit=self.submit, interval=health_interval, threshold=health_threshold, metrics=metrics
        )
        self._in_flight: dict[Deferred[Any], None] = {}  # in the order of their beginning
        self._abandoned: set[Deferred[Any]] = set()
        self._batch = Batch()
        self._timer: Any = None
        self._committing = False
        self._store_failed = False
        self._stopping = False
        self._idle: list[Deferred[None]] = []
        self.woken: Callable[[], None] = lambda: None

    @property
    def accepting(self) -> bool:
        """Whether new commands may be taken: the store can be written."""
        return not self._store_failed and not self._stopping

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def begin(self, node: Node, effects: tuple[Effect, ...], changes: Iterable[Change] = ()) -> Deferred[None]:
        """Take over what recovery decided; fires when it is stored."""
        self.node = node
        self._batch.changes.extend(changes)
        self._collect(effects)
        return self._when_stored()

    def submit(self, event: Event) -> Deferred[None]:
        """Decide on ``event``. Fires when the decision is stored; it is in ``node`` at once."""
        if self._stopping:
            return Deferred(_never)
        now = self._clock.seconds()
        before = self.node
        try:
            self.node, effects = self._decide(before, event, now)
            for observe in self._observers:
                observe(before, event, self.node, now)
            if self.work is not None and _may_be_done(event, effects):
                self._collect(effect for effect in effects if isinstance(effect, SaveAllocation))
                self._hand_out(effect for effect in effects if isinstance(effect, UNSTORED))
            else:
                self._collect(effects)
        except Exception:
            self._die(Failure())
            raise
        return self._when_stored()

    def replace_report(self, report_id: int, body: bytes) -> None:
        """The server refuses this report for ever; from now on it is ``body``."""
        self._batch.changes.append((REPLACE_REPORT, (body, report_id)))
        self._arm()

    def _when_stored(self) -> Deferred[None]:
        waiting: Deferred[None] = Deferred(_never)
        self._batch.waiting.append(waiting)
        self._arm()
        return waiting

    def _collect(self, effects: Iterable[Effect]) -> None:
        batch = self._batch
        for effect in effects:
            match effect:
                case Save(container):
                    record = encode_container(container, self._store.wall_offset())
                    batch.changes.append((PUT_CONTAINER, (container.id, record)))
                case Forget(container_id):
                    batch.changes.append((DROP_CONTAINER, (container_id,)))
                case SaveAllocation(allocation):
                    batch.changes.append((PUT_ALLOCATION, (allocation.id, encode_allocation(allocation))))
                case ForgetAllocation(allocation_id):
                    batch.changes.append((DROP_ALLOCATION, (allocation_id,)))
                case CountDeath(call_id, count):
                    wall = self._clock.seconds() + self._store.wall_offset()
                    batch.changes.append((COUNT_DEATH, (call_id, count, wall)))
                case Send(report):
                    self._send(report)
                case Discard(report_ids):
                    batch.changes.extend((DROP_REPORT, (report_id,)) for report_id in report_ids)
                case _:
                    batch.effects.append(effect)

    def _send(self, report: Report) -> None:
        try:
            kind, body = encode_report(report.body)
        except InvalidReport as error:
            log.error("a report that the server could not read is dropped", report=repr(report), error=str(error))
            return
        self._batch.changes.append((PUT_REPORT, (report.id, int(kind), body)))
        self._batch.reports.append((report, kind, body))

    def _arm(self) -> None:
        if self._timer is None and not self._committing:
            self._timer = self._clock.callLater(0, self._flush)

    def _flush(self) -> None:
        self._timer = None
        batch, self._batch = self._batch, Batch()
        self._commit(batch)

    def _commit(self, batch: Batch) -> None:
        if not batch.changes:
            self._perform(batch)
            self._go_on()
            return
        self._committing = True
        commit = self._store.commit(batch.changes)
        commit.addCallbacks(lambda _: self._committed(batch), lambda failure: self._commit_failed(batch, failure))
        commit.addErrback(self._die)

    def _committed(self, batch: Batch) -> None:
        self._committing = False
        if self._store_failed:
            self._store_failed = False
            log.info("the store can be written again", path=str(self._store.path))
        self._perform(batch)
        self._go_on()

    def _go_on(self) -> None:
        """After a batch: the next one, or nothing is left to write."""
        if self._batch.changes or self._batch.effects or self._batch.waiting:
            self._arm()
        else:
            self._tell_idle()

    def _commit_failed(self, batch: Batch, failure: Failure) -> None:
        failure.trap(StoreError)
        if not self._store_failed:
            self._store_failed = True
            log.error("the store cannot be written: no new commands are taken", error=str(failure.value))
        if self._stopping:
            self._committing = False
            self._tell_idle()
            return
        self._timer = self._clock.callLater(self._store_retry, self._retry, batch)

    def _retry(self, batch: Batch) -> None:
        self._timer = None
        self._commit(batch)

    def _perform(self, batch: Batch) -> None:
        for report, kind, body in batch.reports:
            self._outbox.add(report.id, kind, body)
        if batch.reports:
            self.woken()
        if not self._stopping:
            self._hand_out(batch.effects)
        for waiting in batch.waiting:
            if not waiting.called:
                waiting.callback(None)

    def _hand_out(self, effects: Iterable[Any]) -> None:
        for effect in effects:
            # Whatever is logged while the effect is performed tells the story of this container or allocation.
            with bound(**story(effect)):
                self._do(effect)

    def _do(self, effect: WorldEffect) -> None:
        work = self.work
        if work is None:
            raise RuntimeError("effects before the node's hands are there")
        match effect:
            case Alarm(at, event):
                self._alarms.set(at, event)
            case Start() | Adopt():
                self._run(work.containers.start(effect), abandon=True)
            case CancelStart(_, op):
                work.containers.cancel_start(op)
            case Watch():
                self._watches.begin(effect, work.containers)
            case Unwatch(container_id):
                self._watches.end(container_id)
            case Terminate():
                # One that is told to end may say that it is unhealthy; only its exit matters now.
                self._watches.stop_asking(effect.container_id)
                self._run(Deferred.fromCoroutine(work.containers.terminate(effect)))
            case TakeSnapshot():
                # It may be frozen meanwhile; only its exit matters.
                self._watches.stop_asking(effect.container_id)
                self._run(work.taking().take(effect))
            case CancelSnapshot(_, op) if work.snapshots is not None:
                work.snapshots.cancel(op)
            case SweepUploads() if work.snapshots is not None:
                self._run(Deferred.fromCoroutine(work.snapshots.sweep(effect)))
            case CancelSnapshot() | SweepUploads():
                log.warn("a snapshot of an earlier configuration cannot be tidied up", container_id=effect.container_id)
                if isinstance(effect, SweepUploads):
                    self.submit(Swept(effect.container_id, effect.upload_uri))
            case Kill():
                self._run(Deferred.fromCoroutine(work.containers.kill(effect)))
            case Conform():
                self._run(work.containers.conform(effect))
            case KillOrphan():
                self._run(Deferred.fromCoroutine(work.containers.kill_orphan(effect)))
            case _ if work.allocations is None:
                raise RuntimeError(f"{type(effect).__name__} on a node that runs no functions")
            case Prepare():
                self._run(Deferred.fromCoroutine(work.allocations.prepare(effect)))
            case Run():
                self._run(work.allocations.run(effect))
            case CancelRun(allocation_id):
                work.allocations.cancel(allocation_id)
            case Finalize():
                self._run(Deferred.fromCoroutine(work.allocations.finalize(effect)))
            case Deliver(allocation_id, result):
                work.allocations.deliver(allocation_id, result)

    def _run(self, work: Deferred[Any], abandon: bool = False) -> None:
        """``abandon``: when the node stops, leave it to the driver and to the next start instead of undoing it."""
        self._in_flight[work] = None
        if abandon:
            self._abandoned.add(work)

        def done(result: Any) -> None:
            self._in_flight.pop(work, None)
            self._abandoned.discard(work)
            if isinstance(result, Failure):
                if result.check(CancelledError) and self._stopping:
                    return
                self._die(result)
            elif result is not None:
                self.submit(result)

        work.addBoth(done)

    def _die(self, failure: Failure) -> None:
        """The brain or a hand failed in a way that nobody foresaw: the process must end and start over."""
        log.failure("reconciliation cannot go on", failure)
        if not self.died.called:
            self.died.errback(failure)

    def _tell_idle(self) -> None:
        idle, self._idle = self._idle, []
        for waiting in idle:
            waiting.callback(None)

    def startService(self) -> None:
        self.running = 1

    def stopService(self) -> Deferred[Any]:
        """Perform nothing more, cancel what runs, and write what is decided. Starts are left to the driver: the next
        start of the node finds them, and a sandbox that is about to run is not started twice."""
        self.running = 0
        self._stopping = True
        self._alarms.stop()
        self._watches.end_all()
        cancelled = [work for work in self._in_flight if work not in self._abandoned]
        for work in cancelled:
            work.cancel()
        if not self._committing and self._timer is not None:
            self._timer.cancel()
            self._flush()
        if self._committing:
            self._idle.append(Deferred())
            cancelled.append(self._idle[-1])
        return DeferredList(cancelled, consumeErrors=True)


def _never(_: Deferred[None]) -> None:
    """Giving up the wait for a commit does not stop the commit."""


def _may_be_done(event: Event, effects: Iterable[Effect]) -> bool:
    """Before anything is stored; see ``UNSTORED``."""
    return not isinstance(event, Commanded) and all(isinstance(each, (*UNSTORED, SaveAllocation)) for each in effects)
