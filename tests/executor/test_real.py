"""Real executors of both protocols: what users' code does, and the outcome that the server is told."""

from __future__ import annotations

import functools
from pathlib import Path

from twisted.internet.defer import Deferred

from indexify_dataplane.core.model import Completed, Failed, FailureReason, TerminationReason
from indexify_dataplane.perform.executors import StartupFailed
from tests.executor.support import NEW, OLD, ExecutorTestCase

Reason = FailureReason


class RealExecutor:
    """Every promise holds with every release."""

    def has_time(self, allocation_id: str, until: float) -> bool:
        run = self.run_of(allocation_id)
        return run is not None and run.deadline._at > until

    async def test_value(self) -> None:
        container = await self.start("greet")
        outcome = await self.invoke(container, "World")
        self.assertEqual(await self.value(outcome), "hello World")
        self.assertIsInstance(outcome.duration_ms, int)
        self.assertTrue(outcome.value.uri.startswith(f"{self.base}/ns/app/request-1.a1.output_"))
        self.assertEqual(self.left_over(), [])
        self.assertTrue(await self.executors.healthy(container.handle, 5.0))

    async def test_what_goes_wrong_in_users_code(self) -> None:
        container = await self.start("misbehave")
        self.assertEqual((await self.invoke(container, "raise")).reason, Reason.FUNCTION_ERROR)
        outcome = await self.invoke(container, "request error")
        self.assertEqual(outcome.reason, Reason.REQUEST_ERROR)
        self.assertEqual(await self.bytes_of(outcome.request_error), b"not like this")
        self.assertTrue(outcome.request_error.uri.endswith(".a2.req_error"))
        self.assertEqual(await self.value(await self.invoke(container, "fine")), "fine")
        self.assertEqual(self.left_over(), [])

    async def test_a_process_that_ends_is_to_blame(self) -> None:
        container = await self.start("misbehave")
        outcome = await self.invoke(container, "exit")
        self.assertEqual((outcome.reason, outcome.blame_container), (Reason.FUNCTION_ERROR, True))
        await container.process.ended
        self.assertEqual(self.left_over(), [])

    async def test_a_function_that_cannot_be_loaded(self) -> None:
        expected = {
            "broken_import": TerminationReason.STARTUP_FAILED_FUNCTION_ERROR,
            "no_such_function": TerminationReason.STARTUP_FAILED_FUNCTION_ERROR,
            "exits": TerminationReason.STARTUP_FAILED_INTERNAL_ERROR,
        }
        for function, reason in expected.items():
            with self.assertRaises(StartupFailed) as caught:
                await self.start(function)
            self.assertEqual(caught.exception.reason, reason, str(caught.exception))

    async def test_a_function_that_takes_too_long_to_load(self) -> None:
        with self.assertRaises(StartupFailed) as caught:
            await self.start("slow_import", initialization_timeout_ms=300)
        self.assertEqual(caught.exception.reason, TerminationReason.STARTUP_FAILED_FUNCTION_TIMEOUT)
        self.assertIn("0.3 s", str(caught.exception))

    async def test_a_run_that_takes_too_long_costs_the_container(self) -> None:
        container = await self.start("misbehave")
        running = Deferred.fromCoroutine(self.invoke(container, "sleep"))
        await container.process.says("begun")
        self.clock.advance(21)
        outcome = await running
        self.assertEqual((outcome.reason, outcome.blame_container), (Reason.FUNCTION_TIMEOUT, True))
        self.assertEqual(self.left_over(), [])

    async def test_progress_gives_more_time(self) -> None:
        container = await self.start("report_progress")
        running = Deferred.fromCoroutine(self.invoke(container, 3, timeout_ms=100_000))
        for step in range(3):
            await self.until(functools.partial(self.has_time, "a1", self.clock.seconds() + 60))
            self.clock.advance(60)
            Path(self.folder, f"go-{step}").touch()
        self.assertEqual(await self.value(await running), 3)

    async def test_cancellation_of_busy_code_costs_the_container(self) -> None:
        container = await self.start("misbehave")
        allocation = self.make_allocation(container.spec.id, await self.argument("stubborn"))
        running = Deferred.fromCoroutine(self.perform(container, allocation))
        await container.process.says("begun")
        running.cancel()
        self.clock.advance(5)
        outcome = await running
        self.assertEqual((outcome.reason, outcome.blame_container), (Reason.ALLOCATION_CANCELLED, True))

    async def test_cancellation_of_waiting_code_ends_it_and_keeps_the_container(self) -> None:
        container = await self.start("call")
        self.hold_children = True
        allocation = self.make_allocation(container.spec.id, await self.argument(1))
        requested = self.request()
        running = Deferred.fromCoroutine(self.perform(container, allocation))
        await requested
        running.cancel()
        outcome = await running
        self.assertEqual((outcome.reason, outcome.blame_container), (Reason.ALLOCATION_CANCELLED, False))
        self.hold_children = False
        await self.start("double")
        self.assertEqual(await self.value(await self.invoke(container, 4)), 9)

    async def test_time_spent_waiting_for_a_child_does_not_count(self) -> None:
        container = await self.start("call")
        await self.start("double")
        self.hold_children = True
        allocation = self.make_allocation(container.spec.id, await self.argument(1))
        requested = self.request()
        running = Deferred.fromCoroutine(self.perform(container, allocation, timeout_ms=30_000))
        request = await requested
        await self.until(lambda: self.run_of("a1")._children.open())
        self.clock.advance(3600)
        self.assertFalse(running.called)
        for update in request.updates.updates:
            await self.run_call(update.function_call)
        self.assertEqual(await self.value(await running), 3)

    async def test_time_counts_again_after_a_child(self) -> None:
        container = await self.start("call_and_sleep")
        await self.start("double")
        allocation = self.make_allocation(container.spec.id, await self.argument(1))
        said = container.process.says("called")
        running = Deferred.fromCoroutine(self.perform(container, allocation, timeout_ms=30_000))
        await said
        self.clock.advance(31)
        outcome = await running
        self.assertEqual((outcome.reason, outcome.blame_container), (Reason.FUNCTION_TIMEOUT, True))
        self.assertEqual(self.left_over(), [])

    async def test_a_killed_process_is_to_blame(self) -> None:
        container = await self.start("misbehave")
        running = Deferred.fromCoroutine(self.invoke(container, "sleep"))
        await container.process.says("begun")
        container.process.transport.signalProcess("KILL")
        outcome = await running
        self.assertEqual((outcome.reason, outcome.blame_container), (Reason.FUNCTION_ERROR, True))
        self.assertEqual(self.left_over(), [])

    async def test_a_result_that_comes_before_anyone_waits_is_kept(self) -> None:
        container = await self.start("call")
        await self.start("double")
        self.assertEqual(await self.value(await self.invoke(container, 20)), 41)
        (request,) = self.requests
        self.assertEqual(request.source_function_call_id, "call-1")
        self.assertEqual((request.namespace, request.application, request.request_id), ("ns", "app", "request-1"))
        self.assertEqual(self.left_over(), [])

    async def test_fan_out(self) -> None:
        container = await self.start("fan_out", max_concurrency=4)
        await self.start("double", max_concurrency=4)
        self.assertEqual(await self.value(await self.invoke(container, 50)), 2450)
        calls = [update.function_call.id for request in self.requests for update in request.updates.updates]
        self.assertEqual(len(calls), len(set(calls)))
        self.assertEqual(self.left_over(), [])

    async def test_tail_call(self) -> None:
        container = await self.start("tail")
        await self.start("double")
        outcome = await self.invoke(container, 21)
        self.assertIsInstance(outcome, Completed)
        self.assertIsNone(outcome.value)
        self.assertEqual(await self.value(outcome), 42)

    async def test_a_failing_child_fails_in_its_caller(self) -> None:
        container = await self.start("catch")
        await self.start("fail")
        self.assertEqual(await self.value(await self.invoke(container, -3)), "request error: -3 is negative")
        self.assertEqual(await self.value(await self.invoke(container, 3)), "FunctionError")

    async def test_a_wait_with_a_limit_ends_at_it(self) -> None:
        container = await self.start("wait_briefly")
        self.hold_children = True
        self.assertIn("Timeout", await self.value(await self.invoke(container, 1)))

    async def test_request_state(self) -> None:
        container = await self.start("remember")
        self.assertEqual(await self.value(await self.invoke(container, "one")), ["nothing", "oneone" + "one", "one"])
        self.assertEqual((await self.value(await self.invoke(container, "two")))[0], "one")
        self.assertEqual(self.left_over(), [])

    async def test_request_state_whose_store_is_down(self) -> None:
        container = await self.start("try_state")
        self.assertEqual(await self.value(await self.invoke(container, "get")), "nothing")
        for operation, how in (("size", "get"), ("create_upload", "set"), ("complete_upload", "set")):
            with self.store_down(operation, "/state/"):
                self.assertIn("Error", str(await self.value(await self.invoke(container, how))), operation)
        self.assertEqual(await self.value(await self.invoke(container, "get")), "nothing")
        self.assertEqual(await self.value(await self.invoke(container, "kept")), "None")
        self.assertEqual(await self.value(await self.invoke(container, "get")), "kept")
        self.assertEqual(self.left_over(), [])

    async def test_a_hundred_megabytes_go_both_ways(self) -> None:
        grow = await self.start("grow")
        outcome = await self.invoke(grow, 101)
        self.assertIsInstance(outcome, Completed)
        self.assertGreater(outcome.value.size, 101 * 1024 * 1024)
        data = await self.bytes_of(outcome.value)
        self.assertGreater(len(data), 101 * 1024 * 1024)
        del data
        caller = await self.start("measure_grown")
        await self.start("measure")
        self.assertEqual(await self.value(await self.invoke(caller, 101)), 101 * 1024 * 1024)
        self.assertEqual(self.left_over(), [])

    async def test_an_executor_of_an_earlier_node_is_taken_over_if_it_is_idle(self) -> None:
        container = await self.start("misbehave")
        await self.executors.release(container.spec.id)
        await self.executors.initialize(container.spec, container.handle, lambda: False)
        self.assertEqual(await self.value(await self.invoke(container, "fine")), "fine")
        allocation = self.make_allocation(container.spec.id, await self.argument("sleep"))
        running = Deferred.fromCoroutine(self.perform(container, allocation))
        await container.process.says("begun", times=2)  # The first call said it as well.
        with self.assertRaises(StartupFailed) as caught:
            await self.executors.initialize(container.spec, container.handle, lambda: False)
        self.assertIn("allocations of an earlier node", str(caught.exception))
        container.process.transport.signalProcess("KILL")
        self.assertIsInstance(await running, Failed)


class StateProtocol(RealExecutor, ExecutorTestCase):
    release = OLD


class EventLog(RealExecutor, ExecutorTestCase):
    release = NEW
