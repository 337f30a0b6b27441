"""The guest daemon's gRPC port: any frames, sessions that keep to the rules, and its hand-written messages."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from indexify_dataplane.guest.grpc_messages import MalformedMessage, decode_signal_request
from indexify_dataplane.guest.grpc_port import SERVICE, DaemonCalls, GrpcPort
from indexify_dataplane.guest.http_server import HttpServer
from indexify_dataplane.wireproto import container_daemon_pb2 as pb

from . import h2_input, wire
from .guest_http1 import Endpoints, silent_log
from .h2_check import Peer, check_buffered, check_frames
from .proxy_http2 import Calls
from .wire import Loop, cuts, expect, in_loop, settle


class Port:
    """One connection at the port."""

    def __init__(self, loop: Loop) -> None:
        self.lines: list[str] = []
        self.signals: list[int] = []
        log = silent_log(self.lines)
        calls = DaemonCalls(health=lambda: (True, "1", 5), signal=self._signal, token=b"t")
        self._server = HttpServer(answer=Endpoints().answer, loop=loop, log=log)
        self._port = GrpcPort(calls=calls, http1=self._server.protocol, log=log)
        self.wire = wire.Wire(self._port.protocol()).begin()

    def _signal(self, number: int) -> str | None:
        self.signals.append(number)
        return None if 0 < number < 65 else "no such signal"

    async def close(self) -> None:
        self._port.close()
        await self._server.close(0)
        await settle(self.wire)
        self.wire.lose(None)
        await settle(self.wire)
        expect(not self._port._connections, "no connection is known when all are closed")
        expect(not self.lines, "nothing unexpected happens", self.lines)


def guest_grpc(data: bytes) -> None:
    """Any frames: legal frames come back or the connection ends, no more than a frame is kept, and nothing fails."""
    session = h2_input.client_session(data)

    async def work(loop: Loop, arriving: list[bytes]) -> None:
        port = Port(loop)
        for piece in arriving:
            port.wire.feed(piece)
            await settle(port.wire)
            protocol: Any = port.wire.protocol
            if hasattr(protocol, "_h2"):
                check_buffered(protocol, port.wire)
        if hasattr(port.wire.protocol, "_h2"):
            check_frames(bytes(port.wire.written), "to the client")
        await port.close()

    in_loop(lambda loop: work(loop, session))
    in_loop(lambda loop: work(loop, [b"".join(session)]))
    in_loop(lambda loop: work(loop, cuts(b"".join(session))))


_PSEUDO = [(":method", "POST"), (":scheme", "http"), (":authority", "h")]
_GRPC = [("content-type", "application/grpc"), ("te", "trailers")]
_CALLS = [
    [*_PSEUDO, (":path", SERVICE + "Health"), *_GRPC],
    [*_PSEUDO, (":path", SERVICE + "SendSignal"), *_GRPC, ("x-indexify-sandbox-token", "t")],
    [*_PSEUDO, (":path", SERVICE + "SendSignal"), *_GRPC],
    [*_PSEUDO, (":path", SERVICE + "Nothing"), *_GRPC],
    [*_PSEUDO, (":path", "/"), ("content-type", "text/plain")],
]


def guest_grpc_calls(data: bytes) -> None:
    """A client that keeps to the rules: a call that was ended and not reset is answered, and none of the others' ends
    (a reset right after its request, for one) cuts the connection."""

    async def work(loop: Loop) -> None:
        port = Port(loop)
        peer = Peer(port.wire, client=True)
        calls = Calls(peer, _CALLS)
        source = h2_input.Bytes(data[:200])
        peer.send()
        while source.left:
            if calls.act(source, b"\0\0\0\0\0"):
                peer.send()
                await settle(port.wire)
                peer.read()
        for _ in range(3):
            peer.send()
            await settle(port.wire)
            peer.read()
        expect(not port.wire.closing, "a client that keeps to the rules is not cut off", data)
        for stream in calls.ended - calls.reset:
            expect(calls.answered(stream), "a call that was ended is answered", data, stream)
        await port.close()

    in_loop(work)


def guest_messages(data: bytes) -> None:
    """A message is refused, or means what protobuf's own runtime says."""
    try:
        number = decode_signal_request(data)
    except MalformedMessage:
        return
    expect(-(2**31) <= number < 2**31, "a signal is a 32-bit number", number)
    try:
        known = pb.SendSignalRequest.FromString(data)
    except DecodeError:
        return
    expect(number == (known.signal if known.HasField("signal") else 15), "protobuf reads the same", data, number)
