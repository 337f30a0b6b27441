"""Applications, requests, calls and their outcomes."""

from __future__ import annotations

from typing import Any

from twisted.logger import LogLevel, capturedLogs

from indexify_dataplane.devserver.errors import Refused, RpcError
from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .peer import Peer, completed, failed, failure, host, kinds, make_engine, payload, started, state, terminated
from .test_registration import Case


def manifest(*functions: str, **of_first: Any) -> dict[str, Any]:
    entries: dict[str, Any] = {name: {"name": name} for name in functions}
    entries[functions[0]].update(of_first)
    return {
        "name": "app",
        "version": "v1",
        "functions": entries,
        "entrypoint": {"function_name": functions[0]},
    }


def reference(function: str) -> pb.FunctionRef:
    return pb.FunctionRef(namespace="default", application_name="app", function_name=function)


def call(call_id: str, function: str, *sources: Any, metadata: bytes = b"m") -> pb.ExecutionPlanUpdate:
    arguments = [
        pb.FunctionArg(function_call_id=source) if isinstance(source, str) else pb.FunctionArg(inline_data=source)
        for source in sources
    ]
    return pb.ExecutionPlanUpdate(
        function_call=pb.FunctionCall(id=call_id, target=reference(function), args=arguments, call_metadata=metadata)
    )


def plan(root: str, *updates: pb.ExecutionPlanUpdate) -> pb.ExecutionPlanUpdates:
    return pb.ExecutionPlanUpdates(root_function_call_id=root, updates=updates)


class FunctionCase(Case):
    def deploy(self, *functions: str, **of_first: Any) -> None:
        self.engine.applications.deploy("default", manifest(*(functions or ("f",)), **of_first), b"PK code")

    def invoke(self, body: bytes = b"[1]") -> Any:
        return self.engine.applications.invoke("default", "app", body, "application/json")

    def allocations(self) -> list[pb.Allocation]:
        """The allocations that are ordered now."""
        return [c.run_allocation.allocation for c in self.peer.take() if c.HasField("run_allocation")]

    def one(self) -> pb.Allocation:
        [allocation] = self.allocations()
        return allocation

    def log(self, allocation: pb.Allocation, updates: pb.ExecutionPlanUpdates) -> None:
        entry = pb.AllocationLogEntry(
            allocation_id=allocation.allocation_id,
            call_function=pb.FunctionCallRequest(
                namespace="default",
                application="app",
                request_id=allocation.request_id,
                updates=updates,
                source_function_call_id=allocation.function_call_id,
            ),
        )
        self.peer.beat(allocation_log_entries=[entry])

    def finish(self, *outcomes: pb.AllocationOutcome) -> None:
        self.peer.beat(allocation_outcomes=outcomes)


class CommandTests(FunctionCase):
    def test_a_run_brings_a_container_and_its_allocation(self) -> None:
        self.peer.register()
        self.deploy(
            secret_names=["S"],
            initialization_timeout_sec=11,
            timeout_sec=22,
            max_concurrency=3,
            resources={"cpus": 0.5, "memory_mb": 64, "ephemeral_disk_mb": 32},
        )
        request = self.invoke()
        addition, run = self.peer.take()
        description = addition.add_container.container
        application = description.application
        self.assertEqual(
            description,
            pb.ContainerDescription(
                id=description.id,
                function=pb.FunctionRef(
                    namespace="default", application_name="app", function_name="f", application_version="v1"
                ),
                secret_names=["S"],
                initialization_timeout_ms=11_000,
                application=application,
                resources=pb.ContainerResources(cpu_ms_per_sec=500, memory_bytes=64 << 20, disk_bytes=32 << 20),
                max_concurrency=3,
                allocation_timeout_ms=22_000,
                container_type=pb.CONTAINER_TYPE_FUNCTION,
                pool_id="app|f|v1",
            ),
        )
        self.assertEqual(self.engine.story.read(application), b"PK code")
        self.assertEqual((application.encoding, application.content_type), (4, "application/zip"))
        for name in ("encoding_version", "offset", "metadata_size", "id", "sha256_hash"):
            self.assertTrue(application.HasField(name), name)  # type: ignore[arg-type]

        allocation = run.run_allocation.allocation
        prefix = f"file:///blobs/default/app/{request.id}"
        self.assertEqual(allocation.function, reference("f"))
        self.assertFalse(allocation.function.HasField("application_version"))
        self.assertEqual((allocation.function_call_id, allocation.request_id), (request.id, request.id))
        self.assertEqual((allocation.container_id, allocation.function_call_metadata), (description.id, b""))
        self.assertTrue(allocation.HasField("function_call_metadata"))
        self.assertEqual(allocation.request_data_payload_uri_prefix, prefix)
        self.assertEqual(allocation.request_error_payload_uri_prefix, prefix)
        [argument] = allocation.args
        self.assertEqual(argument.uri, f"{prefix}/input")
        self.assertEqual(self.engine.story.read(argument), b"[1]")
        self.assertTrue(argument.HasField("encoding_version"))

    def test_add_container_repeats_before_each_run_on_a_pending_container(self) -> None:
        self.peer.register()
        self.deploy(max_concurrency=2)
        self.invoke()
        self.assertEqual(kinds(self.peer.take()), ["add_container", "run_allocation"])
        self.invoke()
        self.assertEqual(kinds(self.peer.take()), ["add_container", "run_allocation"])
        [container] = self.engine.world.containers.values()
        self.peer.beat(started(container.id))
        self.assertEqual(self.peer.take(), [])

    def test_no_more_than_max_concurrency_runs_per_container(self) -> None:
        self.peer.register()
        self.deploy(max_concurrency=2, max_containers=1)
        for _ in range(5):
            self.invoke()
        first = self.allocations()
        self.assertEqual(len(first), 2)
        self.finish(completed(first[0], value=payload()))
        self.assertEqual(len(self.allocations()), 1)

    def test_idle_containers_beyond_the_floor_are_removed(self) -> None:
        self.peer.register()
        self.deploy()
        self.invoke()
        allocation = self.one()
        self.peer.beat(started(allocation.container_id))
        self.finish(completed(allocation, value=payload()))
        self.assertEqual([c.remove_container.container_id for c in self.peer.take()], [allocation.container_id])

    def test_min_containers_are_started_at_once_and_kept(self) -> None:
        self.peer.register()
        self.deploy(min_containers=1)
        [addition] = self.peer.take()
        self.peer.beat(started(addition.add_container.container.id))
        self.invoke()
        allocation = self.one()
        self.assertEqual(allocation.container_id, addition.add_container.container.id)
        self.finish(completed(allocation, value=payload()))
        self.assertEqual(self.peer.take(), [])

    def test_idle_containers_can_be_kept_for_a_while(self) -> None:
        self.engine.close()
        self.engine, self.clock = make_engine(idle_container_secs=10.0)
        self.peer = Peer(self.engine)
        self.peer.register()
        self.deploy()
        self.invoke()
        first = self.one()
        self.peer.beat(started(first.container_id))
        self.finish(completed(first, value=payload()))
        self.clock.advance(9)
        self.invoke()
        second = self.one()
        self.assertEqual(second.container_id, first.container_id)
        # Idle again before the first wait would have ended: the time begins anew.
        self.clock.advance(0.5)
        self.finish(completed(second, value=payload()))
        self.clock.advance(9)
        self.assertEqual(self.peer.take(), [])
        self.clock.advance(2)
        self.assertEqual(kinds(self.peer.take()), ["remove_container"])

    def test_labels_and_allowlists_decide_who_may_run(self) -> None:
        self.peer.register(labels={"zone": "a"})
        self.deploy(placement_constraints={"filter_expressions": ["zone==b", "tier!=slow"]})
        self.invoke()
        self.assertEqual(self.peer.take(), [])
        slow = Peer(self.engine, "slow")
        slow.register(labels={"zone": "b", "tier": "slow"})
        self.assertEqual(slow.take(), [])
        other = Peer(self.engine, "other")
        other.register(labels={"zone": "b"}, allowed_functions=[pb.AllowedFunction(application_name="else")])
        self.assertEqual(other.take(), [])
        right = Peer(self.engine, "right")
        right.register(labels={"zone": "b"}, allowed_functions=[pb.AllowedFunction(application_name="app")])
        self.assertEqual(kinds(right.take()), ["add_container", "run_allocation"])

    def test_a_resync_repeats_containers_and_open_allocations(self) -> None:
        self.peer.register()
        self.deploy()
        self.invoke()
        addition, run = self.peer.take()
        self.peer.register(state(addition.add_container.container, "running"))
        again = self.peer.take()
        self.assertEqual(kinds(again), ["add_container", "run_allocation"])
        self.assertEqual(again[1].run_allocation.allocation.allocation_id, run.run_allocation.allocation.allocation_id)


class OutcomeTests(FunctionCase):
    def setUp(self) -> None:
        super().setUp()
        # Containers that are never reported dead keep what they use.
        self.peer.register(resources=host(cpus=64, memory=1 << 40))

    def test_a_value_finishes_the_request(self) -> None:
        self.deploy()
        request = self.invoke()
        allocation = self.one()
        self.finish(completed(allocation, value=payload(), execution_duration_ms=5))
        self.assertEqual(request.outcome, "success")
        [record] = request.allocations.values()
        self.assertEqual((record.outcome, record.duration_ms), ("success", 5))

    def test_late_and_unknown_outcomes_are_accepted_without_effect(self) -> None:
        self.deploy()
        request = self.invoke()
        allocation = self.one()
        self.finish(completed(allocation, value=payload()))
        self.finish(failed(allocation, "FUNCTION_ERROR"))
        stranger = pb.Allocation()
        stranger.CopyFrom(allocation)
        stranger.allocation_id = "unknown"
        self.finish(completed(stranger, value=payload()))
        self.assertEqual(request.outcome, "success")

    def test_reasons_that_are_retried_against_the_limit(self) -> None:
        for reason in (
            "INTERNAL_ERROR",
            "FUNCTION_ERROR",
            "FUNCTION_TIMEOUT",
            "OOM",
            "STARTUP_FAILED_INTERNAL_ERROR",
            "STARTUP_FAILED_FUNCTION_ERROR",
            "STARTUP_FAILED_FUNCTION_TIMEOUT",
        ):
            self.deploy(retry_policy={"max_retries": 2})
            request = self.invoke()
            for _ in range(2):
                self.finish(failed(self.one(), reason))
                self.assertIsNone(request.outcome, reason)
            self.finish(failed(self.one(), reason))
            self.assertEqual(request.outcome, "failure", reason)
            self.assertEqual(self.allocations(), [])

    def test_reasons_that_are_retried_for_free(self) -> None:
        self.deploy(retry_policy={"max_retries": 0})
        request = self.invoke()
        for _ in range(5):
            self.finish(failed(self.one(), "CONTAINER_TERMINATED"))
        self.finish(completed(self.one(), value=payload()))
        self.assertEqual(request.outcome, "success")

    def test_reasons_that_are_final(self) -> None:
        for reason in (
            "REQUEST_ERROR",
            "ALLOCATION_CANCELLED",
            "STARTUP_FAILED_BAD_IMAGE",
            "UNKNOWN",
            "CONSTRAINT_UNSATISFIABLE",
        ):
            self.deploy(retry_policy={"max_retries": 9})
            request = self.invoke()
            self.finish(failed(self.one(), reason))
            self.assertEqual((request.outcome, request.failure_reason), ("failure", failure(reason)))

    def test_a_lost_executor_is_a_free_retry_elsewhere(self) -> None:
        self.deploy()
        request = self.invoke()
        first = self.one()
        other = Peer(self.engine, "executor-2")
        other.register()
        self.peer.stop()
        [_, run] = other.take()
        second = run.run_allocation.allocation
        self.assertNotEqual(second.allocation_id, first.allocation_id)
        # The old attempt's outcome comes late, by another executor: it is over.
        other.beat(allocation_outcomes=[completed(first, value=payload())])
        self.assertIsNone(request.outcome)
        other.beat(allocation_outcomes=[completed(second, value=payload())])
        self.assertEqual(request.outcome, "success")

    def test_a_blamed_container_is_dead_first(self) -> None:
        reasons = {
            "STARTUP_FAILED_FUNCTION_ERROR": "STARTUP_FAILED_FUNCTION_ERROR",
            "OOM": "OOM",
            "FUNCTION_TIMEOUT": "FUNCTION_TIMEOUT",
            "FUNCTION_ERROR": "UNHEALTHY",
            "CONTAINER_TERMINATED": "UNHEALTHY",
            "INTERNAL_ERROR": "UNKNOWN",
        }
        for reason, wanted in reasons.items():
            self.deploy(retry_policy={"max_retries": 1})
            self.invoke()
            allocation = self.one()
            container = self.engine.world.containers[allocation.container_id]
            self.finish(failed(allocation, reason, container_id=container.id))
            self.assertEqual(container.state, "terminated", reason)
            self.assertEqual(
                pb.ContainerTerminationReason.Name(container.reason).removeprefix("CONTAINER_TERMINATION_REASON_"),
                wanted,
            )
            commands = self.peer.take()
            self.assertEqual(kinds(commands), ["remove_container", "add_container", "run_allocation"])
            retry = commands[2].run_allocation.allocation
            self.assertNotEqual(retry.container_id, container.id)
            self.finish(failed(retry, "REQUEST_ERROR"))
            self.peer.take()

    def test_a_terminated_container_does_not_touch_its_allocations(self) -> None:
        self.deploy()
        request = self.invoke()
        allocation = self.one()
        self.peer.beat(terminated(allocation.container_id, "OOM"))
        self.assertEqual(kinds(self.peer.take()), ["remove_container"])
        self.finish(completed(allocation, value=payload()))
        self.assertEqual(request.outcome, "success")

    def test_a_container_reported_terminated_by_a_full_sync_fails_its_allocations(self) -> None:
        outcomes = {
            "UNHEALTHY": "FUNCTION_TIMEOUT",
            "FUNCTION_TIMEOUT": "FUNCTION_TIMEOUT",
            "PROCESS_CRASH": "FUNCTION_ERROR",
            "INTERNAL_ERROR": "INTERNAL_ERROR",
            "OOM": "OOM",
            "FUNCTION_CANCELLED": "ALLOCATION_CANCELLED",
            "STARTUP_FAILED_BAD_IMAGE": "STARTUP_FAILED_BAD_IMAGE",
        }
        for reason, wanted in outcomes.items():
            self.deploy()
            request = self.invoke()
            addition, _ = self.peer.take()
            self.peer.register(state(addition.add_container.container, "terminated", reason))
            self.assertEqual((request.outcome, request.failure_reason), ("failure", failure(wanted)), reason)
            self.peer.take()

    def test_a_container_of_unknown_fate_is_a_free_retry(self) -> None:
        self.deploy()
        request = self.invoke()
        addition, _ = self.peer.take()
        self.peer.register(state(addition.add_container.container, "terminated", "UNKNOWN"))
        self.assertIsNone(request.outcome)
        self.assertEqual(kinds(self.peer.take()), ["remove_container", "add_container", "run_allocation"])

    def test_a_restarted_server_takes_containers_and_their_allocations_over(self) -> None:
        self.deploy()
        request = self.invoke()
        addition, run = self.peer.take()
        self.engine.restart(durable=True)
        self.peer.register(state(addition.add_container.container, "running"))
        # As the real server: for an executor it has not seen, the batch is empty (``repeat_removals`` differs).
        self.assertEqual(self.peer.take(), [])
        self.finish(completed(run.run_allocation.allocation, value=payload()))
        self.assertEqual(request.outcome, "success")

    def test_the_order_of_an_adopted_allocation_is_repeated_when_asked_for(self) -> None:
        self.engine.close()
        self.engine, self.clock = make_engine(repeat_removals=True)
        self.peer = Peer(self.engine)
        self.peer.register()
        self.deploy()
        self.invoke()
        addition, run = self.peer.take()
        self.engine.restart(durable=True)
        self.peer.register(state(addition.add_container.container, "running"))
        self.assertEqual(self.one().allocation_id, run.run_allocation.allocation.allocation_id)

    def test_a_resync_repeats_allocations_whose_container_died_meanwhile(self) -> None:
        self.deploy()
        self.invoke()
        allocation = self.one()
        self.peer.beat(terminated(allocation.container_id, "OOM"))
        self.peer.register()
        self.assertEqual(self.one().allocation_id, allocation.allocation_id)

    def test_items_that_fail_the_heartbeat(self) -> None:
        self.deploy()
        request = self.invoke()
        allocation = self.one()
        broken = []
        for name in ("uri", "size", "sha256_hash", "encoding"):
            value = payload()
            value.ClearField(name)  # type: ignore[arg-type]
            broken.append(completed(allocation, value=value))
        odd = payload()
        odd.encoding = 99  # type: ignore[assignment]
        broken.append(completed(allocation, value=odd))
        plans = [
            plan("c", pb.ExecutionPlanUpdate()),
            plan("c", call("", "f")),
            plan("c", pb.ExecutionPlanUpdate(function_call=pb.FunctionCall(id="c"))),
            plan(
                "c",
                pb.ExecutionPlanUpdate(
                    function_call=pb.FunctionCall(id="c", target=reference("f"), args=[pb.FunctionArg()])
                ),
            ),
            plan("r", pb.ExecutionPlanUpdate(reduce=pb.ReduceOp(reducer=reference("f"), call_metadata=b""))),
            plan("r", pb.ExecutionPlanUpdate(reduce=pb.ReduceOp(id="r", call_metadata=b""))),
            plan("r", pb.ExecutionPlanUpdate(reduce=pb.ReduceOp(id="r", reducer=reference("f")))),
        ]
        broken += [completed(allocation, updates=updates) for updates in plans]
        for outcome in broken:
            error = self.assertRaises(RpcError, self.finish, outcome)
            self.assertEqual(error.code, "INTERNAL", str(outcome))
        self.assertIsNone(request.outcome)

    def test_items_that_are_skipped_as_malformed(self) -> None:
        self.deploy()
        request = self.invoke()
        allocation = self.one()
        for name in ("function_call_id", "request_id", "function"):
            outcome = completed(allocation, value=payload())
            outcome.completed.ClearField(name)  # type: ignore[arg-type]
            self.finish(outcome)
        self.finish(pb.AllocationOutcome())
        self.peer.beat(allocation_log_entries=[pb.AllocationLogEntry(allocation_id="x")])
        self.assertIsNone(request.outcome)


class CallTests(FunctionCase):
    def setUp(self) -> None:
        super().setUp()
        self.peer.register()

    def test_a_childs_result_goes_to_the_allocation_that_waits(self) -> None:
        self.deploy("main", "child")
        self.invoke()
        parent = self.one()
        self.log(parent, plan("c1", call("c1", "child", payload("file:///blobs/arg"), metadata=b"meta")))
        child = self.one()
        self.assertEqual((child.function_call_id, child.function_call_metadata), ("c1", b"meta"))
        self.assertFalse(child.args[0].HasField("source_function_call_id"))
        self.finish(completed(child, value=payload("file:///blobs/result")))
        [result] = self.peer.results()
        self.assertEqual((result.function_call_id, result.outcome_code), ("c1", 1))
        self.assertEqual(result.return_value.uri, "file:///blobs/result")

    def test_results_are_addressed_to_the_parent(self) -> None:
        self.deploy("main", "child")
        self.invoke()
        parent = self.one()
        self.log(parent, plan("c1", call("c1", "child")))
        self.finish(completed(self.one(), value=payload()))
        [sequenced] = self.engine.world.executors["executor-1"].results.prefix()
        self.assertEqual((sequenced.seq, sequenced.entry.allocation_id), (1, parent.allocation_id))

    def test_repeated_calls_are_made_once(self) -> None:
        self.deploy("main", "child")
        self.invoke()
        parent = self.one()
        for _ in range(3):
            self.log(parent, plan("c1", call("c1", "child")))
        child = self.one()
        self.finish(completed(child, value=payload()))
        self.assertEqual(len(self.peer.results()), 1)

    def test_a_call_announced_again_by_a_retry_is_answered_at_once(self) -> None:
        self.deploy("main", "child", retry_policy={"max_retries": 1})
        self.invoke()
        parent = self.one()
        self.log(parent, plan("c1", call("c1", "child")))
        self.finish(completed(self.one(), value=payload()))
        self.peer.results()
        self.finish(failed(parent, "FUNCTION_ERROR"))
        retry = self.one()
        self.log(retry, plan("c1", call("c1", "child")))
        [sequenced] = self.engine.world.executors["executor-1"].results.prefix()
        self.assertEqual(sequenced.entry.allocation_id, retry.allocation_id)

    def test_a_failed_child_is_its_callers_to_catch(self) -> None:
        self.deploy("main", "child")
        request = self.invoke()
        parent = self.one()
        self.log(parent, plan("c1", call("c1", "child")))
        error = payload("file:///blobs/error")
        self.finish(failed(self.one(), "REQUEST_ERROR", request_error=error))
        [result] = self.peer.results()
        self.assertEqual((result.outcome_code, result.failure_reason), (2, failure("REQUEST_ERROR")))
        self.assertEqual(result.request_error.uri, "file:///blobs/error")
        self.assertIsNone(request.outcome)
        self.finish(completed(parent, value=payload()))
        self.assertEqual(request.outcome, "success")

    def test_a_failure_that_nobody_caught_is_that_of_the_request(self) -> None:
        self.deploy("main", "child", "grandchild")
        request = self.invoke()
        parent = self.one()
        self.log(parent, plan("c1", call("c1", "child")))
        child = self.one()
        self.log(child, plan("g1", call("g1", "grandchild")))
        self.finish(failed(self.one(), "OOM"))
        self.finish(failed(child, "FUNCTION_ERROR"))
        self.assertIsNone(request.outcome)
        self.finish(failed(parent, "FUNCTION_ERROR"))
        self.assertEqual((request.outcome, request.failure_reason), ("failure", failure("OOM")))

    def test_what_was_caught_is_not_the_requests_error(self) -> None:
        self.deploy("main", "child")
        request = self.invoke()
        parent = self.one()
        self.log(parent, plan("c1", call("c1", "child")))
        self.finish(failed(self.one(), "REQUEST_ERROR", request_error=payload("file:///blobs/error")))
        self.finish(failed(parent, "FUNCTION_ERROR"))
        self.assertEqual((request.outcome, request.failure_reason), ("failure", failure("FUNCTION_ERROR")))
        self.assertIsNone(request.failed_run.request_error)

    def test_a_failure_after_its_caller_has_ended_fails_the_request(self) -> None:
        self.deploy("main", "child", "tail")
        request = self.invoke()
        parent = self.one()
        self.log(parent, plan("c1", call("c1", "child")))
        child = self.one()
        self.finish(completed(parent, updates=plan("t", call("t", "tail"))))
        self.one()
        self.finish(failed(child, "FUNCTION_TIMEOUT"))
        self.assertEqual((request.outcome, request.failure_reason), ("failure", failure("FUNCTION_TIMEOUT")))

    def test_a_failed_tail_call_is_heard_by_the_caller_before_it(self) -> None:
        self.deploy("main", "child", "tail")
        request = self.invoke()
        parent = self.one()
        self.log(parent, plan("c1", call("c1", "child")))
        self.finish(completed(self.one(), updates=plan("t", call("t", "tail"))))
        self.finish(failed(self.one(), "FUNCTION_ERROR"))
        [result] = self.peer.results()
        self.assertEqual((result.function_call_id, result.outcome_code), ("c1", 2))
        self.assertIsNone(request.outcome)

    def test_calls_that_need_a_failed_call_fail_with_it(self) -> None:
        self.deploy("main", "child", "outer")
        request = self.invoke()
        parent = self.one()
        self.log(parent, plan("o2", call("c1", "child"), call("o1", "outer", "c1"), call("o2", "outer", "o1", "c1")))
        self.finish(failed(self.one(), "FUNCTION_ERROR"))
        results = self.peer.results()
        self.assertEqual({result.function_call_id for result in results}, {"c1", "o1", "o2"})
        self.assertEqual(len(results), 3)
        self.assertEqual({result.outcome_code for result in results}, {2})
        # One that is made later needs it as well.
        self.log(parent, plan("o3", call("o3", "outer", "o1")))
        [result] = self.peer.results()
        self.assertEqual((result.function_call_id, result.outcome_code), ("o3", 2))
        self.assertEqual(self.allocations(), [])
        self.assertIsNone(request.outcome)

    def test_calls_of_a_tail_plan_fail_the_request_once(self) -> None:
        self.deploy("main", "child", "tail")
        request = self.invoke()
        self.finish(completed(self.one(), updates=plan("t", call("c1", "child"), call("t", "tail", "c1"))))
        self.finish(failed(self.one(), "FUNCTION_ERROR"))
        self.assertEqual((request.outcome, request.failure_reason), ("failure", failure("FUNCTION_ERROR")))
        self.assertEqual([event for event in request.events if "RequestFinished" in event], request.events[-1:])

    def test_calls_wait_for_their_arguments(self) -> None:
        self.deploy("main", "a", "b")
        self.invoke()
        parent = self.one()
        self.log(parent, plan("outer", call("inner", "a"), call("outer", "b", "inner", payload())))
        inner = self.one()
        self.assertEqual(inner.function_call_id, "inner")
        self.finish(completed(inner, value=payload("file:///blobs/inner")))
        outer = self.one()
        self.assertEqual([a.uri for a in outer.args], ["file:///blobs/inner", "file:///blobs/out"])
        self.assertEqual(outer.args[0].source_function_call_id, "inner")

    def test_a_tail_call_gives_the_run_its_value(self) -> None:
        self.deploy("main", "tail")
        request = self.invoke()
        self.finish(completed(self.one(), updates=plan("t", call("t", "tail"))))
        self.assertIsNone(request.outcome)
        tail = self.one()
        self.finish(completed(tail, value=payload("file:///blobs/tail")))
        self.assertEqual(request.outcome, "success")
        value = request.runs[request.id].value
        self.assertEqual(value and value.uri, "file:///blobs/tail")

    def test_a_childs_tail_call_answers_under_the_childs_id(self) -> None:
        self.deploy("main", "child", "tail")
        self.invoke()
        self.log(self.one(), plan("c1", call("c1", "child")))
        self.finish(completed(self.one(), updates=plan("t", call("t", "tail"))))
        self.assertEqual(self.peer.results(), [])
        self.finish(completed(self.one(), updates=plan("u", call("u", "tail"))))
        self.finish(completed(self.one(), value=payload("file:///blobs/last")))
        [result] = self.peer.results()
        self.assertEqual((result.function_call_id, result.return_value.uri), ("c1", "file:///blobs/last"))

    def test_a_childs_failed_tail_call_fails_under_the_childs_id(self) -> None:
        self.deploy("main", "child", "tail")
        self.invoke()
        self.log(self.one(), plan("c1", call("c1", "child")))
        self.finish(completed(self.one(), updates=plan("t", call("t", "tail"))))
        self.finish(failed(self.one(), "FUNCTION_ERROR"))
        [result] = self.peer.results()
        self.assertEqual((result.function_call_id, result.outcome_code), ("c1", 2))

    def test_a_fold_runs_from_the_left_and_ends_under_its_own_id(self) -> None:
        self.deploy("main", "add")
        request = self.invoke()
        reduce = pb.ReduceOp(
            id="sum",
            reducer=reference("add"),
            call_metadata=b"r",
            collection=[pb.FunctionArg(inline_data=payload(f"file:///blobs/{n}")) for n in range(4)],
        )
        updates = plan("sum", pb.ExecutionPlanUpdate(reduce=reduce))
        self.finish(completed(self.one(), updates=updates))
        seen = []
        for step in range(3):
            allocation = self.one()
            seen.append([a.uri.rpartition("/")[2] for a in allocation.args])
            self.assertEqual(allocation.function_call_metadata, b"r")
            self.assertEqual(allocation.function_call_id == "sum", step == 2)
            self.finish(completed(allocation, value=payload(f"file:///blobs/s{step}")))
        self.assertEqual(seen, [["0", "1"], ["s0", "2"], ["s1", "3"]])
        self.assertEqual(request.outcome, "success")

    def test_fan_out(self) -> None:
        self.deploy("main", "child", max_containers=1)
        self.invoke()
        parent = self.one()
        for number in range(50):
            self.log(parent, plan(f"c{number}", call(f"c{number}", "child")))
        done: set[str] = set()
        while len(done) < 50:
            for allocation in self.allocations():
                self.finish(completed(allocation, value=payload()))
            done |= {result.function_call_id for result in self.peer.results()}
        self.assertEqual(len(done), 50)


class ApplicationTests(FunctionCase):
    def test_what_is_refused(self) -> None:
        whole = manifest("f")
        for change, text in (
            ({"name": ""}, "name"),
            ({"name": "a/b"}, "name"),
            ({"entrypoint": None}, "entrypoint"),
            ({"entrypoint": {"function_name": "g"}}, "entrypoint"),
            ({"functions": {"f": {"name": "g"}}}, "named"),
            ({"functions": {"f": {"name": "f", "timeout_sec": 0}}}, "timeout_sec"),
            ({"functions": {"f": {"name": "f", "timeout_sec": 86401}}}, "timeout_sec"),
            ({"functions": {"f": {"name": "f", "retry_policy": {"max_retries": 11}}}}, "max_retries"),
            ({"functions": {"f": {"name": "f", "retry_policy": {"delay_multiplier": 0.01}}}}, "delay_multiplier"),
        ):
            refusal = self.assertRaises(
                Refused, self.engine.applications.deploy, "default", {**whole, **change}, b"code"
            )
            self.assertEqual((refusal.status, text in refusal.message), (400, True), refusal.message)
        refusal = self.assertRaises(Refused, self.engine.applications.deploy, "default", whole, None)
        self.assertEqual((refusal.status, refusal.message), (400, "code is required"))
        self.assertEqual(self.engine.world.applications, {})

    def test_a_request_id_is_used_once(self) -> None:
        self.deploy()
        invoke = self.engine.applications.invoke
        self.assertEqual(invoke("default", "app", b"", request_id="mine").id, "mine")
        self.assertEqual(self.assertRaises(Refused, invoke, "default", "app", b"", request_id="mine").status, 409)
        for bad in ("x" * 37, "", "../up", "a b"):
            self.assertEqual(self.assertRaises(Refused, invoke, "default", "app", b"", request_id=bad).status, 400)

    def test_a_new_version_leaves_running_requests_alone(self) -> None:
        self.peer.register()
        self.deploy()
        old = self.invoke()
        first = self.one()
        self.engine.applications.deploy("default", {**manifest("f"), "version": "v2"}, b"code 2")
        new = self.invoke()
        self.assertEqual((old.version, new.version), ("v1", "v2"))
        self.assertNotEqual(self.one().container_id, first.container_id)
        self.finish(completed(first, value=payload()))
        self.assertEqual([c.remove_container.container_id for c in self.peer.take()], [first.container_id])

    def test_waiting_requests_can_be_upgraded(self) -> None:
        self.deploy()
        request = self.invoke()
        self.engine.applications.deploy("default", {**manifest("f"), "version": "v2"}, b"code 2", upgrade_requests=True)
        self.peer.register()
        addition, _ = self.peer.take()
        self.assertEqual(addition.add_container.container.function.application_version, "v2")
        self.assertEqual(request.version, "v2")

    def test_deleting_an_application_ends_everything_of_it(self) -> None:
        self.peer.register()
        self.deploy()
        request = self.invoke()
        allocation = self.one()
        self.engine.applications.delete("default", "app")
        self.assertEqual(request.outcome, "failure")
        self.assertEqual(kinds(self.peer.take()), ["remove_container"])
        self.finish(completed(allocation, value=payload()))
        self.assertEqual(self.engine.world.requests, {})


class CrowdingTests(FunctionCase):
    """A machine of two CPUs, functions of one each."""

    def setUp(self) -> None:
        super().setUp()
        self.engine, self.clock = make_engine(idle_container_secs=60)
        self.peer = Peer(self.engine)
        self.peer.register(resources=host(cpus=2))
        self.known: set[str] = set()

    def started(self) -> list[str]:
        """Functions whose containers are ordered for the first time."""
        ordered = [c.add_container.container for c in self.commands if c.HasField("add_container")]
        found = [container.function.function_name for container in ordered if container.id not in self.known]
        self.known |= {container.id for container in ordered}
        return found

    def look(self) -> None:
        self.commands = self.peer.take()
        self.ordered = [c.run_allocation.allocation for c in self.commands if c.HasField("run_allocation")]

    def test_nested_calls_do_not_wait_for_each_other(self) -> None:
        self.deploy("a", "b", "c", "d")
        request = self.invoke()
        open_calls = []
        for caller, called in (("a", "b"), ("b", "c"), ("c", "d")):
            self.look()
            self.assertEqual(self.started(), [caller])
            open_calls += self.ordered
            self.log(self.ordered[0], plan(f"call-{called}", call(f"call-{called}", called)))
        self.look()
        self.assertEqual(self.started(), ["d"])
        for allocation in (*self.ordered, *reversed(open_calls)):
            self.finish(completed(allocation, value=payload()))
        self.assertEqual(request.outcome, "success")

    def test_a_function_that_calls_itself_gets_another_container(self) -> None:
        self.deploy("f")
        self.invoke()
        for depth in range(4):
            self.look()
            self.assertEqual(self.started(), ["f"], depth)
            self.log(self.ordered[0], plan(f"c{depth}", call(f"c{depth}", "f")))

    def test_only_the_first_container_is_above_capacity(self) -> None:
        self.deploy("main", "wide")
        self.invoke()
        other = self.invoke()
        self.look()
        self.assertEqual(self.started(), ["main", "main"])
        parent = self.ordered[0]
        self.log(parent, plan("c1", call("c1", "wide"), call("c2", "wide"), call("c3", "wide")))
        self.look()
        self.assertEqual((self.started(), len(self.ordered)), (["wide"], 1))
        self.finish(completed(self.ordered[0], value=payload()))
        self.look()
        self.assertEqual((self.started(), len(self.ordered)), ([], 1))
        self.assertIsNone(other.outcome)

    def test_calls_that_nobody_waits_for_wait_for_room(self) -> None:
        self.deploy("main", "tail")
        for _ in range(2):
            self.invoke()
        first, second = self.allocations()
        self.peer.beat(started(first.container_id), started(second.container_id))
        self.finish(completed(first, updates=plan("t1", call("t1", "tail"))))
        # The idle container is in its way, and leaves.
        self.look()
        self.assertEqual(kinds(self.commands), ["remove_container"])
        self.peer.beat(terminated(first.container_id, "FUNCTION_CANCELLED"))
        self.look()
        self.assertEqual((self.started(), len(self.ordered)), (["tail"], 1))
        self.assertNotEqual(second.container_id, self.ordered[0].container_id)

    def test_idle_containers_make_room_for_other_functions(self) -> None:
        self.deploy("main", resources={"cpus": 2})
        self.invoke()
        first = self.one()
        self.peer.beat(started(first.container_id))
        self.finish(completed(first, value=payload()))
        self.assertEqual(self.peer.take(), [])
        other = {**manifest("g"), "name": "other"}
        self.engine.applications.deploy("default", other, b"PK")
        self.engine.applications.invoke("default", "other", b"[]", "application/json")
        self.look()
        self.assertEqual([c.remove_container.container_id for c in self.commands], [first.container_id])
        # It is on its way out: nothing more is ended or started.
        self.engine.applications.invoke("default", "other", b"[]", "application/json")
        self.assertEqual(self.peer.take(), [])
        self.peer.beat(terminated(first.container_id, "FUNCTION_CANCELLED"))
        self.look()
        self.assertEqual(self.started(), ["g", "g"])

    def test_a_function_that_has_a_container_ends_no_others(self) -> None:
        self.deploy("main", "wide")
        self.invoke()
        parent = self.one()
        self.log(parent, plan("c1", call("c1", "wide")))
        child = self.one()
        self.peer.beat(started(parent.container_id), started(child.container_id))
        self.finish(completed(child, value=payload()))
        self.invoke()
        self.look()
        self.assertEqual((kinds(self.commands), self.ordered), ([], []))
        self.finish(completed(parent, value=payload()))
        self.look()
        self.assertEqual([each.container_id for each in self.ordered], [parent.container_id])

    def test_what_is_larger_than_the_machine_waits_and_ends_nothing(self) -> None:
        self.deploy("main")
        self.invoke()
        first = self.one()
        self.peer.beat(started(first.container_id))
        self.finish(completed(first, value=payload()))
        other = {**manifest("h", resources={"cpus": 3}), "name": "other"}
        self.engine.applications.deploy("default", other, b"PK")
        self.engine.applications.invoke("default", "other", b"[]", "application/json")
        self.assertEqual(self.peer.take(), [])

    def wave(self, requests: int, depth: int) -> tuple[list[Any], int]:
        """Requests whose function calls itself to a depth, played to their end: the requests, and the most containers
        that there were at the same time. A caller ends when its call has its value."""
        made = [self.invoke() for _ in range(requests)]
        levels = {request.id: 0 for request in made}
        running: dict[str, pb.Allocation] = {}
        callers: dict[str, str] = {}
        most = 0
        while True:
            self.look()
            most = max(most, len(self.engine.world.containers))
            if not self.ordered:
                return made, most
            for allocation in self.ordered:
                running[allocation.function_call_id] = allocation
            for allocation in self.ordered:
                level = levels[allocation.function_call_id]
                if level < depth:
                    name = f"{allocation.request_id}-{level + 1}"
                    levels[name], callers[name] = level + 1, allocation.function_call_id
                    self.log(allocation, plan(name, call(name, "f")))
                    continue
                over: str | None = allocation.function_call_id
                while over is not None:
                    self.finish(completed(running.pop(over), value=payload()))
                    over = callers.get(over)

    def test_callers_of_several_requests_that_fill_the_machine_go_on(self) -> None:
        self.deploy("f")
        made, most = self.wave(requests=20, depth=3)
        self.assertEqual([request.outcome for request in made], ["success"] * 20)
        # Begun work ends first: however many requests there are, two are open, four calls deep.
        self.assertLessEqual(most, 8)

    def test_a_limit_on_containers_does_not_hold_up_calls_of_the_same_function(self) -> None:
        with capturedLogs() as lines:
            self.deploy("f", max_containers=1)
            made, most = self.wave(requests=3, depth=2)
        self.assertEqual([request.outcome for request in made], ["success"] * 3)
        self.assertEqual(most, 3)
        warnings = [line for line in lines if line["log_level"] is LogLevel.warn]
        self.assertEqual([(line["fn"], line["max_containers"]) for line in warnings], [("f", 1)])

    def with_two_gpus(self) -> dict[str, Any]:
        """A host with two GPUs instead of the usual one; the resources of a function that wants one of them."""
        machine = host(cpus=8)
        machine.gpu.count, machine.gpu.model = 2, pb.GPU_MODEL_NVIDIA_TESLA_T4
        self.engine, self.clock = make_engine(idle_container_secs=60)
        self.peer = Peer(self.engine)
        self.peer.register(resources=machine)
        return {"cpus": 0.1, "memory_mb": 64, "ephemeral_disk_mb": 32, "gpus": [{"count": 1, "model": "T4"}]}

    def test_a_call_that_waits_for_gpus_of_its_callers_is_told_of(self) -> None:
        one_gpu = self.with_two_gpus()
        self.deploy("f", "plain", resources=one_gpu)
        with capturedLogs() as lines:
            request = self.invoke()
            outer = self.one()
            self.log(outer, plan("c1", call("c1", "f")))
            inner = self.one()
            self.log(inner, plan("c2", call("c2", "plain"), call("c3", "f", "c2")))
            plain = self.one()
            self.assertEqual([line for line in lines if line["log_level"] is LogLevel.warn], [])
            self.finish(completed(plain, value=payload()))
            self.engine.settle()
        self.assertEqual(self.allocations(), [])
        [told] = [line for line in lines if line["log_level"] is LogLevel.warn]
        self.assertEqual((told["fn"], told["function_call_id"], told["gpus_asked"]), ("f", "c3", 1))
        self.assertEqual(
            (told["request_id"], sorted(told["held_by"].split(", "))),
            (request.id, sorted(f"f in {each.container_id}" for each in (outer, inner))),
        )
        # A caller that did not wait for its call ends, and the call has its place.
        self.finish(completed(inner, value=payload()))
        self.assertEqual(self.one().function_call_id, "c3")

    def test_a_call_that_waits_for_gpus_that_get_free_is_no_news(self) -> None:
        one_gpu = self.with_two_gpus()
        with capturedLogs() as lines:
            self.deploy("f", resources=one_gpu)
            self.invoke()
            caller = self.one()
            self.invoke()
            other = self.one()
            self.log(caller, plan("c1", call("c1", "f")))
            self.assertEqual(self.allocations(), [])
            self.finish(completed(other, value=payload()))
            self.assertEqual(self.one().function_call_id, "c1")
        self.assertEqual([line for line in lines if line["log_level"] is LogLevel.warn], [])

    def test_containers_above_the_limit_are_for_awaited_calls_alone(self) -> None:
        self.deploy("f", max_containers=1)
        self.invoke()
        caller = self.one()
        self.log(caller, plan("c1", call("c1", "f")))
        called = self.one()
        self.peer.beat(started(caller.container_id), started(called.container_id))
        self.finish(completed(called, value=payload()))
        self.invoke()
        self.assertEqual(self.allocations(), [])
        # The caller's next call finds it warm.
        self.log(caller, plan("c2", call("c2", "f")))
        again = self.one()
        self.assertEqual(again.container_id, called.container_id)
        self.finish(completed(again, value=payload()), completed(caller, value=payload()))
        self.invoke()
        # Two wait and two containers are idle, but the limit is one.
        last = self.one()
        self.finish(completed(last, value=payload()))
        self.assertEqual(len(self.allocations()), 1)

    def test_a_run_that_waits_for_nothing_is_waited_for(self) -> None:
        self.deploy("f")
        for _ in range(2):
            self.invoke()
        first, second = self.allocations()
        self.log(first, plan("c1", call("c1", "f")))
        self.assertEqual(self.allocations(), [])
        self.finish(completed(second, value=payload()))
        self.assertEqual(self.one().container_id, second.container_id)


class CalledOffTests(FunctionCase):
    """Requests that are over while something of them runs."""

    def setUp(self) -> None:
        super().setUp()
        self.peer.register()

    def kills(self) -> list[str]:
        commands = self.peer.take()
        self.assertEqual(set(kinds(commands)) - {"kill_allocation"}, set())
        return [command.kill_allocation.allocation_id for command in commands]

    def delete(self, request: Any) -> None:
        self.engine.applications.delete_request("default", "app", request.id)

    def test_what_a_deleted_request_runs_is_ended(self) -> None:
        self.deploy("f", "g", max_containers=1)
        request = self.invoke()
        allocation = self.one()
        self.log(allocation, plan("c1", call("c1", "g"), call("c2", "f"), call("c3", "g", "c2")))
        first, second = self.allocations()
        self.delete(request)
        self.assertEqual(sorted(self.kills()), sorted(one.allocation_id for one in (allocation, first, second)))
        # None of its calls goes anywhere any more, whatever is told late.
        self.log(allocation, plan("c4", call("c4", "g")))
        self.finish(*(failed(one, "ALLOCATION_CANCELLED") for one in (first, second, allocation)))
        self.assertNotIn("run_allocation", kinds(self.peer.take()))
        self.assertEqual(self.engine.world.unplaced_runs, {})
        self.assertEqual(self.engine.world.called_off, {})

    def test_its_slot_is_taken_until_the_executor_tells_its_end(self) -> None:
        self.deploy(max_containers=1)
        request = self.invoke()
        allocation = self.one()
        self.peer.beat(started(allocation.container_id))
        self.delete(request)
        self.invoke()
        self.assertEqual(self.kills(), [allocation.allocation_id])
        self.finish(failed(allocation, "ALLOCATION_CANCELLED"))
        self.assertEqual(self.one().container_id, allocation.container_id)

    def test_a_success_that_was_ready_frees_the_slot_too(self) -> None:
        self.deploy(max_containers=1)
        request = self.invoke()
        allocation = self.one()
        self.delete(request)
        self.invoke()
        self.assertEqual(self.kills(), [allocation.allocation_id])
        self.finish(completed(allocation, value=payload()))
        self.assertEqual(self.one().container_id, allocation.container_id)

    def test_its_container_may_end_with_it(self) -> None:
        self.deploy(max_containers=1)
        request = self.invoke()
        allocation = self.one()
        self.delete(request)
        self.kills()
        self.invoke()
        self.finish(failed(allocation, "ALLOCATION_CANCELLED", container_id=allocation.container_id))
        commands = self.peer.take()
        self.assertEqual(kinds(commands), ["remove_container", "add_container", "run_allocation"])
        self.assertEqual(self.engine.world.called_off, {})

    def test_a_failed_request_ends_what_else_it_runs(self) -> None:
        self.deploy("main", "child")
        request = self.invoke()
        main = self.one()
        self.log(main, plan("c1", call("c1", "child"), call("c2", "child")))
        first, second = self.allocations()
        self.finish(failed(main, "REQUEST_ERROR"))
        self.assertEqual(request.outcome, "failure")
        killed = [c.kill_allocation.allocation_id for c in self.peer.take() if c.HasField("kill_allocation")]
        self.assertEqual(sorted(killed), sorted((first.allocation_id, second.allocation_id)))

    def test_what_goes_on_after_a_success_ends_with_its_request(self) -> None:
        self.deploy("main", "child")
        request = self.invoke()
        main = self.one()
        self.log(main, plan("c1", call("c1", "child")))
        child = self.one()
        self.finish(completed(main, value=payload()))
        self.assertEqual(request.outcome, "success")
        self.peer.take()
        self.delete(request)
        self.assertEqual(self.kills(), [child.allocation_id])
        self.finish(failed(child, "ALLOCATION_CANCELLED"))
        self.assertEqual([c.remove_container.container_id for c in self.peer.take()], [child.container_id])

    def test_the_end_is_ordered_again_after_a_resync(self) -> None:
        self.deploy()
        request = self.invoke()
        addition, run = self.peer.take()
        allocation = run.run_allocation.allocation
        self.peer.beat(started(allocation.container_id))
        self.delete(request)
        self.peer.register(state(addition.add_container.container, "running"))
        commands = self.peer.take()
        self.assertEqual(kinds(commands), ["add_container", "kill_allocation"])
        self.assertEqual(commands[1].kill_allocation.allocation_id, allocation.allocation_id)

    def test_an_order_that_may_be_lost_goes_with_its_end(self) -> None:
        self.deploy()
        request = self.invoke()
        # Neither the order nor the kill was fetched before the executor registers again.
        self.delete(request)
        self.peer.register()
        commands = self.peer.take()
        self.assertEqual(kinds(commands), ["add_container", "run_allocation", "kill_allocation"])
        allocation = commands[1].run_allocation.allocation
        self.assertEqual(commands[2].kill_allocation.allocation_id, allocation.allocation_id)
        self.finish(failed(allocation, "ALLOCATION_CANCELLED"))
        self.assertEqual(kinds(self.peer.take()), ["remove_container"])

    def test_nothing_is_kept_of_it_when_its_executor_is_lost(self) -> None:
        self.deploy()
        request = self.invoke()
        self.one()
        self.delete(request)
        self.peer.stop()
        self.assertEqual((self.engine.world.called_off, self.engine.world.containers), ({}, {}))

    def test_a_restarted_server_remembers_what_it_called_off(self) -> None:
        self.deploy(max_containers=1)
        request = self.invoke()
        addition, run = self.peer.take()
        self.delete(request)
        self.engine.restart(durable=True)
        self.peer.register(state(addition.add_container.container, "running"))
        self.invoke()
        self.assertEqual(self.kills(), [run.run_allocation.allocation.allocation_id])
        self.finish(failed(run.run_allocation.allocation, "ALLOCATION_CANCELLED"))
        self.assertEqual(self.one().container_id, addition.add_container.container.id)

    def test_a_request_that_is_deleted_before_its_executor_is_back(self) -> None:
        self.deploy(max_containers=1)
        request = self.invoke()
        addition, run = self.peer.take()
        self.engine.restart(durable=True)
        self.delete(request)
        self.peer.register(state(addition.add_container.container, "running"))
        self.assertEqual(self.kills(), [run.run_allocation.allocation.allocation_id])

    def test_nothing_is_kept_of_it_when_its_executor_does_not_come_back(self) -> None:
        self.deploy()
        request = self.invoke()
        self.one()
        self.engine.restart(durable=True)
        self.delete(request)
        self.clock.advance(61)
        self.assertEqual(self.engine.world.called_off, {})

    def test_a_request_is_deleted_after_its_container_is_gone(self) -> None:
        self.deploy()
        request = self.invoke()
        allocation = self.one()
        self.peer.beat(terminated(allocation.container_id, "OOM"))
        self.delete(request)
        self.assertEqual(kinds(self.peer.take()), ["remove_container"])
        second = self.invoke()
        dead = self.one()
        self.peer.beat(terminated(dead.container_id, "OOM"))
        self.peer.take()
        self.assertNotIn(dead.container_id, self.engine.world.containers)
        self.delete(second)
        self.finish(failed(dead, "OOM"), failed(allocation, "OOM"))
        self.assertEqual((self.engine.world.called_off, self.peer.take()), ({}, []))

    def test_an_executor_may_stop_with_the_end_of_a_request(self) -> None:
        self.deploy("main", "child")
        self.invoke()
        main = self.one()
        self.log(main, plan("c1", call("c1", "child")))
        self.one()
        self.peer.beat(allocation_outcomes=[failed(main, "REQUEST_ERROR")], status=pb.EXECUTOR_STATUS_STOPPED)
        self.assertEqual((self.engine.world.called_off, self.engine.world.containers), ({}, {}))

    def test_a_lost_container_is_no_cancellation(self) -> None:
        self.deploy()
        request = self.invoke()
        self.finish(failed(self.one(), "CONTAINER_TERMINATED"))
        told = [event["AllocationCompleted"]["outcome"] for event in request.events if "AllocationCompleted" in event]
        self.assertEqual(told, ["internal_error"])
