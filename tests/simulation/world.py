"""A whole node, a control plane and a host on one virtual clock, with seeded faults.

Everything that happens follows from the seed: the script of the clients, the latencies, what is lost, when the node
dies. ``Simulation(seed).run()`` plays it, lets everything heal and settle, and checks from the server's and the host's
side that nothing was lost, doubled or left behind. A failing seed replays by its number.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from attrs import define, evolve
from google.protobuf.message import Message
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from indexify_dataplane.blobs.stores import Blobs
from indexify_dataplane.control.transport import ControlError
from indexify_dataplane.core.model import Completed, ExitStatus, Kind, NetworkPolicy, Running
from indexify_dataplane.core.node import Rules
from indexify_dataplane.core.outbox import Outbox
from indexify_dataplane.core.session import Session
from indexify_dataplane.core.step import step
from indexify_dataplane.daemon_client import DaemonUnreachable
from indexify_dataplane.dataplane import Dataplane, Settings
from indexify_dataplane.devserver.blobs import MemoryBlobs
from indexify_dataplane.devserver.engine import Engine
from indexify_dataplane.devserver.errors import RpcError
from indexify_dataplane.drivers.base import DriverError
from indexify_dataplane.metrics import Metrics
from indexify_dataplane.store import Store
from indexify_dataplane.testing.memory_driver import Fault, MemoryDriver, MemoryHost
from indexify_dataplane.testing.memory_executors import ExecutorWorld, MemoryExecutors, Plan
from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .snapshots import NodeGone, SimBlobs, SlowCalls, SnapshotChecks

HEALTH_THRESHOLD = 3
NS = "default"
LOST = NetworkPolicy(deny_out=("lost",))
"""What is in force where somebody has taken the rules away."""
EXECUTOR = "sim-executor"


class NodeClock:
    """The clock as one process sees it: when the process dies, none of its timers rings any more."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._calls: set[Any] = set()
        self.dead = False

    def seconds(self) -> float:
        return self._clock.seconds()

    def callLater(self, delay: float, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        def ring() -> None:
            self._calls.discard(handle)
            if not self.dead:
                call(*args, **kwargs)

        handle = self._clock.callLater(delay, ring)
        self._calls.add(handle)
        return handle

    def die(self) -> None:
        self.dead = True
        for call in self._calls:
            if call.active():
                call.cancel()
        self._calls.clear()


class InlineCalls:
    """Blocking calls run at once: the store of a simulation is as quick as its answer."""

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """Nothing to stop."""

    def run(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        try:
            return succeed(call(*args, **kwargs))
        except Exception:
            return fail(Failure())


@define
class Dice:
    """How likely what goes wrong is; each a probability per opportunity."""

    lose_request: float = 0.0
    lose_reply: float = 0.0
    crash: float = 0.0
    start_fails: float = 0.0
    kill_fails: float = 0.0
    daemon_silent: float = 0.0
    internal: float = 0.0
    snapshot_fails: float = 0.0
    policy_fails: float = 0.0
    freeze_fails: float = 0.0
    rules_lost: float = 0.0


class SimStore(Store):
    """A store on a file of the simulation; the node may die before or after any commit."""

    world: Simulation

    def commit(self, changes: Any) -> Deferred[None]:
        if self.world.node_dies():
            return Deferred()
        done = super().commit(changes)
        if self.world.node_dies():
            return Deferred()
        return done


class SimTransport:
    """Calls the engine with latency and losses; a dead node hears nothing."""

    def __init__(self, world: Simulation, clock: NodeClock) -> None:
        self._world = world
        self._clock = clock

    def call(self, method: str, request: Message, timeout: float) -> Deferred[Any]:
        world, random = self._world, self._world.random
        inner: list[Deferred[Any]] = []
        answer: Deferred[Any] = Deferred(lambda _: [each.cancel() for each in inner])
        copy = type(request)()
        copy.CopyFrom(request)

        def settle(result: Any) -> None:
            if self._clock.dead or answer.called:
                return
            if timer.active():
                timer.cancel()
            if isinstance(result, Failure):
                error = result.value
                code = error.code if isinstance(error, RpcError) else "UNAVAILABLE"
                answer.errback(ControlError(code, str(error)))
            else:
                answer.callback(result)

        def arrive() -> None:
            if world.partitioned or random.random() < world.dice.lose_request:
                self._clock.callLater(0.5, settle, Failure(RpcError("UNAVAILABLE", "request lost")))
                return
            if method == "heartbeat" and random.random() < world.dice.internal:
                settle(Failure(RpcError("INTERNAL", "the server is unwell")))
                return
            held = world.engine.call(method, copy)
            inner.append(held)

            def reply(result: Any) -> None:
                if isinstance(result, Failure) and result.check(CancelledError):
                    return
                if world.partitioned or random.random() < world.dice.lose_reply:
                    result = Failure(RpcError("UNAVAILABLE", "reply lost"))
                elif method == "heartbeat" and not isinstance(result, Failure) and not result.send_state:
                    world.accepted(copy)
                self._clock.callLater(random.uniform(0.001, 0.05), settle, result)

            held.addBoth(reply)

        def expire() -> None:
            settle(Failure(RpcError("DEADLINE_EXCEEDED", "no answer in time")))

        timer = self._clock.callLater(timeout, expire)
        self._clock.callLater(random.uniform(0.001, 0.05), arrive)
        answer.addBoth(lambda result: (timer.cancel() if timer.active() else None, result)[1])
        return answer


class SimDaemons:
    """Daemons that answer while their container runs, most of the time."""

    def __init__(self, world: Simulation) -> None:
        self._world = world
        self._silent: Counter[str] = Counter()

    async def healthy(self, address: str, timeout: float, token: str | None = None) -> bool:
        found = [
            container_id
            for container_id, each in self._world.host.containers.items()
            if each.status is None and each.handle.daemon_address == address
        ]
        if found and self._world.host.containers[found[0]].frozen:
            self._world.asked_while_frozen.append(found[0])
            raise DaemonUnreachable(f"{address} is frozen")
        if not found or self._world.random.random() < self._world.dice.daemon_silent:
            self._silent[address] += 1
            if found and self._silent[address] >= HEALTH_THRESHOLD:
                self._world.explained[found[0]].add("its daemon was silent too often")
            raise DaemonUnreachable(f"{address} is silent")
        self._silent[address] = 0
        return True

    async def go(self, address: str, timeout: float, token: str | None = None) -> None:
        """Containers in memory are never held."""
        raise DaemonUnreachable(f"{address} holds nothing")

    async def forget(self, address: str) -> None:
        """No connection is held."""

    async def close(self) -> None:
        """Nothing is open."""


class CountingHost(MemoryHost):
    """Remembers how often a container was created: user code of one id must start at most once."""

    def __init__(self) -> None:
        super().__init__()
        self.created: Counter[str] = Counter()

    def create(self, driver_name: str, order: Any) -> Any:
        made = super().create(driver_name, order)
        self.created[order.container_id] += 1
        return made


@define
class Parts:
    """What a test replaces to plant a fault."""

    decide: Any = step
    outbox: Callable[[], Outbox] = Outbox
    session: Callable[[], Session] = Session
    store: type[SimStore] = SimStore
    driver: type[MemoryDriver] = MemoryDriver


class Broken(AssertionError):
    """The simulation found a promise broken; the text names the seed."""


class Simulation:
    """See the module's text. ``seconds``: how long clients and faults are at work, on the virtual clock."""

    def __init__(
        self,
        seed: int,
        *,
        seconds: float = 90.0,
        dice: Dice | None = None,
        parts: Parts | None = None,
        functions: bool = True,
        outages: bool = True,
        rules: Rules | None = None,
    ) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.clock = Clock()
        self.clock.advance(1_000.0)
        self.dice = dice or self._throw()
        self.parts = parts or Parts()
        self.seconds = seconds
        self.functions = functions
        self.outages = outages
        self.rules = rules or Rules()
        self.partitioned = False
        self.queue_size = Random(seed + 2).randint(1, 3)
        self.engine = Engine(
            clock=self.clock, blobs=MemoryBlobs(), random=Random(seed + 1), wall=self.clock.seconds,
            idle_container_secs=20.0, repeat_removals=True, queue_size=self.queue_size,
        )  # fmt: skip
        self.host = CountingHost()
        self.blobs = SimBlobs(self)
        self.snapshots = SnapshotChecks(self)
        self.executors = ExecutorWorld(plan=self._plan, startup_seconds=0.2)
        self.directory = Path(tempfile.mkdtemp(prefix="simulation-"))
        self.plane: Dataplane | None = None
        self.node_clock: NodeClock | None = None
        self.crashes = 0
        self.restarts = 0
        self.explained: dict[str, set[str]] = defaultdict(set)
        self.outcomes: dict[str, set[bytes]] = defaultdict(set)
        self.server_forgot = False
        self.asked_while_frozen: list[str] = []
        self.claims_ahead: list[str] = []
        self.frozen_once = 0
        self.pool_id: str | None = None
        self.events: list[str] = []
        self._opening: Deferred[None] | None = None

    def _throw(self) -> Dice:
        chance = self.random.choice
        return Dice(
            lose_request=chance((0.0, 0.02, 0.1)),
            lose_reply=chance((0.0, 0.02, 0.1)),
            crash=chance((0.0, 0.002, 0.01)),
            start_fails=chance((0.0, 0.1)),
            kill_fails=chance((0.0, 0.2)),
            daemon_silent=chance((0.0, 0.05)),
            internal=chance((0.0, 0.05)),
            snapshot_fails=chance((0.0, 0.3)),
            policy_fails=chance((0.0, 0.1)),
            freeze_fails=chance((0.0, 0.1)),
            rules_lost=chance((0.0, 0.5)),
        )

    def say(self, text: str) -> None:
        self.events.append(f"{self.clock.seconds():9.3f} {text}")

    # The node

    def boot(self) -> None:
        """Start a node process on what the last one left."""
        self.node_clock = clock = NodeClock(self.clock)
        driver = self.parts.driver(reactor=clock, host=self.host, start_delay=0.1, kill_delay=0.05, faults=self._fault)
        store = self.parts.store(
            reactor=clock, path=self.directory / "store.db", others=False, executor_id=EXECUTOR, pool=InlineCalls()
        )
        store.world = self
        store.wall_offset = lambda: 0.0  # type: ignore[method-assign]  # the virtual clock never restarts
        self.store = store
        self.plane = plane = Dataplane(
            clock=clock,
            store=store,
            drivers=lambda executor_id: {Kind.SANDBOX: driver, Kind.FUNCTION: driver},
            daemons=SimDaemons(self),
            executors=MemoryExecutors(clock=clock, world=self.executors),
            snapshot_blobs=Blobs(
                clock=clock, calls=SlowCalls(self, clock), metrics=Metrics(), stores={"file": self.blobs}
            ),
            transport=SimTransport(self, clock),
            identity=self._identity,
            settings=Settings(rules=self.rules, health_threshold=HEALTH_THRESHOLD),
            metrics=Metrics(),
            rng=Random(self.random.random()),
            decide=self.parts.decide,
            outbox=self.parts.outbox(),
            session=self.parts.session(),
        )
        plane.died.addErrback(self._died)
        self._opening = Deferred.fromCoroutine(plane.open())
        self._opening.addCallbacks(lambda _: plane.connect() if not clock.dead else None, self._died)

    def _died(self, failure: Failure) -> None:
        if self.node_clock is not None and not self.node_clock.dead:
            raise Broken(f"seed {self.seed}: a part of the node died: {failure.getTraceback()}")

    def _identity(self) -> pb.DataplaneStateFullSync:
        capacity = pb.HostResources(cpu_count=64, memory_bytes=1 << 40, disk_bytes=1 << 44)
        return pb.DataplaneStateFullSync(
            hostname="sim", version="0", total_resources=capacity, total_container_resources=capacity,
            proxy_address="sim:8095",
        )  # fmt: skip

    def node_dies(self) -> bool:
        """Decide whether the node is killed right now; it must not do anything any more if so."""
        assert self.node_clock is not None
        if not self.node_clock.dead and self.random.random() < self.dice.crash:
            self.kill_node()
        return self.node_clock.dead

    def kill_node(self) -> None:
        assert self.node_clock is not None and self.plane is not None
        if self.node_clock.dead:
            return
        self.crashes += 1
        self.say("node dies")
        self.node_clock.die()
        for container in self.host.containers.values():
            if container.order.kind is Kind.FUNCTION:
                self.explained[container.order.container_id].add("node died")
        self.host.crash()
        if self.random.random() < self.dice.rules_lost:
            # Somebody flushed the packet filter while no node looked.
            self.say("rules are lost")
            for container_id in self.host.policies:
                self.host.policies[container_id] = LOST
        store = self.store
        self.clock.callLater(0.0, store._close)
        self.clock.callLater(self.random.uniform(0.5, 4.0), self.boot)

    def restart_node(self) -> None:
        """A graceful stop, as by SIGTERM, and a new start."""
        plane, clock = self.plane, self.node_clock
        assert plane is not None and clock is not None
        if clock.dead or self._opening is None or not self._opening.called:
            return
        self.say("node is restarted")
        self.restarts += 1
        for container in self.host.containers.values():
            if container.order.kind is Kind.FUNCTION:
                self.explained[container.order.container_id].add("node died")
        if not plane.live(Kind.SANDBOX):
            self.server_forgot = True
        stopping = Deferred.fromCoroutine(plane.stop(deadline=clock.seconds() + 3.0))

        def stopped(result: Any) -> None:
            if clock.dead:
                return
            if isinstance(result, Failure):
                raise Broken(f"seed {self.seed}: the node cannot be stopped: {result.getTraceback()}")
            clock.die()
            self.boot()

        stopping.addBoth(stopped)

    def _fault(self, operation: str, container_id: str) -> Fault | None:
        random = self.random
        if self.node_dies():
            if operation == "export":
                raise NodeGone
            return Fault(delay=float("inf"))
        if operation == "start" and random.random() < self.dice.start_fails:
            self.explained[container_id].add("start failed")
            return Fault(delay=random.uniform(0, 0.3), error=DriverError("the host says no"))
        if operation == "export" and random.random() < self.dice.snapshot_fails:
            self.snapshots.faults[container_id] += 1
            return Fault(error=DriverError("the engine says no"), after_effect=random.random() < 0.5)
        if operation == "kill" and random.random() < self.dice.kill_fails:
            return Fault(error=DriverError("busy"), after_effect=random.random() < 0.5)
        if operation in ("apply_policy", "thaw") and random.random() < self.dice.policy_fails:
            self.explained[container_id].add("its policy could not be applied")
            return Fault(delay=random.uniform(0, 0.2), error=DriverError("the lock is taken"))
        if operation == "freeze":
            self.frozen_once += 1
            if random.random() < self.dice.freeze_fails:
                return Fault(error=DriverError("no freezer"), after_effect=random.random() < 0.5)
        slow = ("start", "kill", "apply_policy", "freeze", "thaw")
        return Fault(delay=random.uniform(0, 0.2)) if operation in slow else None

    def accepted(self, request: pb.HeartbeatRequest) -> None:
        self.snapshots.accepted(request)
        for response in request.command_responses:
            if response.HasField("container_started"):
                self._check_claim(response.container_started.container_id)
        for outcome in request.allocation_outcomes:
            ended = outcome.completed if outcome.HasField("completed") else outcome.failed
            self.outcomes[ended.allocation_id].add(outcome.SerializeToString())

    def _check_claim(self, container_id: str) -> None:
        """What is reported as started has its rules in force, and a claimed one is awake."""
        assert self.plane is not None and self.node_clock is not None
        record = self.plane.node.containers.get(container_id)
        there = self.host.containers.get(container_id)
        if record is None or there is None or there.status is not None or not isinstance(record.state, Running):
            return
        if record.spec.sandbox is None or record.spec.sandbox_id is None or record.state.claiming:
            return
        lost = self.host.policies[container_id] == LOST  # recovery is about to put them back
        if not lost and self.host.policies[container_id] != record.spec.sandbox.network_policy:
            self.claims_ahead.append(f"{container_id} was reported before its rules were in force")
        if there.frozen and not self.crashes:
            self.claims_ahead.append(f"{container_id} was reported before it was awake")

    def _plan(self, allocation: Any) -> Plan:
        return Plan(seconds=self.random.choice((0.0, 0.05, 2.0, 6.0)), outcome=Completed())

    # The clients and the weather

    def act(self) -> None:
        """One random thing happens."""
        choices: list[tuple[int, Callable[[], None]]] = [
            (10, self.create),
            (7, self.delete),
            (3, self.claim),
            (2, self.exit_one),
            (3, self.snapshot),
            (2, self.restore),
            (1, self.ask_for_state),
            (1, self.refuse_sigterm),
            (1, self.restart_node),
        ]
        if self.functions:
            choices.append((8, self.invoke))
        if self.dice.crash:
            choices.append((1, self.kill_node))
        if self.outages:
            choices += [(1, self.cut_short), (1, self.cut_long), (1, self.restart_server)]
        weights, actions = zip(*choices, strict=True)
        self.random.choices(actions, weights)[0]()

    def create(self) -> None:
        timeout = self.random.choice((0, 0, 7200, 12))
        made = self.engine.sandboxes.create(NS, {"timeout_secs": timeout})
        if timeout == 12:
            self.explained[made.id].add("timeout")
        self.say(f"create {made.id} timeout={timeout}")

    def _living(self) -> list[Any]:
        return [each for each in self.engine.world.sandboxes.values() if each.status in ("pending", "running")]

    def snapshot(self) -> None:
        running = [each for each in self.engine.world.sandboxes.values() if each.status == "running"]
        if running:
            self.snapshots.order(self.random.choice(running))

    def restore(self) -> None:
        complete = [each for each in self.engine.world.snapshots.values() if each.status == "completed"]
        if complete:
            chosen = self.random.choice(complete)
            made = self.engine.sandboxes.create(NS, {"timeout_secs": 0, "snapshot_id": chosen.id})
            self.say(f"restore {chosen.id} as {made.id}")

    def delete(self) -> None:
        living = self._living()
        if living:
            chosen = self.random.choice(living)
            self.explained[chosen.id].add("deleted")
            if chosen.container_id:
                self.explained[chosen.container_id].add("deleted")
            self.say(f"delete {chosen.id}")
            self.engine.sandboxes.delete(NS, chosen.id)

    def claim(self) -> None:
        if self.pool_id is None:
            pool = self.engine.sandboxes.create_pool(NS, {"image": "i", "warm_containers": 2, "max_containers": 500})
            self.pool_id = pool.id
            return
        if self.random.random() < 0.5:
            network = self.random.choice((None, {"allow_internet_access": False}, {"deny_out": ["10.0.0.0/8"]}))
            wish = {"image": "i", "warm_containers": 2, "max_containers": 500, "network": network}
            self.engine.sandboxes.update_pool(NS, self.pool_id, wish)
        made = self.engine.sandboxes.create_from_pool(NS, self.pool_id)
        self.say(f"claim {made.id} -> {made.container_id}")

    def exit_one(self) -> None:
        running = self.host.running()
        if running:
            chosen = self.random.choice(running)
            self.explained[chosen].add("exited")
            self.say(f"exit {chosen}")
            self.host.exit(chosen, ExitStatus(code=1))

    def refuse_sigterm(self) -> None:
        for container_id in self.host.running():
            self.host.containers[container_id].ignores_sigterm = True

    def invoke(self) -> None:
        if (NS, "app") not in self.engine.world.applications:
            function = {"name": "f", "timeout_sec": 30, "max_concurrency": 2, "retry_policy": {"max_retries": 3}}
            if self.queue_size > 1:
                function["max_containers"] = 1  # else there is always room for one more, and nothing waits
            self.engine.applications.deploy(
                NS,
                {"name": "app", "version": "v1", "functions": {"f": function}, "entrypoint": {"function_name": "f"}},
                code=b"zip",
            )
        request = self.engine.applications.invoke(NS, "app", b"1")
        self.say(f"invoke {request.id}")

    def ask_for_state(self) -> None:
        self.say("server asks for state")
        self.engine.force_full_state(EXECUTOR)

    def cut_short(self) -> None:
        self._cut(self.random.uniform(1, 10))

    def cut_long(self) -> None:
        self.server_forgot = True
        self._cut(self.random.uniform(31, 60))

    def _cut(self, seconds: float) -> None:
        if not self.partitioned:
            self.say(f"network is cut for {seconds:.1f} s")
            self.partitioned = True
            self.clock.callLater(seconds, self._heal)

    def _heal(self) -> None:
        self.partitioned = False

    def restart_server(self) -> None:
        self.say("server restarts")
        for sandbox in self._living():
            if sandbox.status == "pending":
                # A start that no executor has heard of does not survive the real server's restart either.
                self.explained[sandbox.id].add("server restarted")
        self.engine.restart(durable=True)

    # The run

    def advance(self, seconds: float) -> None:
        """Let virtual time pass, ringing every timer at its own time."""
        end = self.clock.seconds() + seconds
        while True:
            calls = self.clock.getDelayedCalls()
            due = min((call.getTime() for call in calls), default=end)
            if due > end:
                break
            self.clock.advance(max(0.0, due - self.clock.seconds()))
        self.clock.advance(max(0.0, end - self.clock.seconds()))

    def run(self) -> Simulation:
        try:
            self.boot()
            self.advance(0.5)
            end = self.clock.seconds() + self.seconds
            while self.clock.seconds() < end:
                self.act()
                self.advance(self.random.expovariate(1.0))
            self.settle()
            self.check()
            return self
        except Broken:
            raise
        except Exception as error:
            raise Broken(
                f"seed {self.seed}: {type(error).__name__}: {error}\n" + "\n".join(self.events[-40:])
            ) from error
        finally:
            self.close()

    def settle(self) -> None:
        """The weather clears, clients go away, and everything has time to come to rest."""
        self.say("settling")
        self.dice = Dice()
        self.partitioned = False
        self.advance(90.0)
        self.partitioned = False
        self.advance(900.0)

    def close(self) -> None:
        if self.node_clock is not None:
            self.node_clock.die()
        self.engine.close()
        self.store._close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def check(self) -> None:
        """Every promise, seen from outside."""
        assert self.plane is not None
        wrong: list[str] = []
        world = self.engine.world
        wanted = {each.id for each in world.containers.values() if each.lives}
        running = set(self.host.running())
        wrong += [
            f"container {lost} should live and does not: {world.containers[lost].state}"
            for lost in sorted(wanted - running)
        ]
        wrong += [f"container {each} runs although the server does not want it" for each in sorted(running - wanted)]
        wrong += [f"the remains of {each} are on the host" for each in sorted(set(self.host.containers) - running)]
        wrong += [
            f"container {each.id} is {each.state} for the server"
            for each in world.containers.values()
            if each.lives and each.state != "running"
        ]
        for sandbox in world.sandboxes.values():
            if sandbox.status == "pending":
                wrong.append(f"sandbox {sandbox.id} is pending for ever: {sandbox.pending_reason}")
            why = self.explained[sandbox.id] | self.explained[sandbox.container_id or ""]
            if sandbox.status == "terminated" and not why and not self.server_forgot:
                wrong.append(f"sandbox {sandbox.id} was lost: {sandbox.outcome}")
            if sandbox.status == "running" and "timeout" in why:
                wrong.append(f"sandbox {sandbox.id} outlived its time")
        for container_id, count in self.host.created.items():
            if count > 1:
                wrong.append(f"container {container_id} was started {count} times")
        for allocation_id, count in self.executors.ran.items():
            if count > 1:
                wrong.append(f"allocation {allocation_id} ran {count} times")
        for container_id, count in self.executors.constructed.items():
            if count > 1:
                wrong.append(f"the constructor of {container_id} ran {count} times")
        for allocation_id, bodies in self.outcomes.items():
            if len(bodies) > 1:
                wrong.append(f"allocation {allocation_id} had {len(bodies)} different outcomes")
        for request in world.requests.values():
            if request.outcome is None:
                states = {run.id: run.status for run in request.runs.values()}
                wrong.append(f"request {request.id} never ended: {states}")
        wrong += self.snapshots.check()
        wrong += self._check_node(wanted)
        if wrong:
            text = "\n  ".join(wrong)
            log = "\n".join(self.events[-60:])
            raise Broken(f"seed {self.seed} with {self.dice}:\n  {text}\n{log}")

    def _check_node(self, wanted: set[str]) -> list[str]:
        assert self.plane is not None
        wrong: list[str] = []
        node = self.plane.node
        live = {each.id for each in self.plane.live()}
        if live != wanted:
            wrong.append(f"the node believes in {sorted(live ^ wanted)} differently from the server")
        if len(self.plane.outbox):
            wrong.append(f"{len(self.plane.outbox)} reports were never delivered")
        if node.allocations or node.slots or node.assigned or node.unacknowledged:
            wrong.append(f"allocations are left: {list(node.allocations)} {list(node.unacknowledged)}")
        connection = self.store._connected()
        for table, expected in (("reports", 0), ("allocations", 0), ("containers", len(node.containers))):
            (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
            if count != expected:
                wrong.append(f"{count} rows are left in {table}, {expected} belong there")
        wrong += self.claims_ahead
        wrong += [f"{each} was asked for its health while it was frozen" for each in self.asked_while_frozen]
        for each in node.containers.values():
            there = self.host.containers.get(each.id)
            if there is None or each.spec.sandbox is None or not isinstance(each.state, Running):
                continue
            policy = self.host.policies.get(each.id)
            if policy != each.spec.sandbox.network_policy:
                wrong.append(f"{each.id} has the rules {policy}, not {each.spec.sandbox.network_policy}")
            if there.frozen and each.spec.sandbox_id is not None:
                wrong.append(f"{each.id} is claimed and frozen")
            if there.frozen != each.state.frozen:
                wrong.append(f"{each.id} is frozen: {there.frozen}, the record says {each.state.frozen}")
        wrong += [
            f"the rules of {each} are left" for each in sorted(set(self.host.policies) - set(self.host.containers))
        ]
        if self.plane.reconciliation.in_flight:
            wrong.append(f"{self.plane.reconciliation.in_flight} operations never ended")
        return wrong


def calm(**chances: float) -> Dice:
    """No faults but the named ones."""
    return evolve(Dice(), **chances)
