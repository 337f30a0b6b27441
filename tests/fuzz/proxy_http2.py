"""The proxy's HTTP/2, from the client's side and from the container's, and sessions that keep to all rules."""

from __future__ import annotations

from typing import Any

import h2.events
import h2.exceptions
import h11

from indexify_dataplane.http_proxy.head import MAX_HEAD
from indexify_dataplane.http_proxy.http2 import MAX_STREAMS
from indexify_dataplane.http_proxy.http2_upstream import Http2Upstream

from . import h2_input
from .h2_check import Peer, check_buffered, check_frames
from .proxy_edge import TOKEN, client_of, close_edge, open_edge
from .proxy_http1 import TOKEN_FIELD
from .wire import Loop, Wire, cuts, expect, in_loop, requests_by_h11, settle

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class _Containers:
    """Answers on all connections to containers that the proxy has made."""

    def __init__(self, loop: Loop, answer: bytes = ANSWER) -> None:
        self._loop = loop
        self._answer = answer
        self._told: dict[Wire, int] = {}
        self._peers: dict[Wire, Peer] = {}

    def step(self) -> None:
        for wire in self._loop.made:
            if isinstance(wire.protocol, Http2Upstream):
                self._grpc(wire)
            elif not wire.closing and wire.written:
                self._http1(wire)

    def _http1(self, wire: Wire) -> None:
        try:
            requests, _ = requests_by_h11(bytes(wire.written))
        except h11.RemoteProtocolError as error:
            expect(False, "a container gets requests", bytes(wire.written), error)
            return
        for message in requests:
            for name in (b"content-length", b"transfer-encoding", b"host"):
                expect(len(message.values(name)) <= 1, "fields that must be alone are", bytes(wire.written), name)
            expect(set(message.values(TOKEN_FIELD)) <= {TOKEN.encode()}, "the token is ours", bytes(wire.written))
        whole = sum(message.whole for message in requests)
        while self._told.get(wire, 0) < whole and not wire.closing:
            self._told[wire] = self._told.get(wire, 0) + 1
            wire.feed(self._answer if requests[self._told[wire] - 1].head.method != b"HEAD" else
                      self._answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")  # fmt: skip

    def _grpc(self, wire: Wire) -> None:
        peer = self._peers.get(wire)
        if peer is None:
            peer = self._peers[wire] = Peer(wire, client=False)
        for event in peer.read():
            try:
                if isinstance(event, h2.events.RequestReceived):
                    fields = [(":status", "200"), ("content-type", "application/grpc")]
                    peer.h2.send_headers(event.stream_id or 0, fields)
                elif isinstance(event, h2.events.StreamEnded):
                    peer.h2.send_data(event.stream_id or 0, b"\0\0\0\0\0")
                    peer.h2.send_headers(event.stream_id or 0, [("grpc-status", "0")], end_stream=True)
            except h2.exceptions.ProtocolError:
                # The proxy has reset it in the meantime.
                continue
        peer.send()


async def _frames_of_client(loop: Loop, arriving: list[bytes]) -> bytes:
    shared = open_edge(loop)
    client = client_of(shared)
    containers = _Containers(loop)
    for piece in arriving:
        client.feed(piece)
        await settle(client, *loop.made)
        protocol: Any = client.protocol
        if hasattr(protocol, "_h2"):
            check_buffered(protocol, client)
            expect(len(protocol._streams) <= MAX_STREAMS, "streams are bounded", len(protocol._streams))
        else:
            expect(len(protocol._buffer) <= MAX_HEAD, "what is kept of a client is bounded")
        containers.step()
        await settle(client, *loop.made)
    for _ in range(4):
        containers.step()
        await settle(client, *loop.made)
    check_frames(bytes(client.written), "to the client")
    firsts = bytes(loop.made[0].written) if loop.made else b""
    await close_edge(shared, loop, client)
    return firsts


def http2(data: bytes) -> None:
    """Any frames from a client: refused or passed on as well-formed requests, and nothing is left behind."""
    session = h2_input.client_session(data)

    async def work(loop: Loop, arriving: list[bytes]) -> None:
        await _frames_of_client(loop, arriving)

    in_loop(lambda loop: work(loop, session))
    in_loop(lambda loop: work(loop, [b"".join(session)]))
    in_loop(lambda loop: work(loop, cuts(b"".join(session))))


def http2_upstream(data: bytes) -> None:
    """Any frames from a container that was asked for three calls: a client that keeps to the protocol sees no breach of
    it, and each call ends."""
    session = h2_input.server_session(data)

    async def work(loop: Loop, arriving: list[bytes]) -> None:
        shared = open_edge(loop)
        client = client_of(shared)
        peer = Peer(client, client=True)
        for number in (1, 3, 5):
            fields = [(":method", "POST"), (":scheme", "http"), (":path", "/s/m"), (":authority", "h")]
            fields += [("content-type", "application/grpc"), ("te", "trailers"), ("tensorlake-sandbox-id", "sb-1")]
            peer.h2.send_headers(number, fields)
            peer.h2.send_data(number, b"\0\0\0\0\0", end_stream=number != 5)
        peer.send()
        await settle(client, *loop.made)
        expect(len(loop.made) == 1, "calls share a connection", len(loop.made))
        container = loop.made[0]
        for piece in arriving:
            container.feed(piece)
            await settle(client, *loop.made)
            check_buffered(container.protocol, container)
            peer.read()
            peer.send()
            await settle(client, *loop.made)
        container.lose(None)
        await settle(client, *loop.made)
        for wire in loop.made:
            # Those that the proxy has made anew after the first.
            wire.lose(None)
        await settle(client, *loop.made)
        peer.read()
        over = {
            event.stream_id for event in peer.events if isinstance(event, h2.events.StreamEnded | h2.events.StreamReset)
        }
        expect(over == {1, 3, 5} or client.closing, "each call ends with its connection", over)
        await close_edge(shared, loop, client)

    in_loop(lambda loop: work(loop, session))
    in_loop(lambda loop: work(loop, cuts(b"".join(session))))


class Calls:
    """A client that keeps to all rules, driven by bytes: calls begin, go on, end and are reset in any order."""

    def __init__(self, peer: Peer, fields: list[list[tuple[str, str]]]) -> None:
        self.peer = peer
        self.open: list[int] = []
        self.begun: dict[int, int] = {}
        self.reset: set[int] = set()
        self.ended: set[int] = set()
        self._fields = fields

    def act(self, source: h2_input.Bytes, payload: bytes) -> bool:
        """One action; whether what was written so far shall be sent now."""
        action = source.number()
        connection = self.peer.h2
        which = self.open[action // 8 % len(self.open)] if self.open else 0
        match action & 7:
            case 0 | 1 if len(self.begun) < 20:
                stream = connection.get_next_available_stream_id()
                kind = action // 8 % len(self._fields)
                connection.send_headers(stream, self._fields[kind])
                self.begun[stream] = kind
                self.open.append(stream)
            case 2 | 3 if which:
                self._try(lambda: connection.send_data(which, payload))
            case 4 if which:
                self._try(lambda: connection.end_stream(which))
                self.ended.add(which)
                self.open.remove(which)
            case 5:
                known = sorted(set(self.begun) - self.reset)
                if known:
                    chosen = known[action // 8 % len(known)]
                    self.reset.add(chosen)
                    self._try(lambda: connection.reset_stream(chosen, 8))
                    if chosen in self.open:
                        self.open.remove(chosen)
            case 6:
                connection.ping(b"pingpong")
            case 7:
                return True
        return False

    def _try(self, action: Any) -> None:
        try:
            action()
        except h2.exceptions.ProtocolError:
            # It was ended by the other side before; a client's library would say so to its caller.
            return

    def answered(self, stream: int) -> bool:
        over = h2.events.StreamEnded | h2.events.StreamReset
        return any(isinstance(event, over) and event.stream_id == stream for event in self.peer.events)


_PSEUDO = [(":method", "POST"), (":scheme", "http"), (":path", "/p"), (":authority", "h")]
_CALLS = [
    [*_PSEUDO, ("tensorlake-sandbox-id", "sb-1")],
    [*_PSEUDO, ("tensorlake-sandbox-id", "sb-2"), ("tensorlake-sandbox-port", "80")],
    [*_PSEUDO, ("tensorlake-sandbox-id", "sb-1"), ("content-type", "application/grpc"), ("te", "trailers")],
    [*_PSEUDO, ("tensorlake-sandbox-id", "nobody")],
    [*_PSEUDO, ("tensorlake-sandbox-id", "sb-1"), ("tensorlake-sandbox-port", "7")],
]


def http2_calls(data: bytes) -> None:
    """Streams of a client that keeps to the rules: each that was ended and not reset gets an answer, and the connection
    stays."""

    async def work(loop: Loop) -> None:
        shared = open_edge(loop)
        client = client_of(shared)
        peer = Peer(client, client=True)
        calls = Calls(peer, _CALLS)
        containers = _Containers(loop)
        source = h2_input.Bytes(data[:200])
        peer.send()
        while source.left:
            if calls.act(source, b"\0\0\0\0\0"):
                peer.send()
                await settle(client, *loop.made)
                containers.step()
                await settle(client, *loop.made)
                peer.read()
        for _ in range(5):
            peer.send()
            await settle(client, *loop.made)
            containers.step()
            await settle(client, *loop.made)
            peer.read()
        expect(not client.closing, "a client that keeps to the rules is not cut off", data)
        for stream in calls.ended - calls.reset:
            expect(calls.answered(stream), "a call that was ended is answered", data, stream, peer.events[-5:])
        await close_edge(shared, loop, client)

    in_loop(work)
