"""The node without its sockets: store, recovery, reconciliation and the link to the server, on any clock.

``service.py`` gives it the real parts; a simulation gives it a ``task.Clock`` and parts in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import evolve, frozen
from immutables import Map
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from .blobs.stores import Blobs
from .control.heartbeat import Heartbeat
from .control.stream import CommandPoll, ResultPoll
from .control.transport import Transport
from .core.backoff import Rng
from .core.events import Delivered, DrainAll
from .core.model import Container, Kind, Running, Starting, Terminated
from .core.node import DriverRules, Node, Rules
from .core.outbox import Outbox, ReportKind
from .core.recover import Present, recover
from .core.session import Session
from .core.step import step
from .daemon_client import Daemons
from .drivers.base import Driver
from .metrics import Metrics
from .perform.allocations import AllocationWork
from .perform.containers import ContainerWork
from .perform.executors import Executors
from .perform.readiness import Timing
from .perform.secrets import SecretProvider
from .perform.snapshots import SnapshotWork
from .perform.work import Work
from .reactor import Clock
from .reconciliation import Decide, Reconciliation
from .routing import NodeRoutes
from .store import DROP_REPORT, Change, Store
from .tracing import Tracing
from .transitions import Transitions
from .wireproto import executor_api_pb2 as pb

log = Logger()

DELIVERED_AT_ONCE = 100
"""A heartbeat can deliver 2,000 reports; the loop belongs to others as well while the records follow."""


@frozen
class Settings:
    """What the configuration decides for the node; seconds."""

    rules: Rules = Rules()
    timing: Timing = Timing()
    health_interval: float = 5.0
    health_threshold: int = 3
    default_image: str | None = None
    gpus: tuple[str, ...] = ()


class Dataplane:
    """One node. ``open`` recovers it, ``connect`` begins to talk to the server, ``stop`` ends it in order.

    ``drivers`` makes the drivers and ``tracing`` the tracing for an executor id; a kind without a driver is not run
    here. ``snapshot_blobs``: where snapshots go and come from; without them none are taken. ``secrets``: where their
    values come from; without it containers start without theirs and a warning says so. ``identity`` gives the full
    sync without containers; ``died`` errbacks when a part that must live has ended.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        store: Store,
        drivers: Callable[[str], Mapping[Kind, Driver]],
        daemons: Daemons,
        executors: Executors | None,
        snapshot_blobs: Blobs | None = None,
        secrets: SecretProvider | None = None,
        transport: Transport,
        identity: Callable[[], pb.DataplaneStateFullSync],
        settings: Settings,
        metrics: Metrics,
        rng: Rng,
        left_running: Callable[[str], None] = lambda container_id: None,
        tracing: Callable[[str], Tracing] = lambda executor_id: Tracing(),
        decide: Decide = step,
        outbox: Outbox | None = None,
        session: Session | None = None,
    ) -> None:
        self._clock = clock
        self._store = store
        self._make_drivers = drivers
        self._drivers: Mapping[Kind, Driver] = {}
        self._daemons = daemons
        self._executors = executors
        self._snapshot_blobs = snapshot_blobs
        self._secrets = secrets
        self._transport = transport
        self._identity = identity
        self._settings = settings
        self._metrics = metrics
        self._rng = rng
        self._left_running = left_running
        self._make_tracing = tracing
        self.tracing = Tracing()
        self._decide = decide
        self.outbox = Outbox() if outbox is None else outbox  # an empty one is false
        self.session = session or Session()
        self.died: Deferred[None] = Deferred()
        self._draining = False
        self._linked = False
        self.drained: Deferred[None] = Deferred()

    @property
    def node(self) -> Node:
        return self.reconciliation.node

    async def open(self) -> None:
        """Open store and drivers, recover. Raises StoreError or DriverError."""
        loaded = await self._store.open()
        self.executor_id = loaded.executor_id
        self.executor_ids = (loaded.executor_id, *loaded.earlier_executor_ids)
        self.tracing = self._make_tracing(loaded.executor_id)
        self._drivers = self._make_drivers(loaded.executor_id)
        for driver in self._unique_drivers():
            await driver.open()
        drivers = {kind: self._driver_rules(kind, driver) for kind, driver in self._drivers.items()}
        empty = Node(
            executor_id=loaded.executor_id,
            rules=evolve(self._settings.rules, drivers=Map(drivers)),
            free_gpus=self._settings.gpus,
            next_report=loaded.next_report,
            next_op=loaded.next_op,
        )
        self.work = ContainerWork(
            clock=self._clock,
            drivers=self._drivers,
            daemons=self._daemons,
            executors=self._executors,
            executor_id=loaded.executor_id,
            timing=self._settings.timing,
            metrics=self._metrics,
            default_image=self._settings.default_image,
            secrets=self._secrets,
            tracing=self.tracing,
        )
        self.reconciliation = Reconciliation(
            clock=self._clock,
            store=self._store,
            outbox=self.outbox,
            node=empty,
            metrics=self._metrics,
            health_interval=self._settings.health_interval,
            health_threshold=self._settings.health_threshold,
            observers=[Transitions(metrics=self._metrics, left_running=self._no_longer_running), self._observe],
            decide=self._decide,
        )
        allocations = None
        if self._executors is not None:
            allocations = AllocationWork(
                clock=self._clock,
                executors=self._executors,
                submit=self.reconciliation.submit,
                metrics=self._metrics,
                tracing=self.tracing,
            )
        if self._snapshot_blobs is not None:
            self.work.snapshots = SnapshotWork(
                clock=self._clock, blobs=self._snapshot_blobs, driver_of=self.work.driver_of, metrics=self._metrics
            )
        self.reconciliation.work = Work(self.work, allocations, self.work.snapshots)
        self.routes = NodeRoutes(node=lambda: self.node, driver_of=self.work.driver_of)
        for report in loaded.reports:
            self.outbox.add(report.id, ReportKind(report.kind), report.body)
        node, effects = recover(
            empty,
            loaded.containers,
            loaded.allocations,
            {report.id for report in loaded.reports},
            await self._present(),
            self._clock.seconds(),
            loaded.earlier_executor_ids,
            loaded.renamed,
            loaded.deaths,
        )
        recovered = sum(not isinstance(each.state, Terminated) for each in node.containers.values())
        log.info(
            "records recovered",
            executor_id=loaded.executor_id,
            store=str(self._store.path),
            recovered=recovered,
            undelivered_reports=len(loaded.reports),
        )
        self._watch_over(self.reconciliation.died)
        self.reconciliation.startService()
        await self.reconciliation.begin(node, effects, loaded.identity)

    def _driver_rules(self, kind: Kind, driver: Driver) -> DriverRules:
        takes_snapshots = self._snapshot_blobs is not None and driver.takes_snapshots(kind)
        return DriverRules(
            enforces_policies=driver.enforces_policies(),
            survives_node=driver.survives_node(kind),
            takes_snapshots=takes_snapshots,
            freezes=driver.freezes(),
        )

    async def _present(self) -> list[Present]:
        return [
            Present(each.container_id, each.executor_id, each.handle, each.alive, each.started)
            for driver in self._unique_drivers()
            for each in await driver.list_containers()
        ]

    def _unique_drivers(self) -> list[Driver]:
        return list({id(driver): driver for driver in self._drivers.values()}.values())

    def connect(self, parent: MultiService | None = None) -> None:
        """Begin heartbeats and polls, as children of ``parent`` where there is one."""
        common: dict[str, Any] = {
            "clock": self._clock,
            "transport": self._transport,
            "session": self.session,
            "outbox": self.outbox,
            "executor_id": self.executor_id,
            "metrics": self._metrics,
            "rng": self._rng,
        }
        self.heartbeat = Heartbeat(
            **common,
            identity=self._identity,
            full_state=self.reported,
            delivered=self._delivered,
            replaced=self.reconciliation.replace_report,
            # A full sync discards commands on their way; with nothing here there is nothing that could get lost.
            idle=lambda: not self.node.allocations and not self.node.containers,
        )
        polling = {**common, "submit": self.reconciliation.submit, "accepting": lambda: self.reconciliation.accepting}
        self.commands = CommandPoll(**polling)
        self.results = ResultPoll(**polling)
        self._linked = True
        for loop in self.loops:
            self._watch_over(loop.died)
            if parent is None:
                loop.startService()
            else:
                child: Any = loop
                child.setServiceParent(parent)

    @property
    def loops(self) -> tuple[Heartbeat, CommandPoll, ResultPoll]:
        return self.heartbeat, self.commands, self.results

    def live(self, kind: Kind | None = None) -> list[Container]:
        """Containers that are not dead, of one kind or of both."""
        return [
            each
            for each in self.node.containers.values()
            if not isinstance(each.state, Terminated) and (kind is None or each.spec.kind is kind)
        ]

    def reported(self) -> list[Container]:
        """The containers of a full sync. Those that the server wants gone are left out: it would take a dying one over
        again, and read a dead one as a failure of its allocations."""
        kept = (each for each in self.node.containers.values() if not each.removal_ordered)
        return sorted(kept, key=lambda each: each.id)

    def count(self, kind: Kind, state: type[Running] | type[Starting]) -> int:
        """How many containers of ``kind`` are in ``state``."""
        return sum(each.spec.kind is kind and isinstance(each.state, state) for each in self.node.containers.values())

    def drain(self) -> Deferred[None]:
        """Give the node up: end every container, take nothing new. Fires when nothing lives any more."""
        if not self._draining:
            self._draining = True
            log.info("draining: every container is being stopped", live=len(self.live()))
            self.reconciliation.submit(DrainAll())
            self._tell_if_drained()
        waiting: Deferred[None] = Deferred()
        self.drained.chainDeferred(waiting) if not self.drained.called else waiting.callback(None)
        return waiting

    def _observe(self, before: Node, event: object, after: Node, now: float) -> None:
        if self._draining and before.containers is not after.containers:
            self._clock.callLater(0, self._tell_if_drained)

    def _tell_if_drained(self) -> None:
        if not self.drained.called and not self.live():
            self.drained.callback(None)

    def _no_longer_running(self, container_id: str) -> None:
        self.routes.forget(container_id)
        self._left_running(container_id)

    def _delivered(self, report_ids: tuple[int, ...]) -> Deferred[None]:
        if self.reconciliation.running:
            now, later = report_ids[:DELIVERED_AT_ONCE], report_ids[DELIVERED_AT_ONCE:]
            if later:
                self._clock.callLater(0, self._delivered, later)
            return self.reconciliation.submit(Delivered(now))
        # The brain has stopped already; recovery reads from a report's absence that it was delivered.
        changes: Sequence[Change] = [(DROP_REPORT, (report_id,)) for report_id in report_ids]
        return self._store.commit(changes)

    async def abandon(self) -> None:
        """Let go of everything after a failed ``open``."""
        if hasattr(self, "reconciliation"):
            await self.reconciliation.stopService()
        for driver in self._unique_drivers():
            await driver.close()
        await self._store.close()

    async def stop(self, *, deadline: float, farewell: bool = True) -> None:
        """Decide nothing more, deliver what was decided, and say STOPPED only if no sandbox would be lost by it.

        ``deadline``: seconds on the clock until when reports may be delivered. ``farewell`` False never says STOPPED:
        a node of which a part has died comes back.
        """
        if self._linked:
            for poll in (self.commands, self.results):
                ended = poll.stopService()
                if ended is not None:
                    await ended
        await self.reconciliation.stopService()
        if self._linked:
            sandboxes = self.live(Kind.SANDBOX)
            if sandboxes:
                log.info("sandboxes go on without the node; the server is not told that it stops", live=len(sandboxes))
            await self.heartbeat.stop(stopped=farewell and not sandboxes, deadline=deadline)
        if self._executors is not None:
            await self._executors.close()
        await self._daemons.close()
        for driver in self._unique_drivers():
            await driver.close()
        await self._store.close()

    def _watch_over(self, death: Deferred[None]) -> None:
        def died(failure: Failure) -> None:
            if not self.died.called:
                self.died.errback(failure)

        death.addErrback(died)
