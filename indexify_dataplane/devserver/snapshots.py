"""Snapshots of sandboxes. A snapshot ends its sandbox, whether it succeeds or fails."""

from __future__ import annotations

from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .errors import Malformed, Refused
from .fleet import Fleet
from .sandboxes import Sandboxes
from .state import Sandbox, Snapshot, World


class Snapshots:
    """Starts snapshots and takes in what executors say about them."""

    def __init__(self, world: World, fleet: Fleet, sandboxes: Sandboxes) -> None:
        self._world = world
        self._fleet = fleet
        self._sandboxes = sandboxes

    def start(self, sandbox: Sandbox) -> Snapshot:
        refusals = {
            "snapshotting": "Sandbox is already being snapshotted",
            "terminated": "Cannot snapshot a terminated sandbox",
            "pending": "Cannot snapshot a sandbox that is not yet running",
        }
        if sandbox.status in refusals:
            raise Refused(400, refusals[sandbox.status])
        snapshot_id = self._world.fresh_id()
        base = self._world.snapshot_base.rstrip("/")
        snapshot = Snapshot(
            snapshot_id,
            sandbox.namespace,
            sandbox.id,
            sandbox.container_id or "",
            sandbox.executor_id or "",
            sandbox.spec,
            f"{base}/snapshots/{sandbox.namespace}/{snapshot_id}.tar.zst",
            self._world.now_ms(),
        )
        self._world.snapshots[snapshot_id] = snapshot
        sandbox.status = "snapshotting"
        self._fleet.snapshot(snapshot)
        return snapshot

    def find(self, namespace: str, snapshot_id: str, message: str) -> Snapshot:
        snapshot = self._world.snapshots.get(snapshot_id)
        if snapshot is None or snapshot.namespace != namespace:
            raise Refused(404, message)
        return snapshot

    def delete(self, snapshot: Snapshot) -> None:
        """Forget the snapshot; the caller deletes its blob."""
        del self._world.snapshots[snapshot.id]

    def in_progress(self, executor_id: str) -> list[Snapshot]:
        return [s for s in self._world.snapshots.values() if s.executor_id == executor_id and s.status == "in_progress"]

    def completed(self, report: pb.SnapshotCompleted) -> None:
        if not report.snapshot_id:
            raise Malformed("snapshot_completed: snapshot_id is empty")
        if not report.snapshot_uri:
            raise Malformed("snapshot_completed: snapshot_uri is empty")
        snapshot = self._world.snapshots.get(report.snapshot_id)
        if snapshot is not None and snapshot.status == "in_progress":
            snapshot.status, snapshot.snapshot_uri = "completed", report.snapshot_uri
            snapshot.size_bytes = report.size_bytes
            self._end_sandbox(snapshot)

    def failed(self, report: pb.SnapshotFailed) -> None:
        if not report.snapshot_id:
            raise Malformed("snapshot_failed: snapshot_id is empty")
        snapshot = self._world.snapshots.get(report.snapshot_id)
        if snapshot is not None and snapshot.status == "in_progress":
            snapshot.status, snapshot.error = "failed", report.error_message
            self._end_sandbox(snapshot)

    def executor_lost(self, executor_id: str) -> None:
        for snapshot in self.in_progress(executor_id):
            snapshot.status, snapshot.error = "failed", "executor removed"

    def _end_sandbox(self, snapshot: Snapshot) -> None:
        sandbox = self._world.sandboxes.get(snapshot.sandbox_id)
        if sandbox is not None:
            self._sandboxes.end(sandbox, None)
