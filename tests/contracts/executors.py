"""What the node may rely on, whoever runs its functions: ``perform.executors.Executors`` kept by every implementation.

Mixed into a TestCase that provides the executors and what its world is made of.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred

from indexify_dataplane.core.model import Allocation, Completed, ContainerSpec, Failed, FailureReason, Handle, Outcome
from indexify_dataplane.perform.executors import Executors, StartupFailed
from indexify_dataplane.wireproto import executor_api_pb2 as pb


class ExecutorsContract:
    """``begin`` starts a container's process and gives its description; behaviours are named by function:
    ``returns`` returns, ``calls`` calls ``returns`` and waits for it, ``hangs`` does not end, ``broken`` does not load.
    """

    executors: Executors

    async def begin(self, behaviour: str) -> tuple[ContainerSpec, Handle]:
        raise NotImplementedError

    async def make(self, spec: ContainerSpec) -> Allocation:
        """An allocation with an argument that its function understands."""
        raise NotImplementedError

    async def busy(self, allocation: Allocation) -> None:
        """Wait until user code runs."""
        raise NotImplementedError

    async def child_result(self, call_id: str) -> bytes:
        """What the server sends when the call that ``calls`` made has ended."""
        raise NotImplementedError

    async def gave_up(self, running: Deferred[Outcome]) -> None:
        """Let the time pass that ending user code may take."""
        raise NotImplementedError

    async def ready(self, behaviour: str) -> tuple[ContainerSpec, Handle]:
        spec, handle = await self.begin(behaviour)
        await self.executors.initialize(spec, handle, lambda: False)
        return spec, handle

    async def test_contract_an_allocation_from_preparation_to_outcome(self: Any) -> None:
        spec, handle = await self.ready("returns")
        self.assertTrue(await self.executors.healthy(handle, 5.0))
        self.assertIn(spec.id, " ".join(self.executors.arguments(spec)))
        for _ in range(3):
            allocation = await self.make(spec)
            await self.executors.prepare(allocation)
            outcome = await self.executors.run(allocation, handle, 30_000, lambda request: None)
            self.assertIsInstance(outcome, Completed)
            self.assertEqual(await self.executors.finalize(allocation, outcome), outcome)
        await self.executors.release(spec.id)
        await self.executors.release(spec.id)

    async def test_contract_a_child_call(self: Any) -> None:
        spec, handle = await self.ready("calls")
        allocation = await self.make(spec)
        await self.executors.prepare(allocation)
        called: Deferred[bytes] = Deferred()
        running = Deferred.fromCoroutine(self.executors.run(allocation, handle, 30_000, called.callback))
        request = pb.FunctionCallRequest.FromString(await called)
        self.assertFalse(running.called)
        root = request.updates.root_function_call_id
        self.executors.deliver(allocation.id, await self.child_result(root))
        outcome = await running
        self.assertIsInstance(outcome, Completed)
        self.assertEqual(await self.executors.finalize(allocation, outcome), outcome)

    async def test_contract_a_cancelled_run_ends_soon(self: Any) -> None:
        spec, handle = await self.ready("hangs")
        allocation = await self.make(spec)
        await self.executors.prepare(allocation)
        running = Deferred.fromCoroutine(self.executors.run(allocation, handle, 30_000, lambda request: None))
        await self.busy(allocation)
        running.cancel()
        await self.gave_up(running)
        try:
            outcome = await running
        except CancelledError:
            outcome = Failed(FailureReason.ALLOCATION_CANCELLED)
        self.assertEqual(outcome.reason, FailureReason.ALLOCATION_CANCELLED)
        self.assertIsInstance(await self.executors.finalize(allocation, outcome), Failed)

    async def test_contract_what_never_ran_is_only_finalized(self: Any) -> None:
        spec, _ = await self.ready("returns")
        allocation = await self.make(spec)
        failed = Failed(FailureReason.CONTAINER_TERMINATED, blame_container=True)
        self.assertEqual(await self.executors.finalize(allocation, failed), failed)
        prepared = await self.make(spec)
        await self.executors.prepare(prepared)
        self.assertEqual(await self.executors.finalize(prepared, failed), failed)

    async def test_contract_a_function_that_does_not_load(self: Any) -> None:
        spec, handle = await self.begin("broken")
        with self.assertRaises(StartupFailed) as caught:
            await self.executors.initialize(spec, handle, lambda: False)
        self.assertTrue(caught.exception.reason.name.startswith("STARTUP_FAILED"))
        await self.executors.release(spec.id)

    async def test_contract_a_result_for_nobody_is_harmless(self: Any) -> None:
        self.executors.deliver("no such allocation", await self.child_result("x"))
