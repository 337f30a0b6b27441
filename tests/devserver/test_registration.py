"""What the control plane makes of a full sync, row by row, and of an executor that leaves."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.devserver.sandboxes import describe
from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .peer import Peer, full_state, kinds, make_engine, started, state, terminated


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.engine, self.clock = make_engine()
        self.peer = Peer(self.engine)
        self.addCleanup(self.engine.close)

    def running_sandbox(self, **fields: Any) -> Any:
        """A sandbox that runs on the executor, with nothing left to say about it."""
        sandbox = self.engine.sandboxes.create("default", fields)
        self.peer.beat(started(sandbox.id))
        self.peer.take()
        return sandbox

    def description(self, sandbox: Any) -> pb.ContainerDescription:
        return describe(sandbox.id, "default", sandbox.spec, sandbox_id=sandbox.id, pool_id=None)


class ReconciliationTests(Case):
    """The rows of the table of reported containers."""

    def test_untracked_and_alive_is_adopted_when_its_sandbox_lives(self) -> None:
        for status, wanted in (("running", "running"), ("pending", "pending")):
            sandbox = self.engine.sandboxes.create("default", {})
            self.peer.register(state(self.description(sandbox), status))
            self.assertEqual((sandbox.status, sandbox.executor_id), (wanted, "executor-1"))
            self.assertNotIn("remove_container", kinds(self.peer.take()))
            self.peer.stop()

    def test_untracked_and_alive_is_removed_when_its_sandbox_is_unknown_or_over(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        description = self.description(sandbox)
        self.peer.stop()
        self.peer.register(state(description, "running"))
        [command] = self.peer.take()
        self.assertEqual(command.remove_container.container_id, sandbox.id)

        stranger = describe("stranger", "default", sandbox.spec, sandbox_id="stranger", pool_id=None)
        self.peer.register(state(stranger, "pending"))
        self.assertEqual([c.remove_container.container_id for c in self.peer.take()], ["stranger"])

    def test_untracked_and_alive_is_removed_when_its_pool_is_gone(self) -> None:
        sandbox = self.engine.sandboxes.create("default", {})
        orphan = describe("warm", "default", sandbox.spec, sandbox_id=None, pool_id="gone")
        self.engine.sandboxes.delete("default", sandbox.id)
        self.peer.register(state(orphan, "running"))
        self.assertEqual([c.remove_container.container_id for c in self.peer.take()], ["warm"])

    def test_adoption_does_not_look_at_capacity(self) -> None:
        sandbox = self.engine.sandboxes.create("default", {"resources": {"cpus": 64.0, "memory_mb": 1}})
        self.peer.register(state(self.description(sandbox), "running"))
        self.assertEqual(sandbox.status, "running")
        self.assertLess(self.engine.world.executors["executor-1"].free.cpu_ms, 0)

    def test_untracked_and_terminated_is_ignored(self) -> None:
        sandbox = self.engine.sandboxes.create("default", {"resources": {"cpus": 64.0}})
        self.peer.register(state(self.description(sandbox), "terminated", "OOM"))
        self.assertEqual((sandbox.status, self.peer.take()), ("pending", []))

    def test_tracked_and_wanted_takes_the_state_over(self) -> None:
        self.peer.register()
        sandbox = self.engine.sandboxes.create("default", {})
        self.peer.take()
        self.peer.register(state(self.description(sandbox), "running"))
        self.assertEqual(sandbox.status, "running")
        # The promotion's update, and the repetition of the desired state.
        self.assertEqual(kinds(self.peer.take()), ["update_container_description", "add_container"])

    def test_tracked_and_unwanted_is_left_alone(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        self.engine.sandboxes.delete("default", sandbox.id)
        self.peer.register(state(self.description(sandbox), "running"))
        self.assertEqual(self.peer.take(), [])

    def test_tracked_and_unwanted_is_removed_again_when_asked_for(self) -> None:
        self.engine.close()
        self.engine, self.clock = make_engine(repeat_removals=True)
        self.peer = Peer(self.engine)
        self.peer.register()
        sandbox = self.running_sandbox()
        self.engine.sandboxes.delete("default", sandbox.id)
        self.peer.register(state(self.description(sandbox), "running"))
        self.assertEqual(kinds(self.peer.take()), ["remove_container"])

    def test_tracked_and_reported_terminated_ends_the_sandbox_and_the_record(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        self.peer.register(state(self.description(sandbox), "terminated", "PROCESS_CRASH"))
        self.assertEqual(sandbox.outcome, "Failure(ContainerTerminated(ProcessCrash))")
        self.assertNotIn(sandbox.id, self.engine.world.containers)
        self.assertNotIn("add_container", kinds(self.peer.take()))

    def test_a_snapshotting_sandbox_outlives_its_terminated_container(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        self.engine.sandboxes.snapshot("default", sandbox.id)
        self.peer.register(state(self.description(sandbox), "terminated", "FUNCTION_CANCELLED"))
        self.assertEqual(sandbox.status, "snapshotting")

    def test_absent_and_wanted_stays_and_is_ordered_again(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        self.peer.register()
        self.assertEqual(sandbox.status, "running")
        self.assertEqual([c.add_container.container.id for c in self.peer.take()], [sandbox.id])

    def test_absent_and_unwanted_is_forgotten(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        self.engine.sandboxes.delete("default", sandbox.id)
        self.peer.register()
        self.assertNotIn(sandbox.id, self.engine.world.containers)

    def test_absent_and_untracked_ends_what_points_to_it_on_the_first_sync(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        self.engine.restart(durable=True)
        self.peer.register()
        self.assertEqual((sandbox.status, self.peer.take()), ("terminated", []))

    def test_a_claim_that_was_lost_with_the_servers_memory_is_ordered_again(self) -> None:
        self.peer.register()
        pool = self.engine.sandboxes.create_pool("default", {"image": "busybox", "warm_containers": 1})
        [added] = self.peer.take()
        warm = added.add_container.container
        self.peer.beat(started(warm.id))
        sandbox = self.engine.sandboxes.create_from_pool("default", pool.id)
        self.assertEqual(sandbox.container_id, warm.id)
        self.engine.restart(durable=True)
        self.peer.register(state(warm, "running"))
        told = [
            each.sandbox_metadata.sandbox_id
            for command in self.peer.take()
            for each in (command.add_container.container, command.update_container_description)
            if warm.id in (getattr(each, "id", ""), getattr(each, "container_id", ""))
        ]
        self.assertEqual((sandbox.status, set(told)), ("running", {sandbox.id}))

    def test_unusable_entries_are_skipped(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        for name in ("id", "function", "resources"):
            broken = self.description(sandbox)
            broken.ClearField(name)  # type: ignore[arg-type]
            self.peer.register(state(broken, "terminated", "OOM"))
            self.assertEqual(sandbox.status, "running", name)
        versionless = self.description(sandbox)
        versionless.function.ClearField("application_version")
        self.peer.register(state(versionless, "terminated", "OOM"))
        self.assertEqual(sandbox.status, "running")

    def test_the_batch_holds_snapshots_in_progress(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        self.engine.sandboxes.snapshot("default", sandbox.id)
        self.peer.register(state(self.description(sandbox), "running"))
        self.assertEqual(kinds(self.peer.take()), ["add_container", "snapshot_container"])

    def test_undelivered_results_are_lost(self) -> None:
        self.peer.register()
        self.engine.send_result("executor-1", pb.AllocationLogEntry(allocation_id="a"))
        self.peer.register()
        self.assertEqual(self.peer.results(), [])

    def test_a_new_executor_id_takes_reported_containers_over(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        lost = self.running_sandbox()
        other = Peer(self.engine, "executor-2")
        other.register(state(self.description(sandbox), "running"))
        self.assertEqual((sandbox.status, sandbox.executor_id), ("running", "executor-2"))
        self.clock.advance(29)
        other.beat()
        self.clock.advance(2)
        self.assertEqual((sandbox.status, lost.outcome), ("running", "Failure(ExecutorRemoved)"))


class LivenessTests(Case):
    def test_thirty_seconds_of_silence_deregister(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        self.clock.advance(29.9)
        self.assertEqual(sandbox.status, "running")
        self.clock.advance(0.2)
        self.assertEqual(sandbox.outcome, "Failure(ExecutorRemoved)")
        self.assertTrue(self.peer.beat().send_state)

    def test_heartbeats_and_the_start_of_polls_count_and_a_held_poll_does_not(self) -> None:
        self.peer.register()
        self.clock.advance(20)
        self.peer.beat()
        self.clock.advance(20)
        poll = self.peer.poll()
        self.clock.advance(29)
        self.assertIsNotNone(self.engine.fleet.known("executor-1"))
        self.clock.advance(2)
        self.assertIsNone(self.engine.fleet.known("executor-1"))
        self.assertEqual(list(self.successResultOf(poll).commands), [])

    def test_snapshots_in_progress_fail_with_their_executor(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        snapshot = self.engine.sandboxes.snapshot("default", sandbox.id)
        self.peer.stop()
        self.assertEqual((snapshot.status, sandbox.status), ("failed", "terminated"))

    def test_capacity_returns_with_an_executor(self) -> None:
        self.peer.register()
        waiting = self.engine.sandboxes.create("default", {"resources": {"cpus": 64.0}})
        self.assertEqual(waiting.pending_reason, "no_resources_available")
        self.peer.stop()
        self.peer.beat(
            full_state=full_state(resources=pb.HostResources(cpu_count=64, memory_bytes=1 << 40, disk_bytes=1 << 40))
        )
        self.assertEqual(waiting.pending_reason, "waiting_for_container")

    def test_executors_that_do_not_return_after_a_restart_are_given_up(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        self.engine.restart(durable=True)
        self.clock.advance(59)
        self.assertEqual(sandbox.status, "running")
        self.clock.advance(2)
        self.assertEqual(sandbox.outcome, "Failure(ExecutorRemoved)")

    def test_a_restart_with_an_empty_memory_rejects_what_survived(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        self.engine.restart(durable=False)
        self.assertTrue(self.peer.beat().send_state)
        self.peer.register(state(self.description(sandbox), "running"))
        self.assertEqual([c.remove_container.container_id for c in self.peer.take()], [sandbox.id])
        self.assertEqual(self.engine.world.sandboxes, {})

    def test_stopped_of_an_unknown_executor_is_answered_quietly(self) -> None:
        self.assertFalse(self.peer.stop().send_state)

    def test_nothing_is_left_on_the_clock_after_close(self) -> None:
        self.peer.register()
        self.peer.poll().addErrback(lambda _: None)
        self.engine.restart(durable=True)
        self.engine.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class IngestionTests(Case):
    """Reports about containers; outcomes and calls are with the functions."""

    def test_started_promotes_and_an_unchanged_description_follows(self) -> None:
        self.peer.register()
        sandbox = self.engine.sandboxes.create("default", {})
        [added] = self.peer.take()
        self.assertEqual(sandbox.pending_reason, "waiting_for_container")
        self.peer.beat(started(sandbox.id))
        self.assertEqual((sandbox.status, sandbox.pending_reason), ("running", ""))
        [update] = self.peer.take()
        self.assertEqual(
            update.update_container_description.sandbox_metadata, added.add_container.container.sandbox_metadata
        )
        self.peer.beat(started(sandbox.id))
        self.assertEqual(self.peer.take(), [])

    def test_termination_frees_ends_and_is_followed_by_a_removal(self) -> None:
        outcomes = {
            "FUNCTION_TIMEOUT": "Success(Timeout)",
            "UNKNOWN": "Failure(ContainerTerminated(Unknown))",
            "STARTUP_FAILED_INTERNAL_ERROR": "Failure(ContainerTerminated(StartupFailedInternalError))",
            "STARTUP_FAILED_BAD_IMAGE": "Failure(ContainerTerminated(StartupFailedBadImage))",
            "UNHEALTHY": "Failure(ContainerTerminated(Unhealthy))",
            "FUNCTION_CANCELLED": "Failure(ContainerTerminated(FunctionCancelled))",
            "OOM": "Failure(ContainerTerminated(Oom))",
            "PROCESS_CRASH": "Failure(ContainerTerminated(ProcessCrash))",
        }
        self.peer.register()
        free = self.engine.world.executors["executor-1"].free
        for reason, outcome in outcomes.items():
            sandbox = self.running_sandbox()
            self.peer.beat(terminated(sandbox.id, reason))
            self.assertEqual((sandbox.status, sandbox.outcome), ("terminated", outcome))
            self.assertEqual([c.remove_container.container_id for c in self.peer.take()], [sandbox.id])
        self.assertEqual(self.engine.world.executors["executor-1"].free, free)
        self.assertEqual(self.engine.world.containers, {})

    def test_unknown_ids_are_ignored(self) -> None:
        self.peer.register()
        self.peer.beat(started("nobody"), terminated("nobody", "OOM"))
        self.assertEqual(self.peer.take(), [])

    def test_another_executors_container_is_unknown(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        other = Peer(self.engine, "executor-2")
        other.register()
        other.beat(terminated(sandbox.id, "OOM"))
        self.assertEqual((sandbox.status, other.take()), ("running", []))

    def test_all_terminations_come_before_all_starts(self) -> None:
        self.peer.register()
        sandbox = self.engine.sandboxes.create("default", {})
        self.peer.beat(started(sandbox.id), terminated(sandbox.id, "OOM"), started(sandbox.id))
        self.assertEqual(sandbox.status, "terminated")

    def test_snapshot_answers_come_first(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        snapshot = self.engine.sandboxes.snapshot("default", sandbox.id)
        done = pb.SnapshotCompleted(
            container_id=sandbox.id, snapshot_id=snapshot.id, snapshot_uri="file:///blobs/s", size_bytes=5
        )
        self.peer.beat(terminated(sandbox.id, "FUNCTION_CANCELLED"), pb.CommandResponse(snapshot_completed=done))
        self.assertEqual((snapshot.status, snapshot.size_bytes, sandbox.status), ("completed", 5, "terminated"))
        self.assertIsNone(sandbox.outcome)

    def test_a_failed_snapshot_ends_the_sandbox_and_orders_its_removal(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        snapshot = self.engine.sandboxes.snapshot("default", sandbox.id)
        self.peer.take()
        failed = pb.SnapshotFailed(container_id=sandbox.id, snapshot_id=snapshot.id, error_message="no space")
        self.peer.beat(pb.CommandResponse(snapshot_failed=failed))
        self.assertEqual((snapshot.status, snapshot.error, sandbox.status), ("failed", "no space", "terminated"))
        self.assertEqual(kinds(self.peer.take()), ["remove_container"])

    def test_malformed_and_unknown_snapshot_answers_are_skipped(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        snapshot = self.engine.sandboxes.snapshot("default", sandbox.id)
        answers = [
            pb.SnapshotCompleted(snapshot_id="", snapshot_uri="x"),
            pb.SnapshotCompleted(snapshot_id=snapshot.id, snapshot_uri=""),
            pb.SnapshotCompleted(snapshot_id="unknown", snapshot_uri="x"),
        ]
        self.peer.beat(*[pb.CommandResponse(snapshot_completed=a) for a in answers], pb.CommandResponse())
        self.assertEqual(snapshot.status, "in_progress")
