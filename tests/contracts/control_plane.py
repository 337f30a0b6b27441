"""What a control plane must do on its wire, over any way to call the three rpcs.

A suite gives ``call(rpc, request) -> Deferred`` and an engine on a clock behind it; refusals come as RpcError.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from indexify_dataplane.devserver.engine import Engine
from indexify_dataplane.devserver.errors import RpcError
from indexify_dataplane.wireproto import executor_api_pb2 as pb
from tests.devserver.peer import full_state, host, kinds, payload, started, terminated

ID = "executor-1"


class ControlPlaneContract:
    """Mix into a TestCase. Every test leaves no poll behind."""

    engine: Engine
    clock: Any

    def call(self, rpc: str, request: Any) -> Deferred[Any]:
        raise NotImplementedError

    async def refused(self, rpc: str, request: Any) -> tuple[str, str]:
        try:
            answer = await self.call(rpc, request)
        except RpcError as error:
            return error.code, error.message
        raise AssertionError(f"{rpc} was answered: {answer}")

    async def beat(self, *responses: Any, **fields: Any) -> Any:
        fields.setdefault("status", pb.EXECUTOR_STATUS_RUNNING)
        request = pb.HeartbeatRequest(executor_id=ID, command_responses=responses, **fields)
        return await self.call("heartbeat", request)

    async def register(self, *containers: Any) -> Any:
        return await self.beat(full_state=full_state(*containers))

    async def commands(self, acked: int | None = None) -> list[pb.Command]:
        request = pb.PollCommandsRequest(executor_id=ID, acked_command_seq=acked)
        return list((await self.call("poll_commands", request)).commands)

    async def held(self, rpc: str, request: Any) -> Deferred[Any]:
        """Send a poll; when this returns, it is held open."""
        arrival = self.engine.faults.arrival()
        poll = self.call(rpc, request)
        await arrival
        self.assertFalse(poll.called)  # type: ignore[attr-defined]
        return poll

    async def equal(self, first: Any, second: Any) -> None:
        self.assertEqual(first, second)  # type: ignore[attr-defined]

    # Registration

    async def check_heartbeat_needs_an_executor_id(self) -> None:
        found = await self.refused("heartbeat", pb.HeartbeatRequest())
        await self.equal(found, ("INVALID_ARGUMENT", "executor_id required"))

    async def check_polls_need_a_registration(self) -> None:
        for request in (pb.PollCommandsRequest(executor_id=ID), pb.PollAllocationResultsRequest(executor_id=ID)):
            rpc = "poll_commands" if isinstance(request, pb.PollCommandsRequest) else "poll_allocation_results"
            found = await self.refused(rpc, request)
            await self.equal(found, ("NOT_FOUND", "executor not registered"))

    async def check_unknown_executor_is_asked_for_its_state_and_its_items_are_dropped(self) -> None:
        """4.4, 1: the first heartbeat without state, the second with it, and the same items again."""
        sandbox = self.engine.sandboxes.create("default", {})
        first = await self.beat(started(sandbox.id))
        await self.equal((first.send_state, sandbox.status), (True, "pending"))
        second = await self.register()
        await self.equal(second.send_state, False)
        await self.equal(kinds(await self.commands()), ["add_container"])
        await self.beat(started(sandbox.id))
        await self.equal(sandbox.status, "running")

    async def check_full_state_is_taken_unasked(self) -> None:
        answer = await self.register()
        await self.equal((answer.send_state, self.engine.fleet.known(ID) is not None), (False, True))

    async def check_unusable_resources_register_nothing(self) -> None:
        unusable = [
            pb.HostResources(memory_bytes=1, disk_bytes=1),
            pb.HostResources(cpu_count=1, disk_bytes=1),
            pb.HostResources(cpu_count=1, memory_bytes=1),
            pb.HostResources(cpu_count=1, memory_bytes=1, disk_bytes=1, gpu=pb.GPUResources(count=0, model=3)),
            pb.HostResources(cpu_count=1, memory_bytes=1, disk_bytes=1, gpu=pb.GPUResources(count=1, model=0)),
        ]
        for resources in unusable:
            state = full_state(resources=host())
            state.total_container_resources.CopyFrom(resources)
            code, _ = await self.refused("heartbeat", pb.HeartbeatRequest(executor_id=ID, full_state=state))
            await self.equal((code, self.engine.fleet.known(ID)), ("INTERNAL", None))
        state = pb.DataplaneStateFullSync()
        answer = await self.call("heartbeat", pb.HeartbeatRequest(executor_id=ID, full_state=state))
        await self.equal(answer.send_state, False)

    # Polls

    async def check_commands_are_numbered_from_one_and_kept_until_acknowledged(self) -> None:
        await self.register()
        first, second = (self.engine.sandboxes.create("default", {}) for _ in range(2))
        await self.equal([c.seq for c in await self.commands()], [1, 2])
        await self.equal([c.seq for c in await self.commands()], [1, 2])
        left = await self.commands(acked=1)
        await self.equal([(c.seq, c.add_container.container.id) for c in left], [(2, second.id)])
        self.assertNotEqual(first.id, second.id)  # type: ignore[attr-defined]

    async def check_a_poll_is_held_until_a_command_comes(self) -> None:
        await self.register()
        poll = await self.held("poll_commands", pb.PollCommandsRequest(executor_id=ID))
        sandbox = self.engine.sandboxes.create("default", {})
        commands = (await poll).commands
        await self.equal([c.add_container.container.id for c in commands], [sandbox.id])

    async def check_a_held_poll_ends_empty_after_its_time(self) -> None:
        await self.register()
        poll = await self.held("poll_commands", pb.PollCommandsRequest(executor_id=ID))
        results = await self.held("poll_allocation_results", pb.PollAllocationResultsRequest(executor_id=ID))
        for _ in range(15):
            self.clock.advance(20)
            await self.beat()
        await self.equal(list((await poll).commands), [])
        await self.equal(list((await results).results), [])

    async def check_deregistration_ends_held_polls_empty_and_later_ones_fail(self) -> None:
        """4.4, 7: STOPPED deregisters at once."""
        await self.register()
        poll = await self.held("poll_commands", pb.PollCommandsRequest(executor_id=ID))
        answer = await self.beat(status=pb.EXECUTOR_STATUS_STOPPED)
        await self.equal(answer.send_state, False)
        await self.equal(list((await poll).commands), [])
        code, _ = await self.refused("poll_commands", pb.PollCommandsRequest(executor_id=ID))
        await self.equal(code, "NOT_FOUND")

    async def check_a_lower_acknowledgement_asks_for_state_once(self) -> None:
        await self.register()
        self.engine.sandboxes.create("default", {})
        self.engine.sandboxes.create("default", {})
        await self.commands(acked=1)
        await self.commands()
        await self.equal((await self.beat()).send_state, True)
        await self.equal((await self.beat()).send_state, False)

    async def check_redelivery_gap_and_malformed_commands_reach_the_executor(self) -> None:
        """4.4, 4: the faults that an executor is tried with arrive as they were ordered."""
        await self.register()
        sandbox = self.engine.sandboxes.create("default", {})
        again = pb.Command(remove_container=pb.RemoveContainer(container_id=sandbox.id))
        self.engine.send_command(ID, again, seq=1)
        self.engine.skip_seq(ID)
        self.engine.send_command(ID, pb.Command())
        commands = await self.commands()
        await self.equal([c.seq for c in commands], [1, 1, 3])
        await self.equal(kinds(commands), ["add_container", "remove_container", ""])

    async def check_results_have_their_own_numbers(self) -> None:
        await self.register()
        self.engine.send_result(ID, pb.AllocationLogEntry(allocation_id="a"))
        self.engine.send_result(ID, None)
        request = pb.PollAllocationResultsRequest(executor_id=ID)
        results = (await self.call("poll_allocation_results", request)).results
        await self.equal([(r.seq, r.HasField("entry")) for r in results], [(1, True), (2, False)])
        request.acked_result_seq = 1
        await self.equal([r.seq for r in (await self.call("poll_allocation_results", request)).results], [2])

    async def check_a_response_carries_at_most_8_mib_but_one_item_always(self) -> None:
        await self.register()
        for size in (9, 5, 5):
            entry = pb.AllocationLogEntry(allocation_id="x" * (size << 20))
            self.engine.send_result(ID, entry)
        request = pb.PollAllocationResultsRequest(executor_id=ID)
        taken = []
        while len(taken) < 3:
            results = (await self.call("poll_allocation_results", request)).results
            await self.equal(len(results), 1)
            taken.append(results[0].seq)
            request.acked_result_seq = results[0].seq
        await self.equal(taken, [1, 2, 3])

    # Heartbeats under faults

    async def check_items_of_a_lost_reply_are_accepted_again_without_effect(self) -> None:
        """4.4, 2: the reply is lost after the items were applied."""
        await self.register()
        sandbox = self.engine.sandboxes.create("default", {})
        self.engine.faults.drop_reply("heartbeat")
        request = pb.HeartbeatRequest(
            executor_id=ID, command_responses=[started(sandbox.id), terminated(sandbox.id, "OOM")]
        )
        code, _ = await self.refused("heartbeat", request)
        await self.equal((code, sandbox.outcome), ("UNAVAILABLE", "Failure(ContainerTerminated(Oom))"))
        await self.equal((await self.call("heartbeat", request)).send_state, False)
        await self.equal(sandbox.outcome, "Failure(ContainerTerminated(Oom))")

    async def check_one_bad_item_fails_the_heartbeat_and_the_others_are_applied(self) -> None:
        """4.4, 8."""
        await self.register()
        sandbox = self.engine.sandboxes.create("default", {})
        bad = payload()
        bad.ClearField("uri")
        function = pb.FunctionRef(namespace="n", application_name="a", function_name="f")
        reference = {"allocation_id": "x", "function": function, "function_call_id": "c", "request_id": "r"}
        outcome = pb.AllocationOutcome(completed=pb.AllocationCompleted(value=bad, **reference))
        request = pb.HeartbeatRequest(
            executor_id=ID, allocation_outcomes=[outcome, outcome], command_responses=[started(sandbox.id)]
        )
        found = await self.refused("heartbeat", request)
        await self.equal(found, ("INTERNAL", "heartbeat ingestion failed for 2 report item(s)"))
        await self.equal(sandbox.status, "running")

    async def check_calls_fail_as_ordered_and_then_work(self) -> None:
        """4.4, 6: a server that is away."""
        self.engine.faults.fail_next("heartbeat", 2, "UNAVAILABLE", "away")
        for _ in range(2):
            found = await self.refused("heartbeat", pb.HeartbeatRequest(executor_id=ID))
            await self.equal(found, ("UNAVAILABLE", "away"))
        await self.equal((await self.beat()).send_state, True)

    async def check_a_reply_can_be_late(self) -> None:
        self.engine.faults.delay_reply("heartbeat", 7.0)
        arrival = self.engine.faults.arrival()
        answer = self.call("heartbeat", pb.HeartbeatRequest(executor_id=ID, full_state=full_state()))
        await arrival
        await self.equal(self.engine.fleet.known(ID) is not None, True)
        self.clock.advance(6.9)
        await self.equal(answer.called, False)
        self.clock.advance(0.2)
        await self.equal((await answer).send_state, False)

    async def check_large_heartbeats_are_taken(self) -> None:
        """4.4, 3: fragments of 10 MiB, and anything up to the message limit."""
        await self.register()
        items = [terminated("x" * (1 << 20), "OOM") for _ in range(25)]
        await self.equal((await self.beat(*items)).send_state, False)

    # Restarts

    async def check_after_a_restart_the_state_is_wanted_and_numbers_begin_again(self) -> None:
        """4.4, 5."""
        await self.register()
        sandbox = self.engine.sandboxes.create("default", {})
        commands = await self.commands()
        await self.beat(started(sandbox.id))
        poll = await self.held("poll_commands", pb.PollCommandsRequest(executor_id=ID, acked_command_seq=9))
        self.engine.restart(durable=True)
        try:
            await poll
        except RpcError as error:
            await self.equal(error.code, "UNAVAILABLE")
        await self.equal((await self.beat()).send_state, True)
        running = pb.ContainerState(description=commands[0].add_container.container, status=pb.CONTAINER_STATUS_RUNNING)
        await self.register(running)
        await self.equal((sandbox.status, sandbox.executor_id), ("running", ID))
        self.engine.sandboxes.delete("default", sandbox.id)
        await self.equal([(c.seq, c.WhichOneof("command")) for c in await self.commands()], [(1, "remove_container")])

    async def check_a_resync_repeats_the_desired_state(self) -> None:
        await self.register()
        sandbox = self.engine.sandboxes.create("default", {})
        [command] = await self.commands()
        await self.beat(started(sandbox.id))
        self.engine.force_full_state(ID)
        await self.equal((await self.beat()).send_state, True)
        running = pb.ContainerState(description=command.add_container.container, status=pb.CONTAINER_STATUS_RUNNING)
        await self.register(running)
        repeated = await self.commands()
        await self.equal([(c.seq, c.add_container.container.id) for c in repeated], [(1, sandbox.id)])


def contract(cls: type) -> type:
    """Make every ``check_`` of the suite a ``test_`` of ``cls``."""
    for name in dir(cls):
        if name.startswith("check_"):

            def test(self: Any, name: str = name) -> Deferred[None]:
                return Deferred.fromCoroutine(getattr(self, name)())

            test.__doc__ = getattr(cls, name).__doc__
            setattr(cls, f"test_{name.removeprefix('check_')}", test)
    return cls
