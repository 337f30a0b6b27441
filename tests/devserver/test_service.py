"""The development control plane as a service, and as a process of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import grpc
import grpc.aio
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol, Protocol
from twisted.python.filepath import FilePath
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent
from twisted.web.http_headers import Headers

from indexify_dataplane.devserver.service import DevServer
from indexify_dataplane.reactor import from_asyncio
from indexify_dataplane.wireproto import executor_api_pb2 as pb
from indexify_dataplane.wireproto import executor_api_pb2_grpc as rpc

from .peer import Peer, full_state, started
from .test_functions import manifest
from .web import Body

reactor: Any = _reactor


class ServiceTests(TestCase):
    timeout = 30

    def setUp(self) -> None:
        self.directory = mkdtemp()
        self.addCleanup(FilePath(self.directory).remove)

    def server(self, **settings: Any) -> DevServer:
        ports = {"grpc_port": 0, "rest_port": 0, "sandbox_proxy_port": 0, **settings}
        return DevServer(reactor, blob_dir=self.directory, **ports)

    def test_it_listens_and_stops_with_everything_open(self) -> Deferred[None]:
        async def body() -> None:
            server = self.server()
            server.startService()
            ports = await server.listening()
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{ports['grpc']}")
            stub = rpc.ExecutorAPIStub(channel)

            async def beat() -> Any:
                return await stub.heartbeat(pb.HeartbeatRequest(executor_id="e", full_state=full_state()))

            self.assertFalse((await from_asyncio(beat())).send_state)
            arrival = server.engine.faults.arrival()

            async def poll() -> Any:
                try:
                    return await stub.poll_commands(pb.PollCommandsRequest(executor_id="e"))
                except grpc.aio.AioRpcError as error:
                    return error.code()

            held = from_asyncio(poll())
            await arrival
            await server.stopService()
            self.assertIn(await held, (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED))
            await from_asyncio(channel.close())
            again = self.server(grpc_port=ports["grpc"], rest_port=ports["rest"])
            again.startService()
            await again.listening()
            await again.stopService()

        return Deferred.fromCoroutine(body())

    def test_a_port_that_is_taken_is_an_error_with_a_sentence(self) -> Deferred[None]:
        async def body() -> None:
            first = self.server()
            first.startService()
            ports = await first.listening()
            for name, what in (("grpc", "gRPC"), ("rest", "REST"), ("sandbox_proxy", "sandbox-proxy")):
                second = self.server(**{f"{name}_port": ports[name]})
                second.startService()
                try:
                    await second.listening()
                except OSError as error:
                    self.assertIn(what, str(error))
                    self.assertIn(str(ports[name]), str(error))
                else:
                    self.fail(f"two servers listen on one {name} port")
                finally:
                    await second.stopService()
            await first.stopService()

        return Deferred.fromCoroutine(body())

    def test_its_containers_are_handed_as_many_runs_as_it_is_told(self) -> None:
        for size in (1, 2):
            engine = self.server(queue_size=size).engine
            self.addCleanup(engine.close)
            peer = Peer(engine)
            peer.register()
            engine.applications.deploy("default", manifest("f", max_containers=1), b"PK code")
            for _ in range(3):
                engine.applications.invoke("default", "app", b"1")
            [container] = engine.world.containers.values()
            peer.beat(started(container.id))
            self.assertEqual(len(container.allocations), size)

    def test_the_sandbox_proxy_can_be_left_out(self) -> Deferred[None]:
        async def body() -> None:
            server = self.server(sandbox_proxy_port=None)
            server.startService()
            self.assertEqual(set(await server.listening()), {"grpc", "rest"})
            await server.stopService()

        return Deferred.fromCoroutine(body())


class Child(ProcessProtocol):
    """A process whose output is kept; ``ready`` fires at its first line, ``ended`` with its exit code."""

    def __init__(self) -> None:
        self.out = b""
        self.err = b""
        self.ready: Deferred[None] = Deferred()
        self.ended: Deferred[int] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self.out += data
        if b"\n" in self.out and not self.ready.called:
            self.ready.callback(None)

    def errReceived(self, data: bytes) -> None:
        self.err += data

    def processEnded(self, reason: Any) -> None:
        self.ended.callback(reason.value.exitCode)


class ProcessTests(TestCase):
    timeout = 30

    def spawn(self, *arguments: str, directory: str) -> Child:
        child = Child()
        command = [sys.executable, "-m", "indexify_dataplane.devserver", *arguments]
        env = {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": directory, "PATH": "/usr/bin:/bin"}
        reactor.spawnProcess(child, sys.executable, command, env=env)
        return child

    def test_it_runs_until_told_to_end_and_leaves_nothing(self) -> Deferred[None]:
        async def body() -> None:
            directory = mkdtemp()
            self.addCleanup(FilePath(directory).remove)
            ports_path = Path(directory, "ports.json")
            child = self.spawn(
                *("--grpc-port", "0", "--rest-port", "0", "--sandbox-proxy-port", "0"),
                *("--port-file", str(ports_path)),
                directory=directory,
            )
            await child.ready
            ports = json.loads(ports_path.read_text())
            self.assertEqual((json.loads(child.out), set(ports)), (ports, {"grpc", "rest", "sandbox_proxy"}))
            address = f"http://localhost:{ports['rest']}/healthz".encode()
            response = await Agent(reactor).request(b"GET", address, Headers())
            content = Body()
            response.deliverBody(content)
            await content.ended
            self.assertEqual(json.loads(content.data)["status"], "ok")
            child.transport.signalProcess("TERM")  # type: ignore[union-attr]
            self.assertEqual(await child.ended, 0, child.err.decode())
            self.assertIn(b"in memory", child.err)
            self.assertEqual([path.name for path in Path(directory).iterdir()], ["ports.json"])

        return Deferred.fromCoroutine(body())

    def test_a_taken_port_ends_it_with_a_sentence(self) -> Deferred[None]:
        async def body() -> None:
            directory = mkdtemp()
            self.addCleanup(FilePath(directory).remove)
            from twisted.internet.protocol import Factory

            taken = reactor.listenTCP(0, Factory.forProtocol(Protocol), interface="127.0.0.1")
            port = str(taken.getHost().port)
            child = self.spawn(
                *("--grpc-port", "0", "--rest-port", port, "--sandbox-proxy-port", "-1"), directory=directory
            )
            self.assertEqual(await child.ended, 1)
            self.assertIn(f"cannot listen on 127.0.0.1:{port} for REST".encode(), child.err)
            self.assertEqual(list(Path(directory).iterdir()), [])
            await taken.stopListening()

        return Deferred.fromCoroutine(body())
