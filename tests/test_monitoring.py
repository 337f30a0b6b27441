"""The monitoring port and the control socket, over real sockets."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path
from typing import Any

from attrs import evolve, frozen
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint, connectProtocol
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from indexify_dataplane import node_gauges
from indexify_dataplane.control_socket import ControlSocket, ControlSocketError
from indexify_dataplane.core.model import Allocation, AllocationSpec, Executing, FunctionRef, Waiting
from indexify_dataplane.leaks.found import Found, Listing
from indexify_dataplane.metrics import Metrics
from indexify_dataplane.monitoring import Answers, Check, Monitoring

from .monitoring_view import SECRET, View, node


@frozen
class Reply:
    status: int
    headers: dict[str, str]
    body: str


class Exchange(Protocol):
    """Sends one request and collects bytes until the peer closes."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.data = b""
        self.closed: Deferred[bytes] = Deferred()

    def connectionMade(self) -> None:
        self.transport.write(self.request)  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Any = None) -> None:
        self.closed.callback(self.data)


async def ask(endpoint: Any, method: str, path: str) -> Reply:
    request = f"{method} {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n"
    exchange = await connectProtocol(endpoint, Exchange(request.encode()))
    head, _, body = (await exchange.closed).partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Reply(int(first.split()[1]), headers, body.decode())


class MonitoringTest(TestCase):
    timeout = 20

    def setUp(self) -> None:
        self.view, self.metrics, self.clock = View(), Metrics(), Clock()
        self.clock.advance(100.0)
        self.monitoring = self.make()
        return Deferred.fromCoroutine(self.open())  # type: ignore[return-value]

    def make(self, port: int = 0) -> Monitoring:
        return Monitoring(
            reactor=reactor,
            host="127.0.0.1",
            port=port,
            view=self.view,
            metrics=self.metrics,
            clock=self.clock,
            wall=lambda: 1_700_000_100.0,
        )

    async def open(self) -> None:
        host, self.port = await self.monitoring.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.monitoring.stop()))
        self.endpoint = TCP4ClientEndpoint(reactor, host, self.port)

    async def get(self, path: str, method: str = "GET") -> Reply:
        return await ask(self.endpoint, method, path)

    async def test_startup_probe(self) -> None:
        reply = await self.get("/monitoring/startup")
        self.assertEqual((reply.status, reply.body), (503, '{"status":"nok"}'))
        self.view.answered = True
        reply = await self.get("/monitoring/startup")
        self.assertEqual((reply.status, reply.body), (200, '{"status":"ok"}'))
        self.assertEqual(reply.headers["content-type"], "application/json")

    async def test_heartbeat_probe(self) -> None:
        checker = '"checker":"DataplaneHealthChecker"}'
        reply = await self.get("/monitoring/health")
        self.assertEqual(
            (reply.status, reply.body), (503, '{"status":"nok","message":"heartbeat unhealthy",' + checker)
        )
        self.view.is_healthy = True
        reply = await self.get("/monitoring/health")
        self.assertEqual((reply.status, reply.body), (200, '{"status":"ok","message":"Successful",' + checker))

    async def test_ready_tells_every_reason(self) -> None:
        self.view.conditions = [Check("link", True), Check("store", False, "disk full"), Check("poll_commands", False)]
        reply = await self.get("/ready")
        self.assertEqual(reply.status, 503)
        self.assertEqual(
            json.loads(reply.body),
            {
                "ready": False,
                "reasons": ["store: disk full", "poll_commands: not ok"],
                "checks": {"link": True, "store": False, "poll_commands": False},
            },
        )
        self.assertEqual((await self.get("/health")).status, 200)
        self.view.conditions = [Check("link", True)]
        self.assertEqual((await self.get("/ready")).status, 200)

    async def test_state_routes_before_anything_happened(self) -> None:
        reported, desired = await self.get("/state/reported"), await self.get("/state/desired")
        self.assertEqual((reported.status, reported.body), (200, "No state reported so far"))
        self.assertEqual((desired.status, desired.body), (200, "No desired state received from Server yet"))
        self.assertEqual(json.loads((await self.get("/state")).body)["containers"], [])

    async def test_state_routes_with_containers(self) -> None:
        self.view.now_node = node()
        self.view.summary = "executor_id=exec-1 full_state=true size_bytes=5"
        self.view.positions = {"commands": 12, "results": None}
        self.assertEqual((await self.get("/state/reported")).body, self.view.summary)
        state = json.loads((await self.get("/state")).body)
        self.assertEqual((state["executor_id"], state["uptime_secs"]), ("exec-1", 100.0))
        found = {container["id"]: container for container in state["containers"]}
        self.assertEqual(found["c-run"]["since"], "2023-11-14T22:14:50.000Z")
        self.assertEqual(found["c-run"]["expires_at"], "2023-11-14T22:15:50.000Z")
        self.assertEqual((found["c-run"]["state"], found["c-run"]["http_address"]), ("running", "127.0.0.1:2"))
        self.assertEqual((found["c-dead"]["state"], found["c-dead"]["reason"]), ("terminated", "oom"))
        self.assertEqual(found["c-fn"]["function"], "ns:app:<b>fn:v1")
        desired = json.loads((await self.get("/state/desired")).body)
        self.assertEqual([container["id"] for container in desired["containers"]], ["c-fn", "c-run"])
        self.assertEqual(desired["cursors"], {"commands": 12, "results": None})

    async def test_no_route_tells_a_secret(self) -> None:
        self.view.now_node = node()
        for path in ("/", "/state", "/state/desired", "/state/reported", "/ready", "/metrics"):
            self.assertNotIn(SECRET, (await self.get(path)).body, path)

    async def test_status_page_escapes(self) -> None:
        self.view.now_node = node()
        self.view.conditions = [Check("link", False, "<script>")]
        reply = await self.get("/")
        self.assertEqual(reply.headers["content-type"], "text/html; charset=utf-8")
        self.assertIn("ns:app:&lt;b&gt;fn:v1", reply.body)
        self.assertIn("link: &lt;script&gt;", reply.body)

    async def test_methods_and_paths(self) -> None:
        whole = await self.get("/monitoring/health")
        head = await self.get("/monitoring/health", "HEAD")
        self.assertEqual((head.status, head.body), (503, ""))
        self.assertEqual(head.headers["content-length"], str(len(whole.body)))
        for path in ("/", "/health", "/state", "/metrics"):
            reply = await self.get(path, "POST")
            self.assertEqual((reply.status, reply.body, reply.headers["allow"]), (405, "", "GET, HEAD"), path)
        for path in ("/nothing", "/state/", "/health/x", "/drain"):
            reply = await self.get(path)
            self.assertEqual((reply.status, reply.body), (404, ""), path)

    async def test_metrics_in_the_text_format(self) -> None:
        self.metrics.counter("containers.terminated", container_type="sandbox", reason='a"b\n').add(3)
        self.metrics.counter("heartbeat.success")
        for value in (0.02, 0.3, 0.3, 99999):
            self.metrics.histogram("sandbox.startup_latency_seconds").observe(value)
        self.view.now_node = node()
        node_gauges.register(self.metrics, self.view.node)
        reply = await self.get("/metrics")
        self.assertEqual(reply.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8")
        samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(reply.body)
            for sample in family.samples
        }
        prefix = "indexify_dataplane_"
        ended = (("container_type", "sandbox"), ("reason", 'a"b\n'))
        self.assertEqual(samples[prefix + "containers_terminated_total", ended], 3)
        self.assertEqual(samples[prefix + "heartbeat_success_total", ()], 0)
        name = prefix + "sandbox_startup_latency_seconds"
        self.assertEqual(samples[name + "_bucket", (("le", "0.025"),)], 1)
        self.assertEqual(samples[name + "_bucket", (("le", "0.5"),)], 3)
        self.assertEqual(samples[name + "_bucket", (("le", "+Inf"),)], 4)
        self.assertEqual(samples[name + "_count", ()], 4)
        self.assertAlmostEqual(samples[name + "_sum", ()], 99999.62)
        self.assertEqual(samples[prefix + "containers_running_sandboxes", ()], 1)
        self.assertEqual(samples[prefix + "containers_pending_functions", ()], 1)
        self.assertEqual(samples[prefix + "function_executors_with_state", (("state", "starting"),)], 1)
        self.assertGreater(samples["process_resident_memory_bytes", ()], 1 << 20)
        self.assertIn("# TYPE indexify_dataplane_containers_count gauge", reply.body)
        self.assertEqual((await self.get("/monitoring/metrics")).status, 200)
        allocation = AllocationSpec("a", "c-fn", FunctionRef(), "call", "request")
        self.view.now_node = evolve(
            self.view.now_node,
            allocations=self.view.now_node.allocations.update(
                a=Allocation(allocation, Executing(1.0)), b=Allocation(allocation, Waiting(1.0))
            ),
        )
        body = (await self.get("/metrics")).body
        self.assertIn("indexify_dataplane_allocation_runs_in_progress 1.0\n", body)
        self.assertIn("indexify_dataplane_runnable_allocations 1.0\n", body)

    async def test_a_taken_port_raises_and_leaves_nothing(self) -> None:
        second = self.make(port=self.port)
        with self.assertRaises(CannotListenError):
            await second.start()
        self.assertFalse(second.listening)
        await second.stop()
        self.assertEqual((await self.get("/health")).status, 200)

    async def test_a_name_is_resolved(self) -> None:
        monitoring = Monitoring(
            reactor=reactor, host="localhost", port=0, view=self.view, metrics=self.metrics,
            clock=self.clock, wall=lambda: 0.0,
        )  # fmt: skip
        host, port = await monitoring.start()
        self.assertEqual((host, port > 0), ("127.0.0.1", True))
        await monitoring.stop()

    async def test_stop_closes_idle_connections(self) -> None:
        idle = await connectProtocol(self.endpoint, Exchange(b"GET /health HTTP/1.1\r\nHost: node\r\n\r\n"))
        await self.get("/health")
        await self.monitoring.stop()
        self.assertIn(b'{"status":"ok"}', await idle.closed)
        self.assertFalse(self.monitoring.listening)


class ControlSocketTest(TestCase):
    timeout = 20

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)
        self.view, self.drains = View(), 0

    def make(self, path: Path) -> ControlSocket:
        def drain() -> None:
            self.drains += 1

        async def leaks() -> Listing:
            return Listing((Found("cgroup", "/a/b"),), (), ("an engine is away",))

        answers = Answers(view=self.view, clock=Clock(), wall=lambda: 0.0)
        control = ControlSocket(reactor=reactor, path=path, answers=answers, drain=drain, leaks=leaks)
        self.addCleanup(lambda: Deferred.fromCoroutine(control.stop()))
        return control

    async def test_state_and_drain(self) -> None:
        path = self.directory / "ctl.sock"
        control = self.make(path)
        await control.start()
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        endpoint = UNIXClientEndpoint(reactor, str(path))
        state = await ask(endpoint, "GET", "/state")
        self.assertEqual((state.status, json.loads(state.body)["executor_id"]), (200, "exec-1"))
        self.assertEqual((await ask(endpoint, "GET", "/drain")).status, 405)
        self.assertEqual(self.drains, 0)
        self.assertEqual((await ask(endpoint, "POST", "/drain")).status, 202)
        self.assertEqual(self.drains, 1)
        found = json.loads((await ask(endpoint, "GET", "/leaks")).body)
        self.assertEqual(
            ([each["name"] for each in found["leaks"]], found["problems"]), (["/a/b"], ["an engine is away"])
        )
        await control.stop()
        self.assertFalse(path.exists())

    async def test_a_stale_socket_is_replaced(self) -> None:
        path = self.directory / "ctl.sock"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        await self.make(path).start()
        self.assertEqual((await ask(UNIXClientEndpoint(reactor, str(path)), "GET", "/state")).status, 200)

    async def test_a_living_one_is_not(self) -> None:
        path = self.directory / "ctl.sock"
        await self.make(path).start()
        with self.assertRaisesRegex(ControlSocketError, "another process listens"):
            await self.make(path).start()
        self.assertEqual((await ask(UNIXClientEndpoint(reactor, str(path)), "GET", "/state")).status, 200)

    async def test_a_file_in_its_place_is_kept(self) -> None:
        path = self.directory / "ctl.sock"
        path.write_text("precious")
        with self.assertRaisesRegex(ControlSocketError, "no socket"):
            await self.make(path).start()
        self.assertEqual(path.read_text(), "precious")

    async def test_a_directory_too_deep_for_a_socket_address(self) -> None:
        deep = self.directory / ("d" * 90) / ("e" * 90)
        deep.mkdir(parents=True)
        control = self.make(deep / "ctl.sock")
        await control.start()
        descriptor = os.open(deep, os.O_PATH)
        try:
            endpoint = UNIXClientEndpoint(reactor, f"/proc/self/fd/{descriptor}/ctl.sock")
            self.assertEqual((await ask(endpoint, "GET", "/state")).status, 200)
        finally:
            os.close(descriptor)
        await control.stop()
        self.assertEqual(list(deep.iterdir()), [])

    async def test_what_cannot_be_is_told(self) -> None:
        with self.assertRaisesRegex(ControlSocketError, "too long"):
            await self.make(self.directory / ("x" * 120)).start()
        with self.assertRaisesRegex(ControlSocketError, "No such file"):
            await self.make(self.directory / "nowhere" / "ctl.sock").start()
