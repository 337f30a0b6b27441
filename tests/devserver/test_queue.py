"""Runs that are handed to containers ahead of a free slot."""

from __future__ import annotations

from typing import Any

from twisted.logger import LogLevel, capturedLogs

from indexify_dataplane.devserver.crowding import is_awaited, is_stuck
from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .peer import Peer, completed, failed, failure, host, make_engine, payload, started, state, terminated
from .test_functions import FunctionCase, call, plan


class QueueCase(FunctionCase):
    """Containers run as soon as they are ordered, unless they are ``slow``, and end so."""

    slow = False

    def setUp(self) -> None:
        super().setUp()
        self.begin(queue_size=2)

    def begin(self, cpus: int = 8, **settings: Any) -> None:
        self.engine.close()
        self.engine, self.clock = make_engine(idle_container_secs=60, **settings)
        self.peer = Peer(self.engine)
        self.peer.register(resources=host(cpus=cpus))

    def allocations(self) -> list[pb.Allocation]:
        found = []
        while commands := self.peer.take():
            found += [c.run_allocation.allocation for c in commands if c.HasField("run_allocation")]
            added = [c.add_container.container.id for c in commands if c.HasField("add_container")]
            removed = [c.remove_container.container_id for c in commands if c.HasField("remove_container")]
            self.peer.beat(
                *(terminated(each, "FUNCTION_CANCELLED") for each in removed),
                *(started(each) for each in added if not self.slow),
            )
        return found

    def invoked(self, count: int) -> list[str]:
        return [self.invoke().id for _ in range(count)]


class HandedAheadTests(QueueCase):
    def test_without_the_setting_a_container_has_a_run_per_slot(self) -> None:
        self.begin()
        self.deploy(max_containers=1, max_concurrency=2)
        self.invoked(5)
        self.assertEqual(len(self.allocations()), 2)

    def test_a_container_has_its_next_runs_at_hand_in_their_order(self) -> None:
        for size, slots in ((2, 1), (3, 1), (2, 2), (3, 2)):
            self.begin(queue_size=size)
            self.deploy(max_containers=1, max_concurrency=slots)
            requests = self.invoked(9)
            outstanding = self.allocations()
            handed = [each.request_id for each in outstanding]
            self.assertEqual(len(outstanding), size * slots)
            while outstanding:
                self.finish(completed(outstanding.pop(0), value=payload()))
                new = self.allocations()
                self.assertEqual(len(new), min(1, len(requests) - len(handed)))
                outstanding += new
                handed += [each.request_id for each in new]
            self.assertEqual(handed, requests)
            self.assertEqual({each.outcome for each in self.engine.world.requests.values()}, {"success"})

    def test_a_new_container_comes_first(self) -> None:
        self.deploy(max_containers=2)
        first, second, third = (self.invoke() and self.one() for _ in range(3))
        self.assertNotEqual(first.container_id, second.container_id)
        self.assertEqual(third.container_id, first.container_id)

    def test_where_there_is_no_room_for_one_it_is_handed_ahead(self) -> None:
        self.begin(cpus=2, queue_size=2)
        self.deploy()
        self.invoked(6)
        self.assertEqual(sorted(self.outstanding().values()), [2, 2])

    def test_a_free_slot_comes_first(self) -> None:
        self.deploy(max_containers=2)
        self.invoked(2)
        first, second = self.allocations()
        self.finish(completed(second, value=payload()))
        self.invoke()
        self.assertEqual(self.one().container_id, second.container_id)
        self.assertEqual(self.outstanding()[first.container_id], 1)

    def test_the_least_loaded_container_is_next(self) -> None:
        self.begin(queue_size=3)
        self.deploy(max_containers=2)
        self.invoked(4)
        first, second, *_ = self.allocations()
        self.assertEqual(self.outstanding(), {first.container_id: 2, second.container_id: 2})
        self.finish(completed(second, value=payload()))
        self.invoke()
        self.assertEqual(self.one().container_id, second.container_id)

    def test_one_that_is_yet_to_start_gets_no_more_than_it_has_slots(self) -> None:
        self.slow = True
        self.deploy(max_containers=1)
        self.invoked(3)
        first = self.one()
        self.peer.beat(started(first.container_id))
        self.assertEqual(self.one().container_id, first.container_id)

    def test_an_emptied_container_is_idle(self) -> None:
        self.deploy(max_containers=1)
        self.invoked(2)
        first, second = self.allocations()
        for allocation in (first, second):
            self.clock.advance(20)
            self.peer.beat()
            self.finish(completed(allocation, value=payload()))
        [container] = self.engine.world.containers.values()
        for _ in range(5):
            self.clock.advance(11)
            self.peer.beat()
        self.assertTrue(container.lives)
        self.clock.advance(6)
        self.assertFalse(container.lives)

    def outstanding(self) -> dict[str, int]:
        self.allocations()
        return {each.id: len(each.allocations) for each in self.engine.world.containers.values()}


class AwaitedTests(QueueCase):
    """What may not be handed ahead, and where nothing may."""

    def test_a_call_that_somebody_waits_for_gets_a_slot_of_its_own(self) -> None:
        self.engine.applications.deploy("default", _calls("main", "wide", max_containers=1), b"PK code")
        self.invoke()
        main = self.one()
        self.log(main, plan("c1", call("c1", "wide"), call("c2", "wide")))
        first = self.one()
        self.assertEqual(first.function_call_id, "c1")
        self.finish(completed(first, value=payload()))
        self.assertEqual(self.one().function_call_id, "c2")

    def test_a_caller_that_was_called_off_waits_for_nothing(self) -> None:
        self.engine.applications.deploy("default", _calls("main", "wide", max_containers=1), b"PK code")
        self.invoke()
        main = self.one()
        self.log(main, plan("c1", call("c1", "wide")))
        self.one()
        container = self.engine.world.containers[main.container_id]
        self.assertTrue(is_stuck(container))
        self.engine.applications.delete_request("default", "app", main.request_id)
        self.assertIn(main.allocation_id, container.allocations)
        self.assertFalse(is_stuck(container))

    def test_a_call_whose_caller_is_tried_again_is_not_handed_ahead(self) -> None:
        self.engine.applications.deploy("default", _calls("main", "wide", max_containers=1), b"PK code")
        self.invoked(3)
        main, behind = self.allocations()
        self.log(main, plan("c1", call("c1", "wide"), call("c2", "wide")))
        self.assertEqual(self.one().function_call_id, "c1")
        # The third request takes the place of the first, whose run now waits in line: nobody that runs awaits c2.
        self.finish(failed(main, "CONTAINER_TERMINATED"))
        request = self.engine.world.requests[("default", "app", main.request_id)]
        self.assertFalse(is_awaited(request.runs["c2"]))
        self.assertEqual([each.function.function_name for each in self.allocations()], ["main"])
        self.finish(completed(behind, value=payload()))
        again = self.one()
        self.assertEqual((again.request_id, is_awaited(request.runs["c2"])), (main.request_id, True))

    def test_a_tail_call_may_be_handed_ahead(self) -> None:
        self.engine.applications.deploy("default", _calls("main", "tail", max_containers=1), b"PK code")
        for number in range(2):
            self.invoke()
            self.finish(completed(self.one(), updates=plan(f"t{number}", call(f"t{number}", "tail"))))
            self.assertEqual(self.one().function_call_id, f"t{number}")

    def test_nothing_goes_behind_callers_that_wait(self) -> None:
        self.engine.applications.deploy("default", _calls("main", "child", max_containers=1), b"PK code")
        self.invoke()
        caller = self.one()
        self.log(caller, plan("c1", call("c1", "child")))
        child = self.one()
        self.invoke()
        self.assertEqual(self.allocations(), [])
        self.finish(completed(child, value=payload()))
        self.assertEqual(self.one().container_id, caller.container_id)

    def test_one_slot_that_gets_free_is_enough(self) -> None:
        self.deploy("main", "child", max_containers=1, max_concurrency=2)
        self.invoked(2)
        caller, other = self.allocations()
        self.log(caller, plan("c1", call("c1", "child")))
        self.one()
        self.invoke()
        self.assertEqual(self.one().container_id, other.container_id)

    def test_what_waits_behind_callers_frees_no_slot(self) -> None:
        self.deploy("f", max_containers=1)
        self.invoked(2)
        caller, behind = self.allocations()
        self.log(caller, plan("c1", call("c1", "f")))
        called = self.one()
        self.assertNotEqual(called.container_id, caller.container_id)
        self.finish(completed(called, value=payload()), completed(caller, value=payload()))
        self.finish(completed(behind, value=payload()))
        self.assertEqual({each.outcome for each in self.engine.world.requests.values()}, {"success"})

    def test_of_some_callers_the_free_slot_is_waited_for(self) -> None:
        self.deploy("f", max_containers=1, max_concurrency=2)
        self.invoked(3)
        caller, other, behind = self.allocations()
        self.log(caller, plan("c1", call("c1", "f")))
        self.assertEqual(self.allocations(), [])
        self.finish(completed(other, value=payload()), completed(behind, value=payload()))
        self.assertEqual(self.one().container_id, caller.container_id)

    def test_nothing_is_handed_ahead_of_an_awaited_call(self) -> None:
        self.deploy("f", max_containers=2)
        self.invoked(4)
        first, second, _, behind_second = self.allocations()
        self.log(first, plan("c1", call("c1", "f")))
        self.invoked(2)
        self.finish(completed(second, value=payload()))
        self.assertEqual(self.allocations(), [])
        self.finish(completed(behind_second, value=payload()))
        called, entry = self.allocations()
        self.assertEqual((called.function_call_id, called.container_id), ("c1", second.container_id))
        self.assertEqual(entry.container_id, second.container_id)

    def test_nothing_is_handed_ahead_beyond_the_limit(self) -> None:
        self.deploy("f", max_containers=1)
        self.invoke()
        caller = self.one()
        self.log(caller, plan("c1", call("c1", "f")))
        called = self.one()
        self.assertNotEqual(called.container_id, caller.container_id)
        self.invoke()
        self.assertEqual(self.allocations(), [])

    def test_nothing_is_handed_ahead_beyond_the_room(self) -> None:
        self.begin(cpus=1, queue_size=2)
        self.deploy("f")
        self.invoke()
        caller = self.one()
        self.log(caller, plan("c1", call("c1", "f")))
        called = self.one()
        self.assertNotEqual(called.container_id, caller.container_id)
        self.invoke()
        self.assertEqual(self.allocations(), [])
        # The one beyond the room is idle now and is kept for awaited calls: the other has the room.
        self.finish(completed(called, value=payload()))
        self.assertEqual(self.one().container_id, caller.container_id)

    def test_callers_that_hold_gpus_are_told_of_whatever_waits_behind_them(self) -> None:
        machine = host(cpus=8)
        machine.gpu.count, machine.gpu.model = 1, pb.GPU_MODEL_NVIDIA_TESLA_T4
        self.peer.register(resources=machine)
        self.deploy("f", resources={"cpus": 0.1, "memory_mb": 64, "gpus": [{"count": 1, "model": "T4"}]})
        self.invoked(2)
        caller, behind = self.allocations()
        self.assertEqual(behind.container_id, caller.container_id)
        with capturedLogs() as lines:
            self.log(caller, plan("c1", call("c1", "f")))
        [told] = [line for line in lines if line["log_level"] is LogLevel.warn]
        self.assertEqual((told["function_call_id"], told["held_by"]), ("c1", f"f in {caller.container_id}"))


class OtherFunctionsTests(QueueCase):
    def test_a_function_without_a_container_gets_its_turn(self) -> None:
        """On a machine that has room for one container, whose clients always have two runs under way."""
        self.begin(cpus=1, queue_size=2)
        self.deploy("f")
        self.engine.applications.deploy("default", {**_calls("g", "g"), "name": "other"}, b"PK code")
        self.invoked(2)
        outstanding = self.allocations()
        self.assertEqual(len(outstanding), 2)
        other = self.engine.applications.invoke("default", "other", b"[1]", "application/json")
        for _ in range(6):
            if other.outcome is not None:
                break
            self.finish(completed(outstanding.pop(0), value=payload()))
            self.invoke()
            outstanding += self.allocations()
        self.assertEqual(other.outcome, "success")


class EndTests(QueueCase):
    """What becomes of runs that wait in a container when it, its node or their request ends."""

    def setUp(self) -> None:
        super().setUp()
        self.deploy("f", max_containers=1, retry_policy={"max_retries": 0})
        self.began, self.queued = self.invoke(), self.invoke()
        self.first, self.second = self.allocations()

    def is_retried(self) -> None:
        [again] = self.allocations()
        self.assertEqual(again.request_id, self.queued.id)
        self.assertNotEqual(again.container_id, self.first.container_id)
        self.assertEqual(self.queued.runs[self.queued.id].counted_failures, 0)
        self.finish(completed(again, value=payload()))
        self.assertEqual(self.queued.outcome, "success")

    def test_the_end_of_its_container_is_no_failure_of_a_run_that_waited(self) -> None:
        dead = self.first.container_id
        self.peer.beat(
            terminated(dead, "OOM"),
            allocation_outcomes=[
                failed(self.first, "OOM"),
                failed(self.second, "CONTAINER_TERMINATED", container_id=dead),
            ],
        )
        self.assertEqual((self.began.outcome, self.began.failure_reason), ("failure", failure("OOM")))
        self.is_retried()

    def test_nor_when_the_end_is_told_by_a_full_sync(self) -> None:
        container = self.engine.world.containers[self.first.container_id]
        for reason, wanted in (("OOM", "OOM"), ("FUNCTION_CANCELLED", "ALLOCATION_CANCELLED")):
            self.setUp()
            container = self.engine.world.containers[self.first.container_id]
            self.peer.register(state(container.description, "terminated", reason), resources=host(cpus=8))
            self.assertEqual((self.began.outcome, self.began.failure_reason), ("failure", failure(wanted)))
            self.is_retried()

    def test_nor_the_end_of_its_node(self) -> None:
        self.peer.stop()
        self.peer.register(resources=host(cpus=8))
        again = self.allocations()
        self.assertEqual([each.request_id for each in again], [self.began.id, self.queued.id])
        self.finish(*(completed(each, value=payload()) for each in again))
        self.assertEqual((self.began.outcome, self.queued.outcome), ("success", "success"))

    def test_a_resync_repeats_those_that_wait_as_well(self) -> None:
        container = self.engine.world.containers[self.first.container_id]
        self.peer.register(state(container.description, "running"), resources=host(cpus=8))
        again = [each.allocation_id for each in self.allocations()]
        self.assertEqual(again, [self.first.allocation_id, self.second.allocation_id])

    def test_a_container_that_is_yet_to_be_adopted_gets_nothing_ahead(self) -> None:
        """If its executor does not answer, all runs that were handed to it have failed to start."""
        self.slow = True
        self.finish(completed(self.second, value=payload()))
        container = self.engine.world.containers[self.first.container_id]
        self.peer.register(state(container.description, "pending"), resources=host(cpus=8))
        self.assertEqual([each.allocation_id for each in self.allocations()], [self.first.allocation_id])
        late = self.invoke()
        self.assertEqual(self.allocations(), [])
        self.peer.beat(started(container.id))
        self.assertEqual(self.one().request_id, late.id)

    def test_as_many_as_it_has_slots_had_begun(self) -> None:
        self.begin(queue_size=2)
        self.deploy("f", max_containers=1, max_concurrency=2, retry_policy={"max_retries": 0})
        requests = [self.invoke() for _ in range(4)]
        first = self.allocations()[0]
        container = self.engine.world.containers[first.container_id]
        self.peer.register(state(container.description, "terminated", "OOM"), resources=host(cpus=8))
        self.assertEqual([each.outcome for each in requests], ["failure", "failure", None, None])

    def test_a_deleted_request_keeps_its_place_until_the_executor_tells_its_end(self) -> None:
        self.invoke()
        self.engine.applications.delete_request("default", "app", self.queued.id)
        [kill] = self.peer.take()
        self.assertEqual(kill.kill_allocation.allocation_id, self.second.allocation_id)
        self.finish(failed(self.second, "ALLOCATION_CANCELLED"))
        self.assertEqual(self.one().container_id, self.first.container_id)


def _calls(caller: str, called: str, **of_both: Any) -> dict[str, Any]:
    return {
        "name": "app",
        "version": "v1",
        "functions": {name: {"name": name, **of_both} for name in (caller, called)},
        "entrypoint": {"function_name": caller},
    }
