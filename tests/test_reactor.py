"""The reactor of the process: timed calls come when they should, and its timer is set only when it has to be."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.trial.unittest import TestCase

reactor: Any = installed
STEP = 0.02


class TimedCalls(TestCase):
    timeout = 20

    @inlineCallbacks
    def test_they_come_in_order_and_never_early(self) -> Generator[Any, Any, None]:
        came: list[tuple[str, bool]] = []
        done: Deferred[None] = Deferred()

        def plan(name: str, delay: float) -> Any:
            at = reactor.seconds() + delay
            return reactor.callLater(delay, lambda: came.append((name, reactor.seconds() >= at)))

        plan("third", 4 * STEP)
        plan("first", STEP)
        sooner, later, never = plan("second", 9 * STEP), plan("fifth", STEP), plan("never", 2 * STEP)
        plan("at once", 0)
        sooner.reset(2 * STEP)
        later.delay(5 * STEP)
        never.cancel()
        plan("fourth", 5 * STEP)
        reactor.callLater(8 * STEP, done.callback, None)
        yield done
        self.assertEqual([name for name, _ in came], ["at once", "first", "second", "third", "fourth", "fifth"])
        # What was moved sooner comes before its first moment.
        self.assertEqual([name for name, due in came if not due], ["second"])

    @inlineCallbacks
    def test_one_that_is_sooner_than_all_others_does_not_wait_for_them(self) -> Generator[Any, Any, None]:
        late = [reactor.callLater(delay, self.fail) for delay in (60, 50, 40)]
        for _ in range(3):
            began = reactor.seconds()
            done: Deferred[None] = Deferred()
            reactor.callLater(STEP, done.callback, None)
            yield done
            self.assertLess(reactor.seconds() - began, 5)
        for each in late:
            each.cancel()

    def test_later_ones_leave_the_timer_alone(self) -> None:
        loop, armed = asyncio.get_event_loop(), []
        first = reactor.callLater(60, self.fail)
        call_at = loop.call_at
        self.patch(loop, "call_at", lambda *args, **options: armed.append(args) or call_at(*args, **options))
        more = [reactor.callLater(61 + number, self.fail) for number in range(100)]
        self.assertEqual(len(armed), 0)
        more.append(reactor.callLater(5, self.fail))
        self.assertEqual(len(armed), 1)
        for each in (first, *more):
            each.cancel()
