"""The contract of executors, kept by those in memory and by real ones."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from indexify_dataplane.control.wire_values import write_payload
from indexify_dataplane.core import model
from indexify_dataplane.core.model import Allocation, Completed, ContainerSpec, Handle, Kind, Outcome, TerminationReason
from indexify_dataplane.perform.executors import StartupFailed
from indexify_dataplane.testing.memory_executors import ExecutorWorld, MemoryExecutors, Plan
from indexify_dataplane.wireproto import executor_api_pb2 as pb
from tests.contracts.executors import ExecutorsContract
from tests.executor.support import NEW, OLD, ExecutorTestCase

REQUEST = pb.FunctionCallRequest(updates=pb.ExecutionPlanUpdates(root_function_call_id="f1")).SerializeToString()
PLANS = {"returns": Plan(), "calls": Plan(calls=(REQUEST,), awaits=1), "hangs": Plan(seconds=1e9)}


class InMemory(ExecutorsContract, TestCase):
    def setUp(self) -> None:
        world = ExecutorWorld(plan=self.plan, startup_error=self.startup_error)
        self.executors = MemoryExecutors(clock=Clock(), world=world)
        self.number = 0

    def plan(self, allocation: Allocation) -> Plan:
        return PLANS[allocation.spec.container_id]

    def startup_error(self, spec: ContainerSpec) -> StartupFailed | None:
        if spec.id == "broken":
            return StartupFailed(TerminationReason.STARTUP_FAILED_FUNCTION_ERROR, "it does not load")
        return None

    async def begin(self, behaviour: str) -> tuple[ContainerSpec, Handle]:
        return ContainerSpec(id=behaviour, kind=Kind.FUNCTION), Handle(driver="memory", id=behaviour)

    async def make(self, spec: ContainerSpec) -> Allocation:
        self.number += 1
        function = model.FunctionRef("ns", "app", "fn", "v1")
        allocation = model.AllocationSpec(f"a{self.number}", spec.id, function, "call", "request")
        return Allocation(allocation, model.Preparing(0.0))

    async def busy(self, allocation: Allocation) -> None: ...

    async def child_result(self, call_id: str) -> bytes:
        return pb.FunctionCallResult(function_call_id=call_id).SerializeToString()

    async def gave_up(self, running: Deferred[Outcome]) -> None: ...


class Real(ExecutorsContract, ExecutorTestCase):
    release = OLD
    functions = {"returns": "misbehave", "calls": "call", "hangs": "misbehave", "broken": "broken_import"}
    arguments = {"returns": "fine", "calls": 1, "hangs": "sleep"}

    async def begin(self, behaviour: str) -> tuple[ContainerSpec, Handle]:
        self.behaviour = behaviour
        container = await self.launch(self.functions[behaviour])
        return container.spec, container.handle

    async def make(self, spec: ContainerSpec) -> Allocation:
        return self.make_allocation(spec.id, await self.argument(self.arguments[self.behaviour]))

    async def busy(self, allocation: Allocation) -> None:
        await self.containers[allocation.spec.container_id].process.says("begun")

    async def child_result(self, call_id: str) -> bytes:
        """As ``double`` returns it: a number with the SDK's metadata before it, taken from a real run."""
        child = await self.start("double")
        outcome = await self.invoke(child, 1)
        assert isinstance(outcome, Completed) and outcome.value is not None
        message = pb.FunctionCallResult(function_call_id=call_id, outcome_code=pb.ALLOCATION_OUTCOME_CODE_SUCCESS)
        write_payload(message.return_value, outcome.value)
        return message.SerializeToString()

    async def gave_up(self, running: Deferred[Outcome]) -> None:
        self.clock.advance(5)


class RealNew(Real):
    release = NEW


del ExecutorTestCase
