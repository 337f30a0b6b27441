"""Snapshots in the simulation: a blob store and a pool whose calls take time and die with the node, and the checks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from indexify_dataplane.blobs.base import BlobError, BlobNotFound, OpenUpload
from indexify_dataplane.snapshots.archive import Transfer, unpack
from indexify_dataplane.wireproto import executor_api_pb2 as pb

if TYPE_CHECKING:
    from .world import NodeClock, Simulation


class NodeGone(Exception):
    """The process is dead: nothing of this call happens any more."""


class SlowCalls:
    """A pool of one node process: calls take a while before and after their effect."""

    def __init__(self, world: Simulation, clock: NodeClock) -> None:
        self._world = world
        self._clock = clock

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """Nothing to stop."""

    def run(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred()
        random = self._world.random

        def settle(result: Any) -> None:
            if not answer.called:
                answer.callback(result)

        def work() -> None:
            try:
                result = call(*args, **kwargs)
            except NodeGone:
                return
            except Exception:
                result = Failure()
            self._clock.callLater(random.choice((0.0, 0.01, 3.0)), settle, result)

        self._clock.callLater(random.choice((0.0, 0.05, 2.0, 15.0)), work)
        return answer


class SimBlobs:
    """A store with open uploads. It may be unwell, and the node may die in the middle of a write."""

    urls_need_io = False
    near = True

    def __init__(self, world: Simulation) -> None:
        self._world = world
        self.blobs: dict[str, bytes] = {}
        self.uploads: dict[str, str] = {}
        self._number = 0

    def write(self, uri: str, pieces: Iterable[bytes]) -> int:
        self._number += 1
        upload_id = str(self._number)
        self.uploads[upload_id] = uri
        try:
            content = b"".join(pieces)
            if self._world.node_dies():
                raise NodeGone
            if self._world.random.random() < self._world.dice.snapshot_fails:
                self._world.snapshots.fault(uri)
                raise BlobError("the store is unwell", retryable=True)
        except NodeGone:
            raise
        except BaseException:
            del self.uploads[upload_id]
            raise
        self.blobs[uri] = content
        del self.uploads[upload_id]
        if self._world.node_dies():
            raise NodeGone
        return len(content)

    def read(self, uri: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        if uri not in self.blobs:
            raise BlobNotFound(f"{uri} is not there")
        yield self.blobs[uri]

    def delete(self, uri: str) -> None:
        self.blobs.pop(uri, None)

    def open_uploads(self, prefix: str) -> Sequence[OpenUpload]:
        return [OpenUpload(uri, upload_id) for upload_id, uri in self.uploads.items() if uri.startswith(prefix)]

    def abort_upload(self, uri: str, upload_id: str) -> None:
        self.uploads.pop(upload_id, None)

    def size(self, uri: str) -> int:
        raise NotImplementedError

    def read_url(self, uri: str, lifetime: int) -> str:
        raise NotImplementedError

    def create_upload(self, uri: str) -> str:
        raise NotImplementedError

    def part_url(self, uri: str, upload_id: str, number: int, lifetime: int) -> str:
        raise NotImplementedError

    def complete_upload(self, uri: str, upload_id: str, etags: Sequence[str]) -> None:
        raise NotImplementedError


class SnapshotChecks:
    """Remembers what was ordered and what the node said, and says what is wrong in the end."""

    def __init__(self, world: Simulation) -> None:
        self._world = world
        self.faults: Counter[str] = Counter()
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, set[bytes]] = defaultdict(set)
        self._told: dict[str, set[str]] = defaultdict(set)
        self._ended: set[str] = set()
        self.wrong: list[str] = []

    def fault(self, uri: str) -> None:
        self.faults[uri] += 1

    def order(self, sandbox: Any) -> None:
        world = self._world
        container = world.host.containers.get(sandbox.container_id)
        snapshot = world.engine.sandboxes.snapshot(sandbox.namespace, sandbox.id)
        world.explained[sandbox.id].add("snapshot")
        if container is not None:
            self.files[snapshot.id] = container.files
        world.say(f"snapshot {snapshot.id} of {sandbox.id}")

    def accepted(self, request: pb.HeartbeatRequest) -> None:
        """The server took these reports, in this order."""
        for response in request.command_responses:
            if response.HasField("container_terminated"):
                self._ended.add(response.container_terminated.container_id)
            for name in ("snapshot_completed", "snapshot_failed"):
                if response.HasField(name):
                    self._answered(name, getattr(response, name))

    def _answered(self, name: str, answer: Any) -> None:
        self._told[answer.snapshot_id].add(name)
        self.answers[answer.snapshot_id].add(answer.SerializeToString())
        if name == "snapshot_completed" and answer.container_id not in self._ended:
            self.wrong.append(f"snapshot {answer.snapshot_id} is complete before its container has ended")

    def check(self) -> list[str]:
        world = self._world
        wrong = list(self.wrong)
        for snapshot in world.engine.world.snapshots.values():
            if snapshot.status == "in_progress":
                wrong.append(f"snapshot {snapshot.id} never ended")
            elif snapshot.status == "completed":
                stored = world.blobs.blobs.get(snapshot.upload_uri)
                files = b"".join(unpack([stored], Transfer())) if stored is not None else None
                if files is None or files != self.files.get(snapshot.id):
                    wrong.append(f"snapshot {snapshot.id} is not what its container held: {files!r}")
            elif not self._may_fail(snapshot):
                wrong.append(f"snapshot {snapshot.id} failed for no reason: {snapshot.error}")
        for snapshot_id, bodies in self.answers.items():
            if world.crashes or world.restarts:
                # A new process does not remember a container that was removed; the server has the other answer.
                bodies = {each for each in bodies if b"container not found" not in each}
            if len(bodies) > 1:
                wrong.append(f"snapshot {snapshot_id} was answered differently: {sorted(bodies)}")
        wrong += [
            f"snapshot {snapshot.id} failed and is stored all the same"
            for snapshot in world.engine.world.snapshots.values()
            if self._told[snapshot.id] == {"snapshot_failed"} and snapshot.upload_uri in world.blobs.blobs
        ]
        if world.blobs.uploads:
            wrong.append(f"unfinished uploads are left: {sorted(world.blobs.uploads.values())}")
        return wrong

    def _may_fail(self, snapshot: Any) -> bool:
        """Its container had ended already, or the attempts were used up, or the server gave the executor up."""
        world = self._world
        why = world.explained[snapshot.container_id] | world.explained[snapshot.sandbox_id]
        tries = self.faults[snapshot.upload_uri] + self.faults[snapshot.container_id] + world.crashes + world.restarts
        return world.server_forgot or bool(why - {"snapshot"}) or tries >= world.rules.snapshot_attempts
