"""The real transport against the control plane for development over loopback sockets: plain, TLS, mutual TLS."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from random import Random
from typing import Any

import grpc
from twisted.internet import reactor as default_reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from indexify_dataplane.control.client import GrpcTransport
from indexify_dataplane.control.tls import TlsError
from indexify_dataplane.control.transport import ControlError
from indexify_dataplane.devserver.blobs import MemoryBlobs
from indexify_dataplane.devserver.engine import Engine
from indexify_dataplane.devserver.grpc import GrpcPort
from indexify_dataplane.reactor import from_asyncio
from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .certificates import Authority, write
from .scripted import Client
from .test_tls import Settings

reactor: Any = default_reactor


def sync(executor_id: str = "ex") -> pb.HeartbeatRequest:
    host = pb.HostResources(cpu_count=4, memory_bytes=2**30, disk_bytes=2**30)
    return pb.HeartbeatRequest(
        executor_id=executor_id,
        status=pb.EXECUTOR_STATUS_RUNNING,
        full_state=pb.DataplaneStateFullSync(hostname="h", total_container_resources=host),
    )


class Relay:
    """A connection on which nothing arrives any more when ``silent``, in either direction, and which stays open."""

    def __init__(self, port: int) -> None:
        self.silent = False
        self._port = port
        self._pumps: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self) -> int:
        self._server = await from_asyncio(asyncio.start_server(self._accept, "127.0.0.1", 0))
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        for writer in self._writers:
            writer.close()
        await from_asyncio(asyncio.gather(*self._pumps, return_exceptions=True))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, far_writer]
        self._pumps += [
            asyncio.ensure_future(self._pump(reader, far_writer)),
            asyncio.ensure_future(self._pump(far_reader, writer)),
        ]

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if not self.silent:
                writer.write(data)


class GrpcTest(TestCase):
    timeout = 20

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.authority = Authority()
        self.ca = write(self.directory, "ca.pem", self.authority.pem)
        self.logged: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)

    async def serve(self, credentials: Any = None, port: int = 0) -> int:
        self.engine = Engine(clock=reactor, blobs=MemoryBlobs(), random=Random(1), long_poll_secs=30)
        self.addCleanup(self.engine.close)
        self.server = GrpcPort(self.engine, "127.0.0.1", port, credentials)
        self.addCleanup(lambda: Deferred.fromCoroutine(self.server.stop()))
        return await self.server.start()

    def secure(self, *names: str, clients: bytes | None = None) -> Any:
        certificate, key = self.authority.issue(*names)
        return grpc.ssl_server_credentials(
            [(key, certificate)], root_certificates=clients, require_client_auth=clients is not None
        )

    def connect(self, address: str, settings: Settings) -> GrpcTransport:
        transport = GrpcTransport(server_addr=address, tls_settings=settings)
        transport.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(transport.close()))
        return transport

    async def fails(self, call: Deferred[Any]) -> ControlError:
        try:
            await call
        except ControlError as error:
            return error
        raise AssertionError("the call succeeded")

    def said(self, fragment: str) -> int:
        return sum(fragment in (event.get("log_format") or "") for event in self.logged)

    async def test_three_calls_at_a_time_and_statuses(self) -> None:
        port = await self.serve()
        transport = self.connect(f"http://127.0.0.1:{port}", Settings(enabled=False))
        error = await self.fails(transport.call("poll_commands", pb.PollCommandsRequest(executor_id="ex"), 5))
        self.assertEqual((error.code, error.message), ("NOT_FOUND", "executor not registered"))
        self.assertTrue(error.retryable)
        self.assertFalse(error.about_the_request)
        bad = await self.fails(transport.call("heartbeat", pb.HeartbeatRequest(), 5))
        self.assertEqual((bad.code, bad.about_the_request), ("INVALID_ARGUMENT", True))
        self.assertFalse((await transport.call("heartbeat", sync(), 5)).send_state)
        commands = transport.call("poll_commands", pb.PollCommandsRequest(executor_id="ex"), 20)
        held = transport.call("poll_allocation_results", pb.PollAllocationResultsRequest(executor_id="ex"), 20)
        self.assertFalse((await transport.call("heartbeat", sync("other"), 5)).send_state)
        order = pb.Command(kill_allocation=pb.KillAllocation(allocation_id="a"))
        self.engine.send_command("ex", order)
        self.assertEqual((await commands).commands[0].kill_allocation.allocation_id, "a")
        held.cancel()
        await self.assertFailure(held, CancelledError)

    async def test_l6_a_server_that_accepts_and_is_silent_costs_the_deadline(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            transport = self.connect(f"http://127.0.0.1:{port}", Settings(enabled=False))
            error = await self.fails(transport.call("heartbeat", sync(), 0.3))
            self.assertEqual((error.code, error.retryable), ("DEADLINE_EXCEEDED", True))

    async def test_l6_a_held_poll_notices_a_connection_that_died_without_a_word(self) -> None:
        port = await self.serve()
        relay = Relay(port)
        self.addCleanup(lambda: Deferred.fromCoroutine(relay.close()))
        transport = GrpcTransport(
            server_addr=f"http://127.0.0.1:{await relay.open()}",
            tls_settings=Settings(enabled=False),
            keepalive=0.3,
            ping_timeout=0.4,
        )
        transport.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(transport.close()))
        await transport.call("heartbeat", sync(), 5)
        held = transport.call("poll_commands", pb.PollCommandsRequest(executor_id="ex"), 330)
        await deferLater(reactor, 1.0)
        self.assertFalse(held.called)
        relay.silent = True
        error = await self.fails(held)
        self.assertEqual((error.code, error.retryable), ("UNAVAILABLE", True))

    async def test_a_server_that_comes_back_is_found_again(self) -> None:
        port = await self.serve()
        transport = self.connect(f"http://127.0.0.1:{port}", Settings(enabled=False))
        await transport.call("heartbeat", sync(), 5)
        await self.server.stop()
        error = await self.fails(transport.call("heartbeat", sync(), 5))
        self.assertEqual((error.code, error.about_the_request), ("UNAVAILABLE", False))
        await self.serve(port=port)
        for _ in range(40):
            try:
                await transport.call("heartbeat", sync(), 5)
            except ControlError:
                await deferLater(reactor, 0.1)
            else:
                return
        self.fail("the server was not found again")

    async def test_a_heartbeat_of_20_mib_passes(self) -> None:
        port = await self.serve()
        transport = self.connect(f"http://127.0.0.1:{port}", Settings(enabled=False))
        big = sync()
        big.full_state.labels["x"] = "y" * (20 * 2**20)
        self.assertFalse((await transport.call("heartbeat", big, 10)).send_state)

    async def test_tls_with_a_ca(self) -> None:
        port = await self.serve(self.secure("127.0.0.1"))
        transport = self.connect(f"https://127.0.0.1:{port}", Settings(ca_cert_path=self.ca))
        self.assertFalse((await transport.call("heartbeat", sync(), 5)).send_state)

    async def test_tls_domain_name(self) -> None:
        port = await self.serve(self.secure("control.example"))
        named = Settings(ca_cert_path=self.ca, domain_name="control.example")
        transport = self.connect(f"https://127.0.0.1:{port}", named)
        self.assertFalse((await transport.call("heartbeat", sync(), 5)).send_state)

    async def test_tls_a_wrong_name_is_refused_with_a_sentence(self) -> None:
        port = await self.serve(self.secure("other.example"))
        transport = self.connect(f"https://127.0.0.1:{port}", Settings(ca_cert_path=self.ca))
        error = await self.fails(transport.call("heartbeat", sync(), 5))
        self.assertEqual(error.code, "UNAVAILABLE")
        self.assertIn("is not for '127.0.0.1'; see tls.domain_name", error.message)

    async def test_tls_a_wrong_authority_is_refused_with_a_sentence(self) -> None:
        port = await self.serve(self.secure("127.0.0.1"))
        for name in ("somebody else", self.authority.name):
            stranger = write(self.directory, "stranger.pem", Authority(name).pem)
            transport = self.connect(f"https://127.0.0.1:{port}", Settings(ca_cert_path=stranger))
            error = await self.fails(transport.call("heartbeat", sync(), 5))
            self.assertEqual(error.code, "UNAVAILABLE")
            self.assertIn("is not valid by tls.ca_cert_path", error.message)
        self.assertEqual(self.engine.world.executors, {})

    async def test_tls_without_a_ca_a_private_authority_is_not_trusted(self) -> None:
        port = await self.serve(self.secure("127.0.0.1"))
        transport = self.connect(f"https://127.0.0.1:{port}", Settings())
        error = await self.fails(transport.call("heartbeat", sync(), 5))
        self.assertIn("is not valid by the system's roots", error.message)

    async def test_tls_to_a_plaintext_server(self) -> None:
        port = await self.serve()
        transport = self.connect(f"https://127.0.0.1:{port}", Settings(ca_cert_path=self.ca))
        error = await self.fails(transport.call("heartbeat", sync(), 5))
        self.assertIn("does not speak TLS", error.message)

    async def test_mutual_tls(self) -> None:
        port = await self.serve(self.secure("127.0.0.1", clients=self.authority.pem))
        anonymous = self.connect(f"https://127.0.0.1:{port}", Settings(ca_cert_path=self.ca))
        error = await self.fails(anonymous.call("heartbeat", sync(), 5))
        self.assertEqual(error.code, "UNAVAILABLE")
        self.assertIn("tls.client_cert_path", error.message)
        certificate, key = self.authority.issue("node-1")
        settings = Settings(
            ca_cert_path=self.ca,
            client_cert_path=write(self.directory, "client.pem", certificate),
            client_key_path=write(self.directory, "client.key", key),
        )
        known = self.connect(f"https://127.0.0.1:{port}", settings)
        self.assertFalse((await known.call("heartbeat", sync(), 5)).send_state)

    async def test_l15_changed_certificates_are_used_without_a_restart_and_held_calls_go_on(self) -> None:
        """The server trusts a new authority only; the node gets new files while a poll is held."""
        old, new = self.authority, Authority("new authority")
        port = await self.serve(self.secure("127.0.0.1", clients=old.pem + new.pem))
        issued = old.issue("node-1")
        settings = Settings(
            ca_cert_path=self.ca,
            client_cert_path=write(self.directory, "client.pem", issued[0]),
            client_key_path=write(self.directory, "client.key", issued[1]),
        )
        transport = self.connect(f"https://127.0.0.1:{port}", settings)
        await transport.call("heartbeat", sync(), 5)
        held = transport.call("poll_commands", pb.PollCommandsRequest(executor_id="ex"), 20)

        # A half-written pair changes nothing, and says so once.
        renewed = new.issue("node-1")
        write(self.directory, "client.pem", renewed[0])
        for _ in range(3):
            await transport.call("heartbeat", sync("other"), 5)
        self.assertEqual(self.said("changed certificates cannot be used"), 1)
        self.assertEqual(self.said("certificates have changed"), 0)

        write(self.directory, "client.key", renewed[1])
        await transport.call("heartbeat", sync("other"), 5)
        await transport.call("heartbeat", sync("other"), 5)
        self.assertEqual(self.said("certificates have changed"), 1)
        self.engine.send_command("ex", pb.Command(kill_allocation=pb.KillAllocation(allocation_id="a")))
        self.assertEqual(len((await held).commands), 1)

    async def test_l15_a_new_authority_of_the_server_is_trusted_after_a_change(self) -> None:
        port = await self.serve(self.secure("127.0.0.1"))
        stranger = write(self.directory, "trusted.pem", Authority().pem)
        transport = self.connect(f"https://127.0.0.1:{port}", Settings(ca_cert_path=stranger))
        await self.fails(transport.call("heartbeat", sync(), 5))
        write(self.directory, "trusted.pem", self.authority.pem)
        self.assertFalse((await transport.call("heartbeat", sync(), 5)).send_state)

    async def test_a_call_that_the_channel_lost_fails_and_is_no_cancellation(self) -> None:
        port = await self.serve()
        transport = self.connect(f"http://127.0.0.1:{port}", Settings(enabled=False))
        await transport.call("heartbeat", sync(), 5)
        held = transport.call("poll_commands", pb.PollCommandsRequest(executor_id="ex"), 20)
        await deferLater(reactor, 0.05)
        assert transport._channel is not None
        await from_asyncio(transport._channel.close())
        error = await self.fails(held)
        self.assertEqual((error.code, error.retryable), ("CANCELLED", True))

    async def test_bad_settings_end_the_start(self) -> None:
        for address, settings in (
            ("http://x:1", Settings(enabled=True)),
            ("https://x:1", Settings(ca_cert_path="/nonexistent/ca.pem")),
        ):
            with self.assertRaises(TlsError):
                GrpcTransport(server_addr=address, tls_settings=settings).start()

    async def test_l23_plain_text_beyond_this_machine_is_warned_of(self) -> None:
        for address, warned in (("http://127.0.0.1:1", 0), ("http://10.1.2.3:1", 1)):
            self.connect(address, Settings(enabled=False))
            self.assertEqual(self.said("plain text"), warned)

    async def test_the_whole_client_over_the_wire(self) -> None:
        port = await self.serve(self.secure("127.0.0.1"))
        transport = self.connect(f"https://127.0.0.1:{port}", Settings(ca_cert_path=self.ca))
        client = Client(clock=reactor)
        client.build(transport)
        client.report(1)
        client.start()
        self.addCleanup(client.close)
        self.engine.faults.recording = True
        while not (client.heartbeat.healthy and self.engine.fleet.known("ex")):
            await deferLater(reactor, 0.01)
        self.engine.send_command("ex", pb.Command(kill_allocation=pb.KillAllocation(allocation_id="a")))
        while client.session.commands.ack != 1:
            await deferLater(reactor, 0.01)
        self.engine.restart(durable=True)
        client.report(2)
        while client.session.generation != 2 or not client.heartbeat.healthy:
            await deferLater(reactor, 0.01)
        client.report(3)
        await client.heartbeat.stop(stopped=True, deadline=reactor.seconds() + 5)
        self.assertEqual(client.delivered, [1, 2, 3])
        last = self.engine.faults.recorded[-1][1]
        assert isinstance(last, pb.HeartbeatRequest)
        self.assertEqual(last.status, pb.EXECUTOR_STATUS_STOPPED)

    def tearDown(self) -> None:
        loop = asyncio.get_event_loop()
        mine = [task for task in asyncio.all_tasks(loop) if "GrpcTransport" in repr(task.get_coro())]
        self.assertEqual(mine, [])
