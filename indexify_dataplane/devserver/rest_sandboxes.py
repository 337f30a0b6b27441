"""REST routes of namespaces, executors, sandboxes, pools and snapshots, and the forms in which they are told."""

from __future__ import annotations

from typing import Any

from indexify_dataplane import __version__
from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .engine import Engine
from .errors import Refused
from .rest import Answer, Call, Pattern, Reply, as_json
from .sandboxes import GPU_MODELS, reason_text
from .shapes import Namespace, NewPool, NewSandbox, NewSnapshot, SandboxChange
from .state import Container, Executor, Pool, Sandbox, SandboxSpec, Snapshot

TENANT = "/v1/namespaces/{namespace}"
GPU_NAMES = {number: name for name, number in GPU_MODELS.items()}


class SandboxRoutes:
    """Binds the routes to an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sandboxes = engine.sandboxes

    def patterns(self) -> list[Pattern]:
        found = [
            Pattern("POST", "/namespaces", self.create_namespace),
            Pattern("GET", "/namespaces", self.list_namespaces),
            Pattern("GET", "/healthz", self.health),
            Pattern("GET", "/internal/executors", self.executors),
            Pattern("GET", "/internal/v1/sandboxes/{sandbox_id}", self.lookup),
            Pattern("GET", "/internal/v1/namespaces/{namespace}/sandboxes/{sandbox_id}", self.lookup),
            Pattern("GET", TENANT + "/snapshots", self.list_snapshots),
            Pattern("GET", TENANT + "/snapshots/{snapshot_id}", self.get_snapshot),
            Pattern("DELETE", TENANT + "/snapshots/{snapshot_id}", self.delete_snapshot),
            Pattern("POST", TENANT + "/sandbox-pools", self.create_pool),
            Pattern("GET", TENANT + "/sandbox-pools", self.list_pools),
            Pattern("GET", TENANT + "/sandbox-pools/{pool_id}", self.get_pool),
            Pattern("PUT", TENANT + "/sandbox-pools/{pool_id}", self.update_pool),
            Pattern("DELETE", TENANT + "/sandbox-pools/{pool_id}", self.delete_pool),
            Pattern("POST", TENANT + "/sandbox-pools/{pool_id}/sandboxes", self.create_from_pool),
        ]
        # The README creates sandboxes below an application, which only labels them.
        for base in (TENANT + "/sandboxes", TENANT + "/applications/{application}/sandboxes"):
            found += [
                Pattern("POST", base, self.create),
                Pattern("GET", base, self.list),
                Pattern("GET", base + "/{sandbox_id}", self.get),
                Pattern("PATCH", base + "/{sandbox_id}", self.change),
                Pattern("DELETE", base + "/{sandbox_id}", self.delete),
                Pattern("POST", base + "/{sandbox_id}/snapshot", self.snapshot),
                Pattern("GET", base + "/{sandbox_id}/snapshots", self.list_snapshots),
            ]
        return found

    # Namespaces, health, lookup

    def create_namespace(self, call: Call) -> Answer:
        self._sandboxes.create_namespace(call.shaped(Namespace))
        return Reply()

    def list_namespaces(self, call: Call) -> Answer:
        names = self._engine.world.namespaces
        return as_json(
            {
                "namespaces": [
                    {"name": name, "created_at": created_at, "blob_storage_bucket": None}
                    for name, created_at in names.items()
                ]
            }
        )

    def health(self, call: Call) -> Answer:
        checks = {"database": "ok", "executor_manager": "ok"}
        return as_json({"status": "ok", "version": __version__, "checks": checks})

    def executors(self, call: Call) -> Answer:
        return as_json([executor_json(executor) for executor in self._engine.fleet.registered()])

    def lookup(self, call: Call, sandbox_id: str, namespace: str | None = None) -> Answer:
        sandbox = self._engine.world.sandboxes.get(sandbox_id)
        if sandbox is None or namespace not in (None, sandbox.namespace):
            raise Refused(404, "Sandbox not found")
        return as_json(
            {
                "id": sandbox.id,
                "namespace": sandbox.namespace,
                "status": sandbox.status,
                "dataplane_api_address": self._address(sandbox),
                "allow_unauthenticated_access": sandbox.spec.allow_unauthenticated_access,
                "exposed_ports": sandbox.spec.exposed_ports,
            }
        )

    def _address(self, sandbox: Sandbox) -> str | None:
        executor = self._engine.fleet.known(sandbox.executor_id)
        return executor.identity.proxy_address or None if executor is not None else None

    # Sandboxes

    def create(self, call: Call, namespace: str, application: str | None = None) -> Answer:
        sandbox = self._sandboxes.create(namespace, call.shaped(NewSandbox), application)
        return self._created(sandbox)

    def _created(self, sandbox: Sandbox) -> Reply:
        return as_json({"sandbox_id": sandbox.id, "status": "pending", "pending_reason": "scheduling"})

    def list(self, call: Call, namespace: str, application: str | None = None) -> Answer:
        found = self._sandboxes.list_sandboxes(namespace, application)
        return as_json({"sandboxes": [self._info(sandbox) for sandbox in found]})

    def get(self, call: Call, namespace: str, sandbox_id: str, application: str | None = None) -> Answer:
        return as_json(self._info(self._sandboxes.get(namespace, sandbox_id)))

    def change(self, call: Call, namespace: str, sandbox_id: str, application: str | None = None) -> Answer:
        return as_json(self._info(self._sandboxes.change(namespace, sandbox_id, call.shaped(SandboxChange))))

    def delete(self, call: Call, namespace: str, sandbox_id: str, application: str | None = None) -> Answer:
        self._sandboxes.delete(namespace, sandbox_id)
        return Reply()

    def _info(self, sandbox: Sandbox) -> dict[str, Any]:
        address = self._address(sandbox)
        info = {
            "id": sandbox.id,
            "namespace": sandbox.namespace,
            "image": sandbox.spec.image,
            "status": sandbox.status,
            "pending_reason": sandbox.pending_reason,
            "outcome": sandbox.outcome,
            "created_at": sandbox.created_at,
            "container_id": sandbox.container_id,
            "executor_id": sandbox.executor_id,
            "resources": resources_json(sandbox.spec),
            "timeout_secs": sandbox.spec.timeout_secs,
            "sandbox_url": f"http://{address}" if address else None,
            "pool_id": sandbox.pool_id,
            "network_policy": sandbox.spec.network,
            "allow_unauthenticated_access": sandbox.spec.allow_unauthenticated_access,
            "exposed_ports": sandbox.spec.exposed_ports,
        }
        if sandbox.status != "pending":
            del info["pending_reason"]
        if sandbox.spec.network is None:
            del info["network_policy"]
        return info

    # Snapshots

    def snapshot(self, call: Call, namespace: str, sandbox_id: str, application: str | None = None) -> Answer:
        wish = call.shaped(NewSnapshot) if call.size else NewSnapshot()
        if wish.snapshot_type == "memory":
            raise Refused(400, "Snapshots hold file systems; the memory of a sandbox cannot be part of one")
        snapshot = self._sandboxes.snapshot(namespace, sandbox_id)
        return as_json({"snapshot_id": snapshot.id, "status": snapshot.status}, 202)

    def list_snapshots(
        self, call: Call, namespace: str, sandbox_id: str | None = None, application: str | None = None
    ) -> Answer:
        return as_json({"snapshots": [snapshot_json(s) for s in self._sandboxes.list_snapshots(namespace, sandbox_id)]})

    def get_snapshot(self, call: Call, namespace: str, snapshot_id: str) -> Answer:
        return as_json(snapshot_json(self._sandboxes.get_snapshot(namespace, snapshot_id)))

    def delete_snapshot(self, call: Call, namespace: str, snapshot_id: str) -> Answer:
        self._sandboxes.delete_snapshot(namespace, snapshot_id)
        return Reply()

    # Pools

    def create_pool(self, call: Call, namespace: str) -> Answer:
        pool = self._sandboxes.create_pool(namespace, call.shaped(NewPool))
        return as_json({"pool_id": pool.id, "namespace": namespace})

    def list_pools(self, call: Call, namespace: str) -> Answer:
        return as_json({"pools": [pool_json(pool) for pool in self._sandboxes.list_pools(namespace)]})

    def get_pool(self, call: Call, namespace: str, pool_id: str) -> Answer:
        pool = self._sandboxes.get_pool(namespace, pool_id)
        containers = [
            {"id": c.id, "state": c.state, "sandbox_id": c.sandbox_id, "executor_id": c.executor_id}
            for c in self._engine.world.containers.values()
            if c.is_sandbox and c.pool_id == pool_id
        ]
        return as_json({**pool_json(pool), "containers": containers})

    def update_pool(self, call: Call, namespace: str, pool_id: str) -> Answer:
        return as_json(pool_json(self._sandboxes.update_pool(namespace, pool_id, call.shaped(NewPool))))

    def delete_pool(self, call: Call, namespace: str, pool_id: str) -> Answer:
        self._sandboxes.delete_pool(namespace, pool_id)
        return Reply()

    def create_from_pool(self, call: Call, namespace: str, pool_id: str) -> Answer:
        return self._created(self._sandboxes.create_from_pool(namespace, pool_id))


def resources_json(spec: SandboxSpec) -> dict[str, Any]:
    """The resources with the disk under both of its names: newer SDKs insist on ``disk_mb``."""
    told = {name: spec.resources[name] for name in ("cpus", "memory_mb", "ephemeral_disk_mb")}
    return {**told, "disk_mb": told["ephemeral_disk_mb"]}


def snapshot_json(snapshot: Snapshot) -> dict[str, Any]:
    told = {
        "id": snapshot.id,
        "namespace": snapshot.namespace,
        "sandbox_id": snapshot.sandbox_id,
        "base_image": snapshot.spec.image,
        "status": snapshot.status,
        "error": snapshot.error,
        "snapshot_uri": snapshot.snapshot_uri,
        "size_bytes": snapshot.size_bytes,
        "created_at": snapshot.created_at,
    }
    return {name: value for name, value in told.items() if value is not None}


def pool_json(pool: Pool) -> dict[str, Any]:
    told = {
        "pool_id": pool.id,
        "namespace": pool.namespace,
        "image": pool.spec.image,
        "resources": resources_json(pool.spec),
        "min_containers": None,
        "max_containers": pool.max_containers,
        "warm_containers": pool.warm_containers,
        "timeout_secs": pool.spec.timeout_secs,
        "created_at": 0,
        "allow_unauthenticated_access": pool.spec.allow_unauthenticated_access,
        "exposed_ports": pool.spec.exposed_ports,
    }
    if pool.spec.network is not None:
        told["network_policy"] = pool.spec.network
    return told


def host_json(cpus: int, memory: int, disk: int, gpu: pb.GPUResources | None) -> dict[str, Any]:
    model = {"count": gpu.count, "model": GPU_NAMES.get(gpu.model, "unknown")} if gpu and gpu.count else None
    return {"cpu_count": cpus, "memory_bytes": memory, "disk_bytes": disk, "gpu": model}


def executor_json(executor: Executor) -> dict[str, Any]:
    identity = executor.identity
    host, free = identity.total_container_resources, executor.free
    free_gpu = pb.GPUResources(count=max(free.gpus, 0), model=host.gpu.model) if host.gpu.count else None
    return {
        "id": executor.id,
        "executor_version": identity.version,
        "function_allowlist": [
            {
                "namespace": entry.namespace if entry.HasField("namespace") else None,
                "application": entry.application_name if entry.HasField("application_name") else None,
                "function": entry.function_name if entry.HasField("function_name") else None,
            }
            for entry in identity.allowed_functions
        ]
        or None,
        "addr": identity.hostname,
        "labels": dict(identity.labels),
        "containers": [container_json(c) for c in executor.containers.values()],
        "server_only_containers": [],
        "host_resources": host_json(host.cpu_count, host.memory_bytes, host.disk_bytes, host.gpu),
        "free_resources": {
            "cpu_ms_per_sec": free.cpu_ms,
            "memory_bytes": free.memory,
            "disk_bytes": free.disk,
            "gpu": host_json(0, 0, 0, free_gpu)["gpu"],
        },
        "state": "running",
        "tombstoned": False,
        "state_hash": "",
        "clock": 0,
        "catalog_entry_name": identity.catalog_entry_name or None,
        "ready_for_teardown": False,
    }


def state_text(state: str, reason: int) -> str:
    return f"terminated({reason_text(reason)})" if state == "terminated" else state


def container_json(container: Container) -> dict[str, Any]:
    reference = container.description.function
    return {
        "id": container.id,
        "namespace": reference.namespace,
        "application_name": reference.application_name,
        "function_name": reference.function_name,
        "version": reference.application_version,
        "max_concurrency": container.description.max_concurrency,
        "state": state_text(container.state, container.reason),
        "desired_state": "running" if container.wanted else state_text("terminated", container.reason),
        "num_allocations": len(container.allocations),
    }
