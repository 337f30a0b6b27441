"""What REST clients can do with sandboxes, pools and snapshots, without HTTP.

Each action ends with placement and the commands that follow, and fails with Refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from twisted.logger import Logger

from .errors import Refused
from .sandboxes import GPU_MODELS, Sandboxes
from .shapes import (
    DEFAULT_IMAGE,
    PARTLY,
    RESTORED,
    Namespace,
    NewPool,
    NewSandbox,
    SandboxChange,
    SandboxResources,
    whole_sandbox,
)
from .snapshots import Snapshots
from .state import Pool, Sandbox, SandboxSpec, Snapshot, World

log = Logger()

S = TypeVar("S", bound=msgspec.Struct)
Body = Mapping[str, Any]


def shaped(body: Body | S, shape: type[S]) -> S:
    """``body`` as its shape. Refused 422 when a field is missing or wrong."""
    if isinstance(body, shape):
        return body
    try:
        return msgspec.convert(body, shape)
    except msgspec.ValidationError as error:
        raise Refused(422, str(error)) from error


def checked_resources(resources: SandboxResources, missing: Mapping[str, float] = PARTLY) -> dict[str, Any]:
    for gpu in resources.gpus[:1]:
        if gpu.model not in GPU_MODELS:
            raise Refused(400, f"unknown GPU model {gpu.model!r}; known are {', '.join(GPU_MODELS)}")
    found: dict[str, Any] = msgspec.to_builtins(resources)
    newer_name = found.pop("disk_mb")
    if newer_name is not None:
        found["ephemeral_disk_mb"] = newer_name
    return found | {name: value for name, value in missing.items() if found[name] is None}


class SandboxActions:
    """Namespaces, sandboxes, pools and snapshots."""

    def __init__(self, *, world: World, sandboxes: Sandboxes, snapshots: Snapshots, settle: Callable[[], None]) -> None:
        self._world = world
        self._sandboxes = sandboxes
        self._snapshots = snapshots
        self._settle = settle

    def create_namespace(self, body: Body | Namespace) -> None:
        namespace = shaped(body, Namespace)
        if namespace.blob_storage_bucket and not namespace.blob_storage_region:
            raise Refused(400, "blob storage region is required")
        self._world.touch_namespace(namespace.name)

    # Sandboxes

    def create(self, namespace: str, body: Body | NewSandbox, application: str | None = None) -> Sandbox:
        """A new sandbox, pending or already placed. ``application`` only labels it."""
        wish = shaped(body, NewSandbox)
        sandbox = self._sandboxes.create(namespace, self._spec(namespace, wish), application, None)
        self._settle()
        return sandbox

    def _spec(self, namespace: str, wish: NewSandbox) -> SandboxSpec:
        if wish.snapshot_id is None:
            resources = checked_resources(wish.resources or whole_sandbox())
        else:
            resources = checked_resources(wish.resources or SandboxResources(), RESTORED)
        spec = SandboxSpec(
            image=wish.image or DEFAULT_IMAGE,
            resources=resources,
            secret_names=wish.secret_names or [],
            timeout_secs=wish.timeout_secs,
            entrypoint=wish.entrypoint or [],
            network=msgspec.to_builtins(wish.network) if wish.network else None,
            allow_unauthenticated_access=bool(
                wish.allow_unauthenticated_access or wish.allow_unauthenticated_proxy_access
            ),
            exposed_ports=wish.exposed_ports,
        )
        if wish.snapshot_id is not None:
            snapshot = self._snapshots.find(namespace, wish.snapshot_id, "Snapshot not found")
            if snapshot.status != "completed":
                raise Refused(400, "Snapshot is not completed")
            self._inherit(spec, wish, snapshot)
        return spec

    def _inherit(self, spec: SandboxSpec, wish: NewSandbox, snapshot: Snapshot) -> None:
        """Image, entrypoint, secrets and resources unless given; a resource given as 0; the GPU when none is given."""
        origin = snapshot.spec
        spec.snapshot_uri = snapshot.snapshot_uri
        spec.image = wish.image or origin.image
        spec.entrypoint = origin.entrypoint if wish.entrypoint is None else wish.entrypoint
        spec.secret_names = origin.secret_names if wish.secret_names is None else wish.secret_names
        for name in ("cpus", "memory_mb", "ephemeral_disk_mb", "gpus"):
            spec.resources[name] = spec.resources[name] or origin.resources[name]

    def get(self, namespace: str, sandbox_id: str) -> Sandbox:
        return self._sandboxes.find(namespace, sandbox_id)

    def change(self, namespace: str, sandbox_id: str, body: Body | SandboxChange) -> Sandbox:
        """Open or close ports of a sandbox that is not over."""
        sandbox = self._sandboxes.find(namespace, sandbox_id)
        wish = shaped(body, SandboxChange)
        if sandbox.status == "terminated":
            raise Refused(400, "Cannot change a terminated sandbox")
        if wish.exposed_ports is not None:
            sandbox.spec.exposed_ports = wish.exposed_ports
        if wish.allow_unauthenticated_access is not None:
            sandbox.spec.allow_unauthenticated_access = wish.allow_unauthenticated_access
        return sandbox

    def list_sandboxes(self, namespace: str, application: str | None = None) -> list[Sandbox]:
        """The sandboxes of a namespace, terminated ones included; with ``application``, those created under it."""
        return [
            s
            for s in self._world.sandboxes.values()
            if s.namespace == namespace and (application is None or s.application == application)
        ]

    def delete(self, namespace: str, sandbox_id: str) -> None:
        self._sandboxes.delete(self._sandboxes.find(namespace, sandbox_id))
        self._settle()

    # Snapshots

    def snapshot(self, namespace: str, sandbox_id: str) -> Snapshot:
        snapshot = self._snapshots.start(self._sandboxes.find(namespace, sandbox_id))
        self._settle()
        return snapshot

    def get_snapshot(self, namespace: str, snapshot_id: str) -> Snapshot:
        return self._snapshots.find(namespace, snapshot_id, f"Snapshot not found: {snapshot_id}")

    def list_snapshots(self, namespace: str, sandbox_id: str | None = None) -> list[Snapshot]:
        """Of the whole namespace, or of one sandbox."""
        if sandbox_id is not None:
            self._sandboxes.find(namespace, sandbox_id)
        return [
            s
            for s in self._world.snapshots.values()
            if s.namespace == namespace and (sandbox_id is None or s.sandbox_id == sandbox_id)
        ]

    def delete_snapshot(self, namespace: str, snapshot_id: str) -> None:
        """Forget the snapshot and delete its blob, as far as that is possible from here."""
        snapshot = self._snapshots.find(namespace, snapshot_id, "Snapshot not found")
        self._snapshots.delete(snapshot)
        if snapshot.snapshot_uri is not None:
            try:
                self._world.blobs.delete(snapshot.snapshot_uri)
            except OSError as error:
                log.warn("snapshot's blob not deleted", snapshot_uri=snapshot.snapshot_uri, error=str(error))

    # Pools

    def create_pool(self, namespace: str, body: Body | NewPool) -> Pool:
        spec, wish = self._pool_spec(body)
        pool = Pool(self._world.fresh_id(), namespace, spec, wish.max_containers, wish.warm_containers or 0)
        self._sandboxes.create_pool(pool)
        self._settle()
        return pool

    def update_pool(self, namespace: str, pool_id: str, body: Body | NewPool) -> Pool:
        pool = self._sandboxes.find_pool(namespace, pool_id)
        spec, wish = self._pool_spec(body)
        pool.spec, pool.max_containers, pool.warm_containers = spec, wish.max_containers, wish.warm_containers or 0
        self._world.stirred = True
        self._settle()
        return pool

    def _pool_spec(self, body: Body | NewPool) -> tuple[SandboxSpec, NewPool]:
        wish = shaped(body, NewPool)
        resources = wish.resources or whole_sandbox()
        if not wish.image:
            raise Refused(400, "image must not be empty")
        if not resources.cpus or not resources.memory_mb:
            raise Refused(400, "resources.cpus and resources.memory_mb must be greater than 0")
        if wish.max_containers is not None and (wish.warm_containers or 0) > wish.max_containers:
            raise Refused(400, "warm_containers must not be greater than max_containers")
        spec = SandboxSpec(
            image=wish.image,
            resources=checked_resources(resources),
            secret_names=wish.secret_names or [],
            timeout_secs=wish.timeout_secs,
            entrypoint=wish.entrypoint or [],
            network=msgspec.to_builtins(wish.network) if wish.network else None,
            allow_unauthenticated_access=wish.allow_unauthenticated_access,
            exposed_ports=wish.exposed_ports,
        )
        return spec, wish

    def get_pool(self, namespace: str, pool_id: str) -> Pool:
        return self._sandboxes.find_pool(namespace, pool_id)

    def list_pools(self, namespace: str) -> list[Pool]:
        return [pool for pool in self._world.pools.values() if pool.namespace == namespace]

    def delete_pool(self, namespace: str, pool_id: str) -> None:
        self._sandboxes.delete_pool(self._sandboxes.find_pool(namespace, pool_id))
        self._settle()

    def create_from_pool(self, namespace: str, pool_id: str) -> Sandbox:
        """A sandbox that claims a warm container of the pool, or gets a new one, or waits for room."""
        pool = self._sandboxes.find_pool(namespace, pool_id)
        sandbox = self._sandboxes.create(namespace, pool.spec, None, pool)
        self._settle()
        return sandbox
