"""Blocking calls on threads: order, bounds, context, failures, the end."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Generator
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults, inlineCallbacks
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from indexify_dataplane.reactor import Pool

told: contextvars.ContextVar[str] = contextvars.ContextVar("told", default="nothing")


class PoolTests(TestCase):
    timeout = 20

    def pool(self, size: int = 2, **options: Any) -> Pool:
        pool = Pool(reactor, "of a test", size, **options)
        self.addCleanup(pool.stop)
        return pool

    @inlineCallbacks
    def test_results_failures_and_context_come_back_in_the_reactor_s_thread(self) -> Generator[Any, Any, None]:
        pool = self.pool()
        pool.start()
        told.set("a story")
        result = yield pool.run(lambda name, end: (told.get(), threading.current_thread().name, name, end), "x", end=1)
        self.assertEqual(result, ("a story", "PoolThread-of a test-0", "x", 1))
        self.assertIs(threading.current_thread(), threading.main_thread())
        error = yield self.assertFailure(pool.run(int, "no number"), ValueError)
        self.assertIn("no number", str(error))

    @inlineCallbacks
    def test_calls_wait_for_the_start_and_for_a_thread(self) -> Generator[Any, Any, None]:
        pool, running, most = self.pool(size=3), set(), 0
        lock, three = threading.Lock(), threading.Barrier(3)

        def call(number: int) -> int:
            nonlocal most
            with lock:
                running.add(number)
                most = max(most, len(running))
            three.wait(10)  # three at a time, or nobody comes past it
            with lock:
                running.discard(number)
            return number

        calls = [pool.run(call, number) for number in range(9)]
        self.assertEqual(running, set())
        pool.start()
        self.assertEqual((yield gatherResults(calls)), list(range(9)))
        self.assertEqual(most, 3)

    @inlineCallbacks
    def test_one_thread_keeps_the_order(self) -> Generator[Any, Any, None]:
        pool, seen = self.pool(size=1), []
        pool.start()
        yield gatherResults([pool.run(seen.append, number) for number in range(100)])
        self.assertEqual(seen, list(range(100)))

    @inlineCallbacks
    def test_a_call_that_is_given_up_goes_on_and_its_answer_is_dropped(self) -> Generator[Any, Any, None]:
        pool, go, done = self.pool(size=1), threading.Event(), []
        pool.start()
        given_up = pool.run(lambda: (go.wait(10), done.append("first")))
        given_up.cancel()
        yield self.assertFailure(given_up, CancelledError)
        go.set()
        yield pool.run(done.append, "second")
        self.assertEqual(done, ["first", "second"])

    def test_the_end_waits_for_what_was_queued_and_takes_no_more(self) -> None:
        pool, done = self.pool(size=1), []
        pool.start()
        for number in range(20):
            pool.run(done.append, number)
        pool.stop()
        self.assertEqual(done, list(range(20)))
        self.assertFalse(pool.run(done.append, "late").called)
        self.assertEqual(done, list(range(20)))
        self.assertFalse([each for each in threading.enumerate() if "of a test" in each.name])

    def test_a_call_that_hangs_is_left_when_patience_ends(self) -> None:
        lines: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, lines.append)
        pool, go = self.pool(size=2, patience=0.05), threading.Event()
        self.addCleanup(go.set)
        pool.start()
        pool.run(go.wait)
        quick: Deferred[int] = pool.run(int, "7")
        pool.stop()
        self.assertFalse(quick.called)  # its answer comes with the next turn of the loop
        self.assertIn("calls that do not end are left", [line.get("log_format") for line in lines])
        self.assertTrue(all(each.daemon for each in threading.enumerate() if "of a test" in each.name))

    @inlineCallbacks
    def test_a_next_life_has_nothing_of_a_call_that_was_left(self) -> Generator[Any, Any, None]:
        pool, go = self.pool(size=1, patience=0.0), threading.Event()
        self.addCleanup(go.set)
        pool.start()
        left = pool.run(go.wait)
        pool.stop()
        pool.start()
        self.assertEqual((yield pool.run(int, "7")), 7)
        go.set()
        yield left
        self.assertEqual((yield pool.run(int, "8")), 8)
