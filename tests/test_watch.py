"""When containers are asked for their health."""

from __future__ import annotations

import itertools
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from indexify_dataplane.core.effects import Watch
from indexify_dataplane.core.events import Event, Exited, Unhealthy
from indexify_dataplane.core.model import ContainerSpec, ExitStatus, Handle, Kind
from indexify_dataplane.daemon_client import DaemonUnreachable
from indexify_dataplane.drivers.base import DriverError
from indexify_dataplane.metrics import Metrics
from indexify_dataplane.perform.watch import Watches

INTERVAL = 5.0


class Work:
    """Containers whose answers the test gives."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.asked: list[tuple[str, float]] = []
        self.silent: set[str] = set()
        self.ended: ExitStatus | None = None
        self.down = False

    def driver_of(self, handle: Handle) -> Any:
        return self

    def watch(self, handle: Handle, exited: Any) -> Any:
        return lambda: None

    async def inspect(self, handle: Handle) -> ExitStatus | None:
        if self.down:
            raise DriverError("the engine does not answer")
        return self.ended

    async def healthy(self, spec: ContainerSpec, handle: Handle) -> bool:
        self.asked.append((handle.id, self.clock.seconds()))
        if handle.id in self.silent:
            raise DaemonUnreachable("nobody answers")
        return True


class Moments(TestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.work = Work(self.clock)
        self.told: list[Event] = []
        self.watches = Watches(
            clock=self.clock, submit=self.told.append, interval=INTERVAL, threshold=3, metrics=Metrics()
        )
        self.addCleanup(self.watches.end_all)

    def begin(self, name: str) -> None:
        effect = Watch(name, ContainerSpec(id=name, kind=Kind.SANDBOX), Handle(driver="docker", id=name))
        self.watches.begin(effect, self.work)  # type: ignore[arg-type]

    def go(self, seconds: float) -> None:
        self.clock.pump([0.01] * round(seconds * 100))

    def test_containers_of_any_start_share_few_moments(self) -> None:
        for number in range(100):
            self.begin(f"c{number}")
            self.clock.advance(0.0137)
        self.go(4 * INTERVAL)
        for number in range(100):
            moments = [at for name, at in self.work.asked if name == f"c{number}"]
            pauses = [after - before for before, after in itertools.pairwise(moments)]
            self.assertTrue(all(abs(pause - INTERVAL) < 0.3 for pause in pauses), pauses)
            self.assertGreaterEqual(len(moments), 3)
        self.assertLessEqual(len({round(at, 1) for _, at in self.work.asked if at > 2 * INTERVAL}), 45)

    def test_the_third_missing_answer_in_a_row_counts(self) -> None:
        self.begin("c")
        self.work.silent.add("c")
        self.go(2 * INTERVAL + 1)
        self.work.silent.clear()
        self.go(INTERVAL)
        self.work.silent.add("c")
        self.go(2 * INTERVAL)
        self.assertEqual(self.told, [])
        self.go(INTERVAL)
        self.assertEqual([type(each) for each in self.told], [Unhealthy])

    def test_the_driver_is_asked_before_one_is_called_unhealthy(self) -> None:
        self.begin("c")
        self.work.silent.add("c")
        self.work.down = True
        self.go(5 * INTERVAL)
        self.assertEqual(self.told, [])
        self.work.down, self.work.ended = False, ExitStatus(signal=9)
        self.go(3 * INTERVAL)
        self.assertEqual(self.told, [Exited("c", "c", ExitStatus(signal=9))])

    def test_an_answer_after_the_driver_was_away_is_a_good_one(self) -> None:
        self.begin("c")
        self.work.silent.add("c")
        self.work.down = True
        self.go(5 * INTERVAL)
        self.work.silent.clear()
        self.work.down = False
        self.go(5 * INTERVAL)
        self.assertEqual(self.told, [])
