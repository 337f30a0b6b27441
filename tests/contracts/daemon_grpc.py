"""The gRPC port, asked by the real gRPC library."""

from __future__ import annotations

import concurrent.futures
import socket

import grpc

from indexify_dataplane.wireproto import container_daemon_pb2 as pb
from indexify_dataplane.wireproto.container_daemon_pb2_grpc import ContainerDaemonStub

from .daemon import DaemonContract
from .daemon_wire import DEADLINE, EventStream


class DaemonGrpc(DaemonContract):
    def setUp(self) -> None:
        super().setUp()  # type: ignore[misc]
        self.channel = grpc.insecure_channel(
            ":".join(map(str, self.daemon.grpc)), [("grpc.use_local_subchannel_pool", 1)]
        )
        self.addCleanup(self.channel.close)
        self.stub = ContainerDaemonStub(self.channel)

    def test_health(self) -> None:
        health = self.stub.Health(pb.HealthRequest(), timeout=DEADLINE)
        self.assertEqual((health.healthy, health.version), (True, "0.1.0"))
        self.assertTrue(health.HasField("uptime_secs"))

    def test_many_at_once(self) -> None:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            calls = [pool.submit(self.stub.Health, pb.HealthRequest(), timeout=DEADLINE) for _ in range(500)]
            self.assertTrue(all(call.result().healthy for call in calls))

    def test_signal_goes_to_all_groups_without_an_entrypoint(self) -> None:
        streams = []
        for _ in range(3):
            pid = self.sh("trap 'echo caught; exit 0' USR1; echo up; while :; do sleep 0.05; done")["pid"]
            streams.append(EventStream(self.api, "GET", f"/processes/{pid}/stdout/follow"))
            self.assertEqual(streams[-1].next().data["line"], "up")
        answer = self.stub.SendSignal(pb.SendSignalRequest(signal=10), timeout=DEADLINE)
        self.assertEqual((answer.success, answer.HasField("error")), (True, False))
        for stream in streams:
            self.assertEqual([event.name for event in stream], ["output", "eof"])
        answer = self.stub.SendSignal(pb.SendSignalRequest(), timeout=DEADLINE)
        self.assertEqual(answer.success, False)
        self.assertRegex(answer.error, r"^No running process found \(\d+ processes exited\)$")

    def test_bad_signal(self) -> None:
        pid = self.api.start("sleep", "60")["pid"]
        answer = self.stub.SendSignal(pb.SendSignalRequest(signal=-5), timeout=DEADLINE)
        self.assertEqual((answer.success, answer.error), (False, "Invalid signal number"))
        self.api.call("DELETE", f"/processes/{pid}")
        self.api.ended(pid)

    def test_unknown_method_and_malformed_message(self) -> None:
        for path, data, code in (
            ("/container_daemon_pb.ContainerDaemon/Nothing", b"", grpc.StatusCode.UNIMPLEMENTED),
            ("/container_daemon_pb.ContainerDaemon/SendSignal", b"\x08", grpc.StatusCode.INTERNAL),
            ("/container_daemon_pb.ContainerDaemon/SendSignal", bytes(100_000), grpc.StatusCode.RESOURCE_EXHAUSTED),
        ):
            call = self.channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
            with self.assertRaises(grpc.RpcError) as caught:
                call(data, timeout=DEADLINE)
            self.assertEqual(caught.exception.code(), code)

    def test_unknown_fields_are_skipped(self) -> None:
        call = self.channel.unary_unary(
            "/container_daemon_pb.ContainerDaemon/Health", request_serializer=bytes, response_deserializer=bytes
        )
        self.assertTrue(call(b"\x7a\x03abc\x10\x01", timeout=DEADLINE))

    def test_noise_on_the_port(self) -> None:
        for data in (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100, b"\0" * 100, b"PRI * HTTP/3"):
            with socket.create_connection(self.daemon.grpc, timeout=DEADLINE) as connection:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
        self.test_health()
