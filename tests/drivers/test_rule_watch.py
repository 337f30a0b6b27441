"""When rules of the packet filter are looked at, on a clock; what it does on real rules is in tests/network and
tests/system."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.drivers.base import DriverError
from indexify_dataplane.drivers.docker.rule_watch import RuleWatch


class Calls:
    """Blocking calls in the caller's thread; with ``hung`` their answers never come."""

    def __init__(self) -> None:
        self.hung = False

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def run(self, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> Deferred[Any]:
        made: Deferred[Any] = execute(call, *arguments, **named)
        return Deferred() if self.hung else made


class Tests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.calls, self.looks = Clock(), Calls(), 0
        self.problem: Exception | None = None
        self.said: list[str] = []
        globalLogPublisher.addObserver(self.hear)
        self.addCleanup(globalLogPublisher.removeObserver, self.hear)
        self.watch = RuleWatch(clock=self.clock, calls=self.calls, check=self.look, interval=30.0)
        self.watch.startService()
        self.addCleanup(self.watch.stopService)

    def hear(self, event: Any) -> None:
        if "rule_watch" in str(event.get("log_namespace")):
            self.said.append(str(event["log_format"]))

    def look(self) -> None:
        self.looks += 1
        if self.problem is not None:
            raise self.problem

    def test_one_look_an_interval(self) -> None:
        self.clock.advance(29.9)
        self.assertEqual(self.looks, 0)
        self.clock.pump([0.1, 30.0, 30.0])
        self.assertEqual(self.looks, 3)

    def test_a_look_that_hangs_is_waited_for(self) -> None:
        self.calls.hung = True
        self.clock.pump([30.0] * 3)
        self.assertEqual(self.looks, 1)

    def test_what_goes_wrong_is_told_once_and_tried_again(self) -> None:
        self.problem = DriverError("iptables-save cannot be run")
        self.clock.pump([30.0] * 3)
        self.problem = None
        self.clock.pump([30.0] * 2)
        self.assertEqual(self.looks, 5)
        self.assertEqual(
            self.said,
            [
                "rules of the packet filter cannot be checked, trying again",
                "rules of the packet filter are checked again",
            ],
        )

    def test_something_unforeseen_is_not_the_end(self) -> None:
        self.problem = ZeroDivisionError()
        self.clock.pump([30.0] * 2)
        self.assertEqual(self.looks, 2)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_it_ends_with_its_service(self) -> None:
        self.calls.hung = True
        self.clock.advance(30.0)
        self.watch.stopService()
        self.clock.pump([30.0] * 2)
        self.assertEqual(self.looks, 1)
        self.assertEqual(self.said, [])
        self.watch.startService()
