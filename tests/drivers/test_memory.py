"""What simulations rely on: the memory driver on a clock, with faults and crashes."""

from __future__ import annotations

import math
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.core.model import ExitStatus, Kind
from indexify_dataplane.drivers.base import DriverError
from indexify_dataplane.testing.memory_driver import Fault, MemoryDriver, MemoryHost
from tests.contracts.driver import order


class Memory(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.host = MemoryHost()
        self.faults: dict[str, Fault] = {}
        self.driver = self.node()

    def node(self) -> MemoryDriver:
        return MemoryDriver(
            reactor=self.clock,
            host=self.host,
            start_delay=2.0,
            terminate_delay=1.0,
            kill_delay=1.0,
            faults=lambda operation, _: self.faults.get(operation),
        )

    def run_now(self, work: Any) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(work))

    def started(self, name: str, kind: Kind = Kind.SANDBOX) -> Any:
        start = Deferred.fromCoroutine(self.driver.start(order(name, kind=kind)))
        self.clock.pump([1.0, 1.0])
        return self.successResultOf(start)

    def test_a_crash_between_effect_and_answer(self) -> None:
        answers: list[object] = []
        Deferred.fromCoroutine(self.driver.start(order("a"))).addBoth(answers.append)
        self.clock.advance(1.5)
        self.host.crash()
        self.clock.advance(10)
        self.assertEqual((answers, self.clock.calls), ([], []))
        (found,) = self.run_now(self.node().list_containers())
        self.assertEqual((found.container_id, found.alive), ("a", True))

    def test_a_crash_before_the_effect(self) -> None:
        Deferred.fromCoroutine(self.driver.start(order("a")))
        self.clock.advance(0.5)
        self.host.crash()
        self.clock.advance(10)
        self.assertEqual(self.host.containers, {})

    def test_functions_die_with_the_node(self) -> None:
        self.started("s")
        self.started("f", Kind.FUNCTION)
        self.host.crash()
        self.assertEqual(self.host.running(), ["s"])

    def test_watches_of_a_dead_node_are_silent(self) -> None:
        handle = self.started("a")
        told: list[ExitStatus] = []
        self.driver.watch(handle, told.append)
        self.host.crash()
        self.host.exit("a")
        self.clock.advance(1)
        self.assertEqual((told, self.clock.calls), ([], []))

    def test_delays(self) -> None:
        handle = self.started("a")
        told: list[ExitStatus] = []
        self.driver.watch(handle, told.append)
        self.run_now(self.driver.terminate(handle))
        self.clock.advance(0.9)
        self.assertEqual(told, [])
        self.clock.pump([0.1, 0])
        self.assertEqual(told, [ExitStatus(code=0)])
        kill = Deferred.fromCoroutine(self.driver.kill(handle))
        self.assertNoResult(kill)
        self.clock.advance(1)
        self.successResultOf(kill)
        self.assertEqual((self.host.containers, self.clock.calls), ({}, []))

    def test_faults(self) -> None:
        handle = self.started("a")
        self.faults["kill"] = Fault(error=DriverError("before"))
        kill = Deferred.fromCoroutine(self.driver.kill(handle))
        self.failureResultOf(kill, DriverError)
        self.assertEqual(self.host.running(), ["a"])
        self.faults["kill"] = Fault(error=DriverError("after"), after_effect=True)
        kill = Deferred.fromCoroutine(self.driver.kill(handle))
        self.clock.advance(1)
        self.failureResultOf(kill, DriverError)
        self.assertEqual(self.host.running(), [])

    def test_a_failed_start_leaves_nothing_whenever_it_fails(self) -> None:
        for after in (False, True):
            self.faults["start"] = Fault(error=DriverError("no"), after_effect=after)
            start = Deferred.fromCoroutine(self.driver.start(order("a")))
            self.clock.pump([1, 1])
            self.failureResultOf(start, DriverError)
            self.assertEqual((self.host.containers, self.clock.calls), ({}, []))

    def test_a_hung_call_can_be_cancelled(self) -> None:
        self.faults["inspect"] = Fault(delay=math.inf)
        inspect = Deferred.fromCoroutine(self.driver.inspect(self.started("a")))
        self.clock.advance(1e9)
        self.assertNoResult(inspect)
        inspect.cancel()
        self.failureResultOf(inspect, CancelledError)
