"""The start that an earlier life of the node began is finished, also when what that life had ordered comes between."""

from __future__ import annotations

from attrs import evolve
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.core.effects import Adopt, Start
from indexify_dataplane.core.events import Event, Started, StartFailed
from indexify_dataplane.core.model import ExitStatus, Handle, Kind
from indexify_dataplane.metrics import Metrics
from indexify_dataplane.perform.containers import ContainerWork
from indexify_dataplane.perform.readiness import Timing
from indexify_dataplane.testing.memory_driver import MemoryDriver, MemoryHost
from tests.core.build import sandbox


class Slow:
    """Daemons that answer when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Deferred[bool]]] = []

    def healthy(self, address: str, timeout: float, token: str | None = None) -> Deferred[bool]:
        answer: Deferred[bool] = Deferred()
        self.asked.append((address, answer))
        return answer


class Adoption(SynchronousTestCase):
    def setUp(self) -> None:
        self.host, self.daemons, self.clock = MemoryHost(), Slow(), Clock()
        driver = MemoryDriver(reactor=self.clock, host=self.host)
        self.work = ContainerWork(
            clock=self.clock,
            drivers={Kind.SANDBOX: driver},
            daemons=self.daemons,  # type: ignore[arg-type]
            executors=None,
            executor_id="node-1",
            timing=Timing(),
            metrics=Metrics(),
        )
        self.spec = sandbox()
        earlier = self.work.start(Start(self.spec.id, 1, self.spec))
        self.answer()
        started = self.successResultOf(earlier)
        assert isinstance(started, Started)
        self.handle: Handle = started.handle

    def adopt(self) -> Deferred[Event]:
        return self.work.start(Adopt(self.spec.id, 2, self.spec, self.handle))

    def answer(self) -> None:
        self.daemons.asked.pop()[1].callback(True)

    def test_one_that_is_taken_away_meanwhile_is_started_anew(self) -> None:
        for how in (ExitStatus(signal=9), None):
            work = self.adopt()
            if how is None:
                self.host.remove(self.host.containers[self.spec.id])
            else:
                self.host.exit(self.spec.id, how)
            self.clock.advance(0)
            self.assertNoResult(work)
            self.answer()
            event = self.successResultOf(work)
            assert isinstance(event, Started)
            self.assertNotEqual(event.handle, self.handle)
            self.assertEqual(self.host.running(), [self.spec.id])
            self.handle = event.handle

    def test_one_that_ends_by_itself_has_failed(self) -> None:
        for how in (ExitStatus(code=3), ExitStatus(code=0), ExitStatus(signal=9, oom=True), ExitStatus(signal=15)):
            work = self.adopt()
            self.host.exit(self.spec.id, how)
            self.clock.advance(0)
            self.assertIsInstance(self.successResultOf(work), StartFailed)
            self.assertEqual(self.host.containers, {})
            again = self.work.start(Start(self.spec.id, 1, self.spec))
            self.answer()
            self.handle = self.successResultOf(again).handle  # type: ignore[attr-defined]

    def test_the_second_start_can_be_given_up_too(self) -> None:
        work = self.adopt()
        self.host.exit(self.spec.id, ExitStatus(signal=9))
        self.clock.advance(0)
        self.assertNoResult(work)
        self.work.cancel_start(2)
        self.assertIsInstance(self.successResultOf(work), StartFailed)
        self.assertEqual(self.host.containers, {})

    def test_a_new_start_that_is_killed_has_failed(self) -> None:
        work = self.work.start(Start("other", 3, evolve(self.spec, id="other")))
        self.host.exit("other", ExitStatus(signal=9))
        self.clock.advance(0)
        self.assertIsInstance(self.successResultOf(work), StartFailed)
