"""Arbitrary orders of events, results and crashes against ``step`` and ``recover``.

``World`` is an honest world: every operation is answered once, in any order, unless the node dies first; what was
saved survives. After every event the store equals the node, and the promises of the design hold.
"""

from __future__ import annotations

from collections import Counter

from attrs import evolve
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from immutables import Map

from indexify_dataplane.core import effects as fx
from indexify_dataplane.core import events as ev
from indexify_dataplane.core import gpus
from indexify_dataplane.core.model import (
    Aborting,
    AllocationEnded,
    Cancelling,
    Completed,
    Container,
    ContainerSpec,
    ContainerTerminated,
    Done,
    Executing,
    ExitStatus,
    Failed,
    FailureReason,
    Handle,
    Killing,
    Kind,
    NetworkPolicy,
    Preparing,
    Queued,
    Running,
    SandboxSpec,
    Terminated,
    TerminationReason,
)
from indexify_dataplane.core.node import DriverRules, Node, Rules
from indexify_dataplane.core.recover import Present, recover
from indexify_dataplane.core.step import step

from .build import allocation, function, sandbox

SETTINGS = settings(max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck))
GPUS = ("g1", "g2", "g3")
IDS = ("c1", "c2", "c3", "c4")


class World(RuleBasedStateMachine):
    allocations = Bundle("allocations")
    functions_survive = False

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        functions = DriverRules(survives_node=self.functions_survive)
        sandboxes = DriverRules(enforces_policies=True, survives_node=True, freezes=True)
        self.rules_of_it = Rules(drivers=Map({Kind.SANDBOX: sandboxes, Kind.FUNCTION: functions}))
        self.node = Node("exec", rules=self.rules_of_it, free_gpus=GPUS)
        self.containers: dict[str, Container] = {}
        self.rows: dict[str, object] = {}
        self.reports: dict[int, object] = {}
        self.outcomes: Counter[str] = Counter()
        self.pending: list[fx.Effect] = []
        self.alive: dict[str, tuple[str, Handle]] = {}
        self.watched: dict[str, Handle] = {}
        self.in_force: dict[str, tuple[NetworkPolicy | None, bool]] = {}
        self.alarms: list[fx.Alarm] = []
        self.running: set[str] = set()
        self.deaths: Counter[str] = Counter()
        self.lives: Counter[str] = Counter()
        self.life = 0
        self.seq = 0
        self.last_allocation = 0
        self.handed: list[tuple[str, bytes]] = []

    # The hands.

    def take(self, node: Node, effects: tuple[fx.Effect, ...]) -> None:
        self.nobody_overtakes(node, effects)
        for effect in effects:
            match effect:
                case fx.Save(container):
                    if container.id not in self.containers:
                        self.lives[container.id] += 1
                    self.containers[container.id] = container
                case fx.Forget(id):
                    del self.containers[id]
                case fx.SaveAllocation(each):
                    self.rows[each.id] = each
                case fx.ForgetAllocation(id):
                    self.rows.pop(id, None)
                case fx.Send(report):
                    assert report.id not in self.reports
                    self.reports[report.id] = report.body
                    if isinstance(report.body, AllocationEnded):
                        self.outcomes[report.body.spec.id] += 1
                    if isinstance(report.body, ContainerTerminated) and report.body.container_id in self.containers:
                        self.deaths[report.body.container_id] += 1
                case fx.Discard(ids):
                    for id in ids:
                        self.reports.pop(id, None)
                case fx.Watch(id, _, handle):
                    self.watched[id] = handle
                    if handle.id not in self.alive:
                        self.pending.append(effect)
                case fx.Unwatch(id):
                    self.watched.pop(id, None)
                case fx.Alarm():
                    self.alarms.append(effect)
                case fx.Run(each):
                    self.running.add(each.id)
                case fx.Deliver(id, result):
                    self.handed.append((id, result))
                case fx.CancelStart() | fx.Terminate() | fx.CancelRun():
                    pass
                case _:
                    self.pending.append(effect)
        self.node = node

    def nobody_overtakes(self, node: Node, effects: tuple[fx.Effect, ...]) -> None:
        """GPUs go to those that waited, in the order of their commands; they start with what they hold."""
        waiting = [id for id in self.node.gpu_queue if not isinstance(node.containers[id].state, Terminated)]
        for effect in effects:
            if isinstance(effect, fx.Start) and effect.gpus:
                assert effect.gpus == node.containers[effect.container_id].gpus
                if waiting:
                    assert waiting.pop(0) == effect.container_id
        assert waiting == list(node.gpu_queue[: len(waiting)])

    def tell(self, event: ev.Event) -> None:
        self.take(*step(self.node, event, self.now))

    def command(self, command: ev.Command) -> None:
        self.seq += 1
        self.tell(ev.Commanded(self.seq, command))

    def create(self, container_id: str, spec: ContainerSpec) -> Handle:
        self.life += 1
        handle = Handle("memory", f"{container_id}#{self.life}")
        self.alive[handle.id] = (container_id, handle)
        self.in_force[handle.id] = (spec.sandbox.network_policy if spec.sandbox else None, False)
        return handle

    def answer(self, effect: fx.Effect, well: bool) -> None:
        match effect:
            case fx.Start(id, op, spec) if well:
                self.tell(ev.Started(id, op, self.create(id, spec)))
            case fx.Adopt(id, op, spec, handle) if well and handle.id in self.alive:
                self.in_force[handle.id] = (spec.sandbox.network_policy if spec.sandbox else None, False)
                self.tell(ev.Started(id, op, handle))
            case fx.Start(id, op) | fx.Adopt(id, op):
                if isinstance(effect, fx.Adopt):
                    self.alive.pop(effect.handle.id, None)
                self.tell(ev.StartFailed(id, op, TerminationReason.STARTUP_FAILED_INTERNAL_ERROR, "no"))
            case fx.Watch(id, _, handle):
                if self.watched.get(id) == handle:
                    self.tell(ev.Exited(id, handle.id, ExitStatus(code=1)))
            case fx.Conform(id, op, handle, policy, frozen) if well:
                if handle.id in self.alive:
                    self.in_force[handle.id] = (policy, frozen)
                    self.tell(ev.Conformed(id, op, frozen))
            case fx.Conform(id, op, handle):
                if handle.id in self.alive:
                    self.tell(ev.ConformFailed(id, op, "no"))
            case fx.Kill(id, op, handle) if well:
                self.alive.pop(handle.id, None)
                self.tell(ev.Killed(id, op))
            case fx.Kill(id, op):
                self.tell(ev.KillFailed(id, op, "busy"))
            case fx.KillOrphan(handle):
                self.alive.pop(handle.id, None)
            case fx.Prepare(each):
                self.tell(ev.Prepared(each.id) if well else ev.PrepareFailed(each.id, "no"))
            case fx.Finalize(each, outcome):
                self.tell(ev.Finalized(each.id, outcome if well else Failed(FailureReason.INTERNAL_ERROR)))

    # What may happen.

    @rule(id=st.sampled_from(IDS), sandboxed=st.booleans(), claimed=st.booleans(), gpus=st.integers(0, 2))
    def add(self, id: str, sandboxed: bool, claimed: bool, gpus: int) -> None:
        warm = evolve(sandbox(id, claimed=claimed, timeout=30), pool_id=None if claimed else "pool")
        spec = warm if sandboxed else function(id, slots=2, gpus=gpus)
        self.command(ev.AddContainer(spec))

    @rule(id=st.sampled_from(IDS))
    def remove(self, id: str) -> None:
        self.command(ev.RemoveContainer(id))

    @rule(
        id=st.sampled_from(IDS),
        name=st.sampled_from(("x", "y")),
        timeout=st.sampled_from((0, 5)),
        policy=st.sampled_from((None, NetworkPolicy(True), NetworkPolicy(False))),
    )
    def claim(self, id: str, name: str, timeout: int, policy: NetworkPolicy | None) -> None:
        sandbox = SandboxSpec(sandbox_id=name, timeout_secs=timeout, network_policy=policy)
        self.command(ev.UpdateContainer(id, sandbox))

    @rule(id=st.sampled_from(IDS))
    def snapshot(self, id: str) -> None:
        self.command(ev.SnapshotContainer(id, "snap", "file:///s"))

    @rule(target=allocations, container=st.sampled_from(IDS))
    def run(self, container: str) -> str:
        self.last_allocation += 1
        id = f"a{self.last_allocation}"
        self.command(ev.RunAllocation(allocation(id, container)))
        return id

    @rule(id=allocations, container=st.sampled_from(IDS))
    def repeat_run(self, id: str, container: str) -> None:
        known = id in self.node.allocations or id in self.node.finished
        if known:
            self.command(ev.RunAllocation(allocation(id, container)))

    @rule(id=allocations)
    def kill_allocation(self, id: str) -> None:
        self.command(ev.KillAllocation(id))

    @rule(data=st.data(), well=st.booleans())
    def result(self, data: st.DataObject, well: bool) -> None:
        if self.pending:
            chosen = self.pending[data.draw(st.integers(0, len(self.pending) - 1))]
            if isinstance(chosen, fx.Conform):  # those for one container are carried out one by one
                orders = (each for each in self.pending if isinstance(each, fx.Conform))
                chosen = next(each for each in orders if each.container_id == chosen.container_id)
            self.pending.remove(chosen)
            self.answer(chosen, well)

    @rule(data=st.data(), success=st.booleans())
    def run_ends(self, data: st.DataObject, success: bool) -> None:
        if self.running:
            id = data.draw(st.sampled_from(sorted(self.running)))
            self.running.discard(id)
            self.tell(ev.Called(id, b"call"))
            known = self.node.allocations.get(id)
            runs = known is not None and isinstance(known.state, Executing | Cancelling)
            self.tell(ev.UploadBegun(id, "file:///state", "u1"))
            assert (("file:///state", "u1") in getattr(self.rows.get(id), "uploads", ())) == runs
            self.tell(ev.Ended(id, Completed() if success else Failed(FailureReason.FUNCTION_ERROR)))

    @rule(id=allocations, number=st.integers(0, 9))
    def child_ends(self, id: str, number: int) -> None:
        """Its result reaches the run that waits for it, at once and alone; nobody else ever gets it."""
        known = self.node.allocations.get(id)
        runs = known is not None and isinstance(known.state, Executing)
        result = f"{id}/{number}".encode()
        self.tell(ev.ChildResult(id, result))
        assert self.handed == ([(id, result)] if runs else [])
        self.handed.clear()

    @rule(data=st.data(), unhealthy=st.booleans())
    def dies(self, data: st.DataObject, unhealthy: bool) -> None:
        if self.watched:
            id = data.draw(st.sampled_from(sorted(self.watched)))
            handle = self.watched[id]
            if unhealthy:
                self.tell(ev.Unhealthy(id, handle.id, "?"))
            else:
                self.alive.pop(handle.id, None)
                self.tell(ev.Exited(id, handle.id, ExitStatus(code=1)))

    @rule(count=st.integers(1, 20))
    def deliver(self, count: int) -> None:
        self.tell(ev.Delivered(tuple(sorted(self.reports)[:count])))

    @rule(seconds=st.sampled_from((0.5, 5.0, 40.0, 400.0)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        due = sorted((each for each in self.alarms if each.at <= self.now), key=lambda each: each.at)
        self.alarms = [each for each in self.alarms if each.at > self.now]
        for alarm in due:
            self.tell(alarm.event)

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """The node dies. Operations on their way had their effect or not; functions die with it."""
        for effect in self.pending:
            if data.draw(st.booleans()):
                match effect:
                    case fx.Start(id, _, spec):
                        self.create(id, spec)
                    case fx.Conform(_, _, handle, policy, frozen):
                        self.in_force[handle.id] = (policy, frozen)
                    case fx.Kill(_, _, handle) | fx.KillOrphan(handle):
                        self.alive.pop(handle.id, None)
        self.begin_again()

    def begin_again(self) -> None:
        """What is on its way is lost, and a new node finds what was stored and what lives."""
        functions = {id for id, each in self.containers.items() if each.spec.kind is Kind.FUNCTION}
        if self.functions_survive:
            functions = set()
        self.alive = {key: value for key, value in self.alive.items() if value[0] not in functions}
        self.pending, self.watched, self.alarms, self.running = [], {}, [], set()
        records, rows = list(self.containers.values()), list(self.rows.values())
        rows = [each if isinstance(each.state, Done) else evolve(each, state=Preparing(0.0)) for each in rows]
        next_op = max((each.op for each in records), default=0) + 1
        next_report = max([*self.reports, *self._referenced()], default=0) + 1
        node = Node("exec", rules=self.rules_of_it, free_gpus=GPUS, next_op=next_op, next_report=next_report)
        before, self.node = self.node.gpu_queue, node
        present = [Present(id, "exec", handle, True) for id, handle in self.alive.values()]
        self.take(*recover(node, records, rows, self.reports.keys(), present, self.now))
        assert [id for id in before if id in self.node.gpu_queue] == list(self.node.gpu_queue)

    def _referenced(self) -> list[int]:
        found = [each.state.report for each in self.rows.values() if isinstance(each.state, Done)]
        states = [each.state for each in self.containers.values()]
        return found + [state.report for state in states if isinstance(state, Terminated) and state.report]

    # What must hold.

    @invariant()
    def the_store_is_the_node(self) -> None:
        assert dict(self.node.containers) == self.containers
        assert set(self.node.allocations) <= set(self.rows)

    @invariant()
    def no_process_without_a_record(self) -> None:
        condemned = {effect.handle.id for effect in self.pending if isinstance(effect, fx.KillOrphan)}
        for key, (id, _) in self.alive.items():
            record = self.containers.get(id)
            assert key in condemned or (record is not None and not isinstance(record.state, Terminated)), (key, record)

    @invariant()
    def rules_and_rest_are_as_recorded(self) -> None:
        """... or will be when what was ordered is done; a claim is not over before."""
        ordered = {(each.container_id, each.op) for each in self.pending if isinstance(each, fx.Conform)}
        for id, record in self.containers.items():
            state = record.state
            if not isinstance(state, Running) or record.spec.sandbox is None or state.handle.id not in self.alive:
                continue
            if (id, record.op) not in ordered:
                assert not state.claiming
                assert self.in_force[state.handle.id] == (record.spec.sandbox.network_policy, state.frozen)
            assert not (state.frozen and record.spec.sandbox_id)

    @invariant()
    def slots_and_gpus(self) -> None:
        for id, slots in self.node.slots.items():
            container = self.node.containers.get(id)
            if container is None:  # Removed, and forgotten before the last run in it has let go.
                assert not slots.waiting
                assert all(isinstance(self.node.allocations[each].state, Cancelling) for each in slots.running)
            else:
                assert len(slots.running) <= container.spec.slots
        held = [gpu for each in self.node.containers.values() for gpu in each.gpus]
        assert sorted([*held, *self.node.free_gpus]) == sorted(GPUS)

    @invariant()
    def who_waits_for_gpus(self) -> None:
        """Only those that cannot be served yet, and that will be: what is on its way out is enough for all of them."""
        queue = [self.node.containers[id] for id in self.node.gpu_queue]
        assert [each for each in queue if not isinstance(each.state, Queued)] == []
        waiting = [each for each in self.node.containers.values() if isinstance(each.state, Queued)]
        assert sorted(waiting, key=lambda each: each.op) == queue
        wanted = [gpus.wanted(each.spec) for each in queue]
        assert not wanted or wanted[0] > len(self.node.free_gpus)
        leaving = [each for each in self.node.containers.values() if isinstance(each.state, Aborting | Killing)]
        assert sum(wanted) <= len(self.node.free_gpus) + sum(len(each.gpus) for each in leaving)
        rings = {alarm.event for alarm in self.alarms}
        assert all(ev.Due(each.id) in rings for each in queue)

    @invariant()
    def one_outcome_each(self) -> None:
        assert all(count == 1 for count in self.outcomes.values()), self.outcomes

    @invariant()
    def the_index_of_sandboxes(self) -> None:
        for name, id in self.node.sandboxes.items():
            assert self.node.containers[id].spec.sandbox_id == name

    def teardown(self) -> None:
        """Everything is removed and answered: nothing is left, and every allocation had its outcome."""
        for id in IDS:
            self.command(ev.RemoveContainer(id))
        for _ in range(60):
            while self.pending:
                self.answer(self.pending.pop(0), True)
            for id in sorted(self.running):
                self.running.discard(id)
                self.tell(ev.Ended(id, Completed()))
            for id in IDS:
                self.command(ev.RemoveContainer(id))
            self.deliver(10_000)
            self.time_passes(1000.0)
            if not (self.pending or self.alarms or self.containers or self.reports or self.running):
                break
        assert not self.node.containers and not self.node.sandboxes and not self.alive
        assert not self.node.allocations and not self.node.slots and not self.node.assigned
        assert (
            not self.node.gpu_queue
            and not self.node.finished
            and not self.node.unacknowledged
            and not self.rows
            and not self.reports
        )
        assert sorted(self.node.free_gpus) == sorted(GPUS)
        assert set(self.outcomes) == {f"a{n}" for n in range(1, self.last_allocation + 1)}


class InContainers(World):
    """Functions outlive the node, as they do under Docker."""

    functions_survive = True


for world in (World, InContainers):
    world.TestCase.settings = SETTINGS
Machine = World.TestCase
MachineOfContainers = InContainers.TestCase
