"""Every REST route of namespaces, executors, sandboxes, snapshots and pools."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from indexify_dataplane import __version__
from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .peer import started, terminated
from .web import RestCase

NS = "/v1/namespaces/default"
NOW_MS = 1_700_000_000_000


class NamespaceTests(RestCase):
    def test_routes(self) -> Deferred[None]:
        async def body() -> None:
            bucket = {"name": "b", "blob_storage_bucket": "bucket"}
            await self.table(
                ("POST", "/namespaces", {"name": "default"}, 200, b""),
                ("POST", "/namespaces", {"name": "default"}, 200, b""),
                ("POST", "/namespaces", bucket, 400, b"blob storage region is required"),
                ("POST", "/namespaces", {**bucket, "blob_storage_region": "eu"}, 200, b""),
                ("POST", NS.replace("default", "by-use") + "/sandboxes", {}, 200, None),
                (
                    "GET",
                    "/namespaces",
                    None,
                    200,
                    {
                        "namespaces": [
                            {"name": name, "created_at": NOW_MS, "blob_storage_bucket": None}
                            for name in ("default", "b", "by-use")
                        ]
                    },
                ),
                (
                    "GET",
                    "/healthz",
                    None,
                    200,
                    {
                        "status": "ok",
                        "version": __version__,
                        "checks": {"database": "ok", "executor_manager": "ok"},
                    },
                ),
            )

        return Deferred.fromCoroutine(body())

    def test_executors(self) -> Deferred[None]:
        async def body() -> None:
            self.peer.beat()
            self.assertEqual((await self.ask("GET", "/internal/executors")).json(), [])
            self.peer.register(labels={"zone": "a"}, allowed_functions=[pb.AllowedFunction(namespace="default")])
            sandbox = self.engine.sandboxes.create("default", {})
            [executor] = (await self.ask("GET", "/internal/executors")).json()
            self.assertEqual(
                {name: executor[name] for name in ("id", "executor_version", "addr", "labels", "function_allowlist")},
                {
                    "id": "executor-1",
                    "executor_version": "0.3.0",
                    "addr": "host",
                    "labels": {"zone": "a"},
                    "function_allowlist": [{"namespace": "default", "application": None, "function": None}],
                },
            )
            self.assertEqual(executor["host_resources"]["cpu_count"], 4)
            self.assertEqual(executor["free_resources"]["cpu_ms_per_sec"], 3000)
            [container] = executor["containers"]
            self.assertEqual(
                (container["id"], container["state"], container["desired_state"], container["num_allocations"]),
                (sandbox.id, "pending", "running", 0),
            )

        return Deferred.fromCoroutine(body())


class GuardTests(RestCase):
    def test_json_bodies(self) -> Deferred[None]:
        async def body() -> None:
            for content, content_type, status in (
                (b"{}", "application/json", 200),
                (b"{}", "application/json; charset=utf-8", 200),
                (b"{}", "text/plain", 415),
                (b"{}", "application/x-www-form-urlencoded", 415),
                (b"{", "application/json", 400),
                (b"", "application/json", 400),
                (b"\xff", "application/json", 400),
                (b"[]", "application/json", 422),
                (b'{"timeout_secs": "soon"}', "application/json", 422),
                (b'{"timeout_secs": -1}', "application/json", 422),
                (b'{"exposed_ports": [70000]}', "application/json", 422),
                (b'{"resources": {"gpus": [{"count": 1, "model": "?"}]}}', "application/json", 400),
                (b'{"unknown": 1}', "application/json", 200),
            ):
                response = await self.ask("POST", NS + "/sandboxes", content, content_type=content_type)
                self.assertEqual(response.status, status, (content, content_type, response.body))
            self.assertEqual((await self.ask("POST", NS + "/sandboxes", b"{}")).status, 415)

        return Deferred.fromCoroutine(body())

    def test_hosts_and_origins(self) -> Deferred[None]:
        async def body() -> None:
            for host, status in (
                ("localhost:8900", 200),
                ("dev.localhost", 200),
                ("127.0.0.1:8900", 200),
                ("[::1]:8900", 200),
                ("192.168.1.4", 200),
                ("dev.example:8900", 200),
                ("evil.example", 403),
                ("localhost.evil.example", 403),
                ("[", 403),
            ):
                response = await self.ask("GET", "/namespaces", host=host)
                self.assertEqual(response.status, status, host)
                self.assertNotIn("access-control-allow-origin", response.headers)
            for origin, status in (("http://evil.example", 403), ("null", 403), ("http://localhost:8900", 415)):
                response = await self.ask(
                    "POST", "/namespaces", b"{}", host="localhost:8900", origin=origin, content_type="text/plain"
                )
                self.assertEqual(response.status, status, origin)

        return Deferred.fromCoroutine(body())

    def test_unknown_routes_methods_and_large_bodies(self) -> Deferred[None]:
        async def body() -> None:
            self.assertEqual((await self.ask("GET", "/nothing")).status, 404)
            wrong = await self.ask("DELETE", "/namespaces")
            self.assertEqual((wrong.status, wrong.headers["allow"]), (405, "GET, POST"))
            self.assertEqual((await self.ask("OPTIONS", "/namespaces")).status, 405)
            large = await self.ask("POST", NS + "/sandboxes", b" " * (11 << 20), content_type="application/json")
            self.assertEqual(large.status, 413)

        return Deferred.fromCoroutine(body())


class SandboxTests(RestCase):
    def test_from_creation_to_the_end(self) -> Deferred[None]:
        async def body() -> None:
            created = (await self.ask("POST", NS + "/sandboxes", {})).json()
            sandbox_id = created.pop("sandbox_id")
            self.assertEqual(created, {"status": "pending", "pending_reason": "scheduling"})
            path = f"{NS}/sandboxes/{sandbox_id}"
            info = {
                "id": sandbox_id,
                "namespace": "default",
                "image": "python:3.14-slim",
                "status": "pending",
                "pending_reason": "no_executors_available",
                "outcome": None,
                "created_at": NOW_MS,
                "container_id": None,
                "executor_id": None,
                "resources": {"cpus": 1.0, "memory_mb": 1024, "ephemeral_disk_mb": 1024, "disk_mb": 1024},
                "timeout_secs": 600,
                "sandbox_url": None,
                "pool_id": None,
                "allow_unauthenticated_access": False,
                "exposed_ports": None,
            }
            await self.table(("GET", path, None, 200, info))
            self.peer.register()
            placed = {"container_id": sandbox_id, "executor_id": "executor-1", "sandbox_url": "http://127.0.0.1:8095"}
            info.update(placed, pending_reason="waiting_for_container")
            await self.table(("GET", path, None, 200, info))
            self.peer.beat(started(sandbox_id))
            del info["pending_reason"]
            info["status"] = "running"
            await self.table(
                ("GET", path, None, 200, info),
                ("GET", NS + "/sandboxes", None, 200, {"sandboxes": [info]}),
                ("GET", "/v1/namespaces/other/sandboxes", None, 200, {"sandboxes": []}),
                ("GET", f"/v1/namespaces/other/sandboxes/{sandbox_id}", None, 404, b"Sandbox not found"),
                ("DELETE", path, None, 200, b""),
                ("DELETE", path, None, 200, b""),
                ("DELETE", NS + "/sandboxes/none", None, 404, b"Sandbox not found"),
                ("GET", NS + "/sandboxes/none", None, 404, b"Sandbox not found"),
            )
            gone = (await self.ask("GET", path)).json()
            self.assertEqual((gone["status"], gone["outcome"]), ("terminated", "Success(UserTerminated)"))

        return Deferred.fromCoroutine(body())

    def test_defaults_of_a_resources_object_and_other_fields(self) -> Deferred[None]:
        async def body() -> None:
            wish = {
                "resources": {},
                "network": {"deny_out": ["1.2.3.4/32"]},
                "allow_unauthenticated_proxy_access": True,
                "exposed_ports": [8080],
                "timeout_secs": 0,
            }
            sandbox_id = (await self.ask("POST", NS + "/sandboxes", wish)).json()["sandbox_id"]
            info = (await self.ask("GET", f"{NS}/sandboxes/{sandbox_id}")).json()
            self.assertEqual(
                info["resources"], {"cpus": 0.1, "memory_mb": 256, "ephemeral_disk_mb": 1024, "disk_mb": 1024}
            )
            policy = {"allow_internet_access": True, "allow_out": [], "deny_out": ["1.2.3.4/32"]}
            self.assertEqual(info["network_policy"], policy)
            self.assertEqual(
                (info["allow_unauthenticated_access"], info["exposed_ports"], info["timeout_secs"]), (True, [8080], 0)
            )

        return Deferred.fromCoroutine(body())

    def test_the_readmes_routes_below_an_application(self) -> Deferred[None]:
        async def body() -> None:
            base = NS + "/applications/test-app/sandboxes"
            sandbox_id = (await self.ask("POST", base, {"image": "python:3.14-slim"})).json()["sandbox_id"]
            other = (await self.ask("POST", NS + "/sandboxes", {})).json()["sandbox_id"]
            listed = (await self.ask("GET", base)).json()["sandboxes"]
            self.assertEqual([info["id"] for info in listed], [sandbox_id])
            self.assertEqual((await self.ask("GET", f"{base}/{other}")).status, 200)
            self.assertEqual((await self.ask("DELETE", f"{base}/{sandbox_id}")).status, 200)
            info = (await self.ask("GET", f"{NS}/sandboxes/{sandbox_id}")).json()
            self.assertEqual(info["status"], "terminated")

        return Deferred.fromCoroutine(body())

    def test_changing_ports(self) -> Deferred[None]:
        async def body() -> None:
            sandbox = self.engine.sandboxes.create("default", {"resources": {"disk_mb": 77}})
            path = f"{NS}/sandboxes/{sandbox.id}"
            changed = (await self.ask("PATCH", path, {"exposed_ports": [8080]})).json()
            self.assertEqual((changed["exposed_ports"], changed["allow_unauthenticated_access"]), ([8080], False))
            self.assertEqual(changed["resources"]["ephemeral_disk_mb"], 77)
            changed = (await self.ask("PATCH", path, {"allow_unauthenticated_access": True})).json()
            self.assertEqual((changed["exposed_ports"], changed["allow_unauthenticated_access"]), ([8080], True))
            self.engine.sandboxes.delete("default", sandbox.id)
            await self.table(
                ("PATCH", path, {"exposed_ports": []}, 400, b"Cannot change a terminated sandbox"),
                ("PATCH", path, {"image": "other"}, 422, None),
                ("PATCH", NS + "/sandboxes/none", {}, 404, b"Sandbox not found"),
            )

        return Deferred.fromCoroutine(body())

    def test_lookup(self) -> Deferred[None]:
        async def body() -> None:
            sandbox = self.engine.sandboxes.create("default", {"exposed_ports": [80]})
            told = {
                "id": sandbox.id,
                "namespace": "default",
                "status": "pending",
                "dataplane_api_address": None,
                "allow_unauthenticated_access": False,
                "exposed_ports": [80],
            }
            direct = f"/internal/v1/sandboxes/{sandbox.id}"
            within = f"/internal/v1/namespaces/default/sandboxes/{sandbox.id}"
            await self.table(("GET", direct, None, 200, told), ("GET", within, None, 200, told))
            self.peer.register()
            told["dataplane_api_address"] = "127.0.0.1:8095"
            await self.table(
                ("GET", direct, None, 200, told),
                ("GET", "/internal/v1/sandboxes/none", None, 404, b"Sandbox not found"),
                ("GET", within.replace("default", "other"), None, 404, b"Sandbox not found"),
            )

        return Deferred.fromCoroutine(body())


class SnapshotTests(RestCase):
    def test_routes(self) -> Deferred[None]:
        async def body() -> None:
            self.peer.register()
            sandbox = self.engine.sandboxes.create("default", {"image": "busybox"})
            path = f"{NS}/sandboxes/{sandbox.id}/snapshot"
            await self.table(
                ("POST", path, None, 400, b"Cannot snapshot a sandbox that is not yet running"),
                ("POST", NS + "/sandboxes/none/snapshot", None, 404, b"Sandbox not found"),
            )
            self.peer.beat(started(sandbox.id))
            await self.table(
                (
                    "POST", path, {"snapshot_type": "memory"}, 400,
                    b"Snapshots hold file systems; the memory of a sandbox cannot be part of one",
                ),
            )  # fmt: skip
            taken = await self.ask("POST", path, {"snapshot_type": "filesystem"})
            snapshot_id = taken.json()["snapshot_id"]
            self.assertEqual((taken.status, taken.json()["status"]), (202, "in_progress"))
            snap = {
                "id": snapshot_id,
                "namespace": "default",
                "sandbox_id": sandbox.id,
                "base_image": "busybox",
                "status": "in_progress",
                "created_at": NOW_MS,
            }
            await self.table(
                ("POST", path, None, 400, b"Sandbox is already being snapshotted"),
                ("GET", f"{NS}/snapshots/{snapshot_id}", None, 200, snap),
                ("POST", NS + "/sandboxes", {"snapshot_id": snapshot_id}, 400, b"Snapshot is not completed"),
                ("POST", NS + "/sandboxes", {"snapshot_id": "none"}, 404, b"Snapshot not found"),
            )
            done = pb.SnapshotCompleted(snapshot_id=snapshot_id, snapshot_uri="file:///blobs/s", size_bytes=9)
            self.peer.beat(pb.CommandResponse(snapshot_completed=done), terminated(sandbox.id, "FUNCTION_CANCELLED"))
            snap.update(status="completed", snapshot_uri="file:///blobs/s", size_bytes=9)
            await self.table(
                ("GET", NS + "/snapshots", None, 200, {"snapshots": [snap]}),
                ("GET", path + "s", None, 200, {"snapshots": [snap]}),
                ("GET", NS + "/sandboxes/none/snapshots", None, 404, b"Sandbox not found"),
                ("POST", path, None, 400, b"Cannot snapshot a terminated sandbox"),
                ("POST", NS + "/sandboxes", {"snapshot_id": snapshot_id}, 200, None),
                ("DELETE", f"{NS}/snapshots/{snapshot_id}", None, 200, b""),
                ("DELETE", f"{NS}/snapshots/{snapshot_id}", None, 404, b"Snapshot not found"),
                ("GET", f"{NS}/snapshots/{snapshot_id}", None, 404, f"Snapshot not found: {snapshot_id}".encode()),
            )

        return Deferred.fromCoroutine(body())


class PoolTests(RestCase):
    def test_routes(self) -> Deferred[None]:
        async def body() -> None:
            pools = NS + "/sandbox-pools"
            wish = {"image": "busybox", "max_containers": 2, "warm_containers": 1}
            for broken, status in (
                ({}, 422),
                ({"image": ""}, 400),
                ({"image": "x", "resources": {"cpus": 0}}, 400),
                ({"image": "x", "resources": {"memory_mb": 0}}, 400),
                ({"image": "x", "max_containers": 1, "warm_containers": 2}, 400),
            ):
                self.assertEqual((await self.ask("POST", pools, broken)).status, status, broken)
            created = (await self.ask("POST", pools, wish)).json()
            self.assertEqual(created["namespace"], "default")
            pool_id = created["pool_id"]
            path = f"{pools}/{pool_id}"
            pool = {
                "pool_id": pool_id,
                "namespace": "default",
                "image": "busybox",
                "resources": {"cpus": 1.0, "memory_mb": 1024, "ephemeral_disk_mb": 1024, "disk_mb": 1024},
                "min_containers": None,
                "max_containers": 2,
                "warm_containers": 1,
                "timeout_secs": 0,
                "created_at": 0,
                "allow_unauthenticated_access": False,
                "exposed_ports": None,
            }
            await self.table(
                ("GET", pools, None, 200, {"pools": [pool]}),
                ("GET", path, None, 200, {**pool, "containers": []}),
                ("GET", pools + "/none", None, 404, b"Sandbox pool not found"),
                ("PUT", pools + "/none", wish, 404, b"Sandbox pool not found"),
                ("PUT", path, {**wish, "image": ""}, 400, None),
                ("DELETE", pools + "/none", None, 404, b"Sandbox pool not found"),
                ("POST", pools + "/none/sandboxes", None, 404, b"Sandbox pool not found"),
            )
            self.peer.register()
            [command] = self.peer.take()
            warm = command.add_container.container.id
            self.peer.beat(started(warm))
            claimed = await self.ask("POST", path + "/sandboxes")
            sandbox_id = claimed.json()["sandbox_id"]
            info = (await self.ask("GET", f"{NS}/sandboxes/{sandbox_id}")).json()
            self.assertEqual((info["status"], info["container_id"], info["pool_id"]), ("running", warm, pool_id))
            containers = (await self.ask("GET", path)).json()["containers"]
            self.assertIn(
                {"id": warm, "state": "running", "sandbox_id": sandbox_id, "executor_id": "executor-1"}, containers
            )
            changed = {**wish, "max_containers": None, "warm_containers": 0, "timeout_secs": 5}
            pool.update(max_containers=None, warm_containers=0, timeout_secs=5)
            await self.table(("PUT", path, changed, 200, pool), ("DELETE", path, None, 409, None))
            self.engine.sandboxes.delete("default", sandbox_id)
            await self.table(("DELETE", path, None, 200, b""), ("GET", pools, None, 200, {"pools": []}))

        return Deferred.fromCoroutine(body())
