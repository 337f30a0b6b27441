"""Sandboxes, pools and snapshots: descriptions, placing, claims and ends."""

from __future__ import annotations

from typing import Any

from indexify_dataplane.devserver.errors import Refused
from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .peer import GIB, Peer, host, kinds, started, terminated
from .test_registration import Case


class DescriptionTests(Case):
    def test_add_container_is_filled_as_the_real_server_fills_it(self) -> None:
        self.peer.register()
        wish = {
            "image": "busybox",
            "resources": {"cpus": 0.1234, "memory_mb": 64, "gpus": []},
            "timeout_secs": 5_000_000,
            "entrypoint": ["sleep", "9"],
            "network": {"allow_internet_access": False, "allow_out": ["10.0.0.0/8"]},
            "secret_names": ["never-sent"],
        }
        sandbox = self.engine.sandboxes.create("ns", wish)
        [command] = self.peer.take()
        wanted = pb.ContainerDescription(
            id=sandbox.id,
            function=pb.FunctionRef(
                namespace="ns", application_name="", function_name=sandbox.id, application_version=""
            ),
            initialization_timeout_ms=2**32 - 1,
            allocation_timeout_ms=2**32 - 1,
            resources=pb.ContainerResources(cpu_ms_per_sec=124, memory_bytes=64 << 20, disk_bytes=1024 << 20),
            max_concurrency=1,
            container_type=pb.CONTAINER_TYPE_SANDBOX,
            sandbox_metadata=pb.SandboxMetadata(
                image="busybox",
                timeout_secs=5_000_000,
                entrypoint=["sleep", "9"],
                network_policy=pb.NetworkPolicy(allow_internet_access=False, allow_out=["10.0.0.0/8"]),
                sandbox_id=sandbox.id,
            ),
        )
        self.assertEqual(command.add_container.container, wanted)
        self.assertRegex(sandbox.id, r"^[0-9a-z]{21}$")

    def test_no_timeout_is_left_unset(self) -> None:
        self.peer.register()
        self.engine.sandboxes.create("ns", {"timeout_secs": 0})
        [command] = self.peer.take()
        description = command.add_container.container
        self.assertFalse(description.sandbox_metadata.HasField("timeout_secs"))
        self.assertEqual(description.initialization_timeout_ms, 0)

    def test_ids_repeat_with_the_dice(self) -> None:
        from .peer import make_engine

        ids = []
        for _ in range(2):
            engine, _ = make_engine()
            ids.append(engine.sandboxes.create("ns", {}).id)
            engine.close()
        self.assertEqual(*ids)


class PlacingTests(Case):
    def test_reasons_for_waiting(self) -> None:
        sandbox = self.engine.sandboxes.create("default", {"resources": {"cpus": 5}})
        self.assertEqual(sandbox.pending_reason, "no_executors_available")
        self.peer.register()
        self.assertEqual(sandbox.pending_reason, "no_resources_available")
        big = Peer(self.engine, "executor-2")
        big.register(resources=host(cpus=8))
        self.assertEqual((sandbox.pending_reason, sandbox.executor_id), ("waiting_for_container", "executor-2"))

    def test_freed_resources_are_given_to_those_who_wait(self) -> None:
        self.peer.register()
        first, second = (self.engine.sandboxes.create("default", {"resources": {"cpus": 4}}) for _ in range(2))
        self.assertEqual(second.pending_reason, "no_resources_available")
        self.engine.sandboxes.delete("default", first.id)
        # Only the report that it is dead frees what it uses.
        self.assertEqual(second.pending_reason, "no_resources_available")
        self.peer.beat(terminated(first.id, "FUNCTION_CANCELLED"))
        self.assertEqual(second.pending_reason, "waiting_for_container")

    def test_an_executor_with_an_allowlist_takes_only_what_it_names(self) -> None:
        self.peer.register(allowed_functions=[pb.AllowedFunction(namespace="other")])
        sandbox = self.engine.sandboxes.create("default", {})
        self.assertEqual(sandbox.pending_reason, "no_resources_available")
        other = self.engine.sandboxes.create("other", {})
        self.assertEqual(other.executor_id, "executor-1")

    def test_a_dedicated_executor_takes_no_sandboxes(self) -> None:
        entry = pb.AllowedFunction(namespace="default", application_name="app", function_name="f")
        self.peer.register(allowed_functions=[entry])
        sandbox = self.engine.sandboxes.create("default", {})
        self.assertEqual(sandbox.pending_reason, "no_resources_available")

    def test_gpus_are_matched_by_model_and_count(self) -> None:
        gpu = host()
        gpu.gpu.count, gpu.gpu.model = 2, pb.GPU_MODEL_NVIDIA_H100_80GB
        self.peer.register(resources=gpu)
        sandboxes = [
            self.engine.sandboxes.create(
                "default", {"resources": {"cpus": 0.1, "gpus": [{"count": count, "model": model}]}}
            )
            for count, model in ((1, "H100"), (1, "T4"), (2, "H100"), (1, "H100"))
        ]
        placed = [sandbox.executor_id is not None for sandbox in sandboxes]
        self.assertEqual(placed, [True, False, False, True])
        [command, _] = self.peer.take()
        self.assertEqual(command.add_container.container.resources.gpu.model, pb.GPU_MODEL_NVIDIA_H100_80GB)
        with self.assertRaises(Refused):
            self.engine.sandboxes.create("default", {"resources": {"gpus": [{"count": 1, "model": "Z1"}]}})

    def test_load_is_spread(self) -> None:
        peers = [Peer(self.engine, f"executor-{number}") for number in range(3)]
        for peer in peers:
            peer.register()
        placed = [self.engine.sandboxes.create("default", {}).executor_id for _ in range(6)]
        self.assertEqual(sorted(placed), sorted([peer.id for peer in peers] * 2))


class DeletionTests(Case):
    def test_a_deleted_sandbox_is_over_at_once_and_its_container_ordered_away(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        self.engine.sandboxes.delete("default", sandbox.id)
        self.assertEqual((sandbox.status, sandbox.outcome), ("terminated", "Success(UserTerminated)"))
        self.assertEqual(kinds(self.peer.take()), ["remove_container"])
        self.engine.sandboxes.delete("default", sandbox.id)
        self.assertEqual(self.peer.take(), [])
        self.peer.beat(terminated(sandbox.id, "FUNCTION_CANCELLED"))
        self.assertEqual(sandbox.outcome, "Success(UserTerminated)")

    def test_one_that_was_never_placed_needs_no_command(self) -> None:
        sandbox = self.engine.sandboxes.create("default", {})
        self.engine.sandboxes.delete("default", sandbox.id)
        self.peer.register()
        self.assertEqual(self.peer.take(), [])

    def test_a_start_reported_after_the_deletion_does_not_revive(self) -> None:
        self.peer.register()
        sandbox = self.engine.sandboxes.create("default", {})
        self.engine.sandboxes.delete("default", sandbox.id)
        self.peer.take()
        self.peer.beat(started(sandbox.id))
        self.assertEqual(sandbox.status, "terminated")
        # A touched container that should be gone is ordered away again.
        self.assertEqual(kinds(self.peer.take()), ["remove_container"])

    def test_while_snapshotting_the_snapshot_goes_on(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        snapshot = self.engine.sandboxes.snapshot("default", sandbox.id)
        self.engine.sandboxes.delete("default", sandbox.id)
        self.assertEqual((sandbox.status, kinds(self.peer.take())), ("terminated", ["snapshot_container"]))
        done = pb.SnapshotCompleted(container_id=sandbox.id, snapshot_id=snapshot.id, snapshot_uri="file:///blobs/x")
        self.peer.beat(pb.CommandResponse(snapshot_completed=done))
        self.assertEqual(snapshot.status, "completed")
        self.assertEqual(kinds(self.peer.take()), ["remove_container"])


class SnapshotTests(Case):
    def completed_snapshot(self, **wish: Any) -> Any:
        self.peer.register()
        sandbox = self.running_sandbox(**wish)
        snapshot = self.engine.sandboxes.snapshot("default", sandbox.id)
        done = pb.SnapshotCompleted(container_id=sandbox.id, snapshot_id=snapshot.id, snapshot_uri="file:///blobs/x")
        self.peer.beat(pb.CommandResponse(snapshot_completed=done), terminated(sandbox.id, "FUNCTION_CANCELLED"))
        self.peer.take()
        return snapshot

    def test_the_command_names_where_to_upload(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        snapshot = self.engine.sandboxes.snapshot("default", sandbox.id)
        [command] = self.peer.take()
        order = pb.SnapshotContainer(
            container_id=sandbox.id,
            snapshot_id=snapshot.id,
            upload_uri=f"file:///blobs/snapshots/default/{snapshot.id}.tar.zst",
        )
        self.assertEqual(command.snapshot_container, order)

    def test_only_a_running_sandbox_can_be_snapshotted(self) -> None:
        self.peer.register()
        pending = self.engine.sandboxes.create("default", {})
        running = self.running_sandbox()
        self.engine.sandboxes.snapshot("default", running.id)
        dead = self.running_sandbox()
        self.engine.sandboxes.delete("default", dead.id)
        for sandbox, message in (
            (pending, "Cannot snapshot a sandbox that is not yet running"),
            (running, "Sandbox is already being snapshotted"),
            (dead, "Cannot snapshot a terminated sandbox"),
        ):
            refusal = self.assertRaises(Refused, self.engine.sandboxes.snapshot, "default", sandbox.id)
            self.assertEqual((refusal.status, refusal.message), (400, message))

    def test_what_a_restored_sandbox_inherits(self) -> None:
        snapshot = self.completed_snapshot(
            image="busybox", entrypoint=["a"], timeout_secs=77, network={}, resources={"cpus": 2.0, "memory_mb": 512}
        )
        restored = self.engine.sandboxes.create(
            "default", {"snapshot_id": snapshot.id, "resources": {"cpus": 0, "memory_mb": 128}}
        )
        spec = restored.spec
        self.assertEqual((spec.image, spec.entrypoint, spec.timeout_secs, spec.network), ("busybox", ["a"], 600, None))
        self.assertEqual((spec.resources["cpus"], spec.resources["memory_mb"]), (2.0, 128))
        [command] = self.peer.take()
        self.assertEqual(command.add_container.container.sandbox_metadata.snapshot_uri, "file:///blobs/x")

        own = self.engine.sandboxes.create(
            "default", {"snapshot_id": snapshot.id, "image": "mine", "entrypoint": [], "secret_names": ["s"]}
        )
        self.assertEqual((own.spec.image, own.spec.entrypoint, own.spec.secret_names), ("mine", [], ["s"]))
        self.assertEqual((own.spec.resources["cpus"], own.spec.resources["memory_mb"]), (2.0, 512))
        smaller = self.engine.sandboxes.create("default", {"snapshot_id": snapshot.id, "resources": {"cpus": 0.5}})
        self.assertEqual((smaller.spec.resources["cpus"], smaller.spec.resources["memory_mb"]), (0.5, 512))

    def test_only_a_completed_snapshot_can_be_restored(self) -> None:
        self.peer.register()
        sandbox = self.running_sandbox()
        snapshot = self.engine.sandboxes.snapshot("default", sandbox.id)
        refusal = self.assertRaises(Refused, self.engine.sandboxes.create, "default", {"snapshot_id": snapshot.id})
        self.assertEqual((refusal.status, refusal.message), (400, "Snapshot is not completed"))
        refusal = self.assertRaises(Refused, self.engine.sandboxes.create, "default", {"snapshot_id": "none"})
        self.assertEqual((refusal.status, refusal.message), (404, "Snapshot not found"))

    def test_deleting_a_snapshot_deletes_its_blob(self) -> None:
        snapshot = self.completed_snapshot()
        self.engine.world.blobs.contents["file:///blobs/x"] = b"..."  # type: ignore[attr-defined]
        self.engine.sandboxes.delete_snapshot("default", snapshot.id)
        self.assertEqual(self.engine.world.blobs.contents, {})  # type: ignore[attr-defined]


class PoolTests(Case):
    def pool(self, **wish: Any) -> Any:
        return self.engine.sandboxes.create_pool("default", {"image": "busybox", "warm_containers": 2, **wish})

    def warm(self) -> list[pb.ContainerDescription]:
        added = [c.add_container.container for c in self.peer.take()]
        self.peer.beat(*[started(description.id) for description in added])
        return added

    def test_warm_containers_carry_the_pool_and_no_sandbox(self) -> None:
        self.peer.register()
        pool = self.pool()
        for description in self.warm():
            self.assertEqual(description.function.function_name, f"pool:{pool.id}")
            self.assertEqual(description.pool_id, pool.id)
            self.assertFalse(description.sandbox_metadata.HasField("sandbox_id"))
        # A warm container that became ready is nobody's sandbox: nothing more is said about it.
        self.assertEqual(self.peer.take(), [])

    def test_claiming_a_running_container_runs_at_once_and_refills(self) -> None:
        self.peer.register()
        pool = self.pool(timeout_secs=33)
        ids = {description.id for description in self.warm()}
        sandbox = self.engine.sandboxes.create_from_pool("default", pool.id)
        self.assertEqual((sandbox.status, sandbox.container_id in ids), ("running", True))
        update, addition = self.peer.take()
        claimed = update.update_container_description
        self.assertEqual(
            (claimed.container_id, claimed.sandbox_metadata.sandbox_id, claimed.sandbox_metadata.timeout_secs),
            (sandbox.container_id, sandbox.id, 33),
        )
        self.assertEqual(addition.add_container.container.pool_id, pool.id)
        # The executor answers a claim with ContainerStarted; that changes nothing any more.
        self.peer.beat(started(sandbox.container_id))
        self.assertEqual(self.peer.take(), [])

    def test_claiming_a_pending_container_repeats_add_container_with_the_sandbox(self) -> None:
        self.peer.register()
        pool = self.pool(warm_containers=1, max_containers=1)
        [first] = self.peer.take()
        sandbox = self.engine.sandboxes.create_from_pool("default", pool.id)
        [second] = self.peer.take()
        self.assertEqual(second.add_container.container.id, first.add_container.container.id)
        self.assertEqual(second.add_container.container.sandbox_metadata.sandbox_id, sandbox.id)
        self.peer.beat(started(first.add_container.container.id))
        self.assertEqual(sandbox.status, "running")

    def test_running_containers_are_claimed_before_pending_ones(self) -> None:
        self.peer.register()
        pool = self.pool()
        _, second = self.peer.take()
        ready = second.add_container.container.id
        self.peer.beat(started(ready))
        self.assertEqual(self.engine.sandboxes.create_from_pool("default", pool.id).container_id, ready)

    def test_without_warm_containers_one_is_made_for_the_sandbox(self) -> None:
        self.peer.register()
        pool = self.pool(warm_containers=0)
        sandbox = self.engine.sandboxes.create_from_pool("default", pool.id)
        [command] = self.peer.take()
        description = command.add_container.container
        self.assertEqual((description.id, description.pool_id), (sandbox.id, pool.id))
        self.assertEqual(description.sandbox_metadata.sandbox_id, sandbox.id)

    def test_a_full_pool_lets_sandboxes_wait(self) -> None:
        self.peer.register()
        pool = self.pool(warm_containers=1, max_containers=1)
        self.warm()
        first, second = (self.engine.sandboxes.create_from_pool("default", pool.id) for _ in range(2))
        self.assertEqual(second.pending_reason, "pool_at_capacity")
        self.engine.sandboxes.delete("default", first.id)
        self.peer.beat(terminated(first.container_id, "FUNCTION_CANCELLED"))
        self.assertEqual(second.pending_reason, "waiting_for_container")

    def test_shrinking_and_deleting_remove_what_is_not_claimed(self) -> None:
        self.peer.register()
        pool = self.pool(warm_containers=3)
        self.warm()
        self.engine.sandboxes.update_pool("default", pool.id, {"image": "busybox", "warm_containers": 1})
        self.assertEqual(kinds(self.peer.take()), ["remove_container"] * 2)
        sandbox = self.engine.sandboxes.create_from_pool("default", pool.id)
        refusal = self.assertRaises(Refused, self.engine.sandboxes.delete_pool, "default", pool.id)
        self.assertEqual(refusal.status, 409)
        self.engine.sandboxes.delete("default", sandbox.id)
        self.peer.take()
        self.engine.sandboxes.delete_pool("default", pool.id)
        self.assertEqual(set(kinds(self.peer.take())), {"remove_container"})

    def test_a_container_that_cannot_start_is_not_tried_again_at_once(self) -> None:
        self.peer.register()
        self.pool(warm_containers=1)
        waits = []
        for _ in range(4):
            [command] = [c for c in self.peer.take() if c.HasField("add_container")]
            self.peer.beat(terminated(command.add_container.container.id, "STARTUP_FAILED_BAD_IMAGE"))
            waited = 0
            while "add_container" not in kinds(self.engine.world.executors["executor-1"].commands.prefix()):
                self.clock.advance(1)
                self.peer.beat()
                waited += 1
            waits.append(waited)
        self.assertEqual(waits, [1, 2, 4, 8])

    def test_reported_warm_containers_of_a_pool_are_adopted(self) -> None:
        from .peer import state

        self.peer.register()
        pool = self.pool(warm_containers=1)
        [description] = self.warm()
        self.engine.restart(durable=True)
        self.peer.register(state(description, "running"))
        sandbox = self.engine.sandboxes.create_from_pool("default", pool.id)
        self.assertEqual((sandbox.container_id, sandbox.status), (description.id, "running"))


class ScaleTests(Case):
    def test_a_thousand_sandboxes_come_and_go(self) -> None:
        self.peer.register(resources=host(cpus=10_000, memory=100_000 * GIB, disk=100_000 * GIB))
        sandboxes = [self.engine.sandboxes.create("default", {}) for _ in range(1000)]
        added = self.peer.take()
        while len(added) < 1000:
            added += self.peer.take()
        self.peer.beat(*[started(sandbox.id) for sandbox in sandboxes])
        for sandbox in sandboxes:
            self.engine.sandboxes.delete("default", sandbox.id)
        self.peer.take()
        self.peer.beat(*[terminated(sandbox.id, "FUNCTION_CANCELLED") for sandbox in sandboxes])
        self.peer.take()
        self.assertEqual(self.engine.world.containers, {})
        self.assertEqual(self.engine.world.executors["executor-1"].used.cpu_ms, 0)
