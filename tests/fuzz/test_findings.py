"""What fuzzing found that a target alone cannot tell apart from a right answer."""

from __future__ import annotations

from typing import Any

import h2.events
from twisted.trial.unittest import SynchronousTestCase

from . import h2_input
from .guest_grpc import _CALLS, Port
from .h2_check import Peer
from .proxy_edge import client_of, close_edge, open_edge
from .wire import Loop, in_loop, settle

GRPC = [
    (":method", "POST"), (":scheme", "http"), (":path", "/s/m"), (":authority", "h"),
    ("content-type", "application/grpc"), ("te", "trailers"), ("tensorlake-sandbox-id", "sb-1"),
]  # fmt: skip


def status_of(events: list[Any], stream: int) -> bytes | None:
    """``grpc-status`` of a call, None while it has none."""
    for event in events:
        told = isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived)
        if told and event.stream_id == stream:
            found = dict(event.headers).get(b"grpc-status")
            if found is not None:
                return bytes(found)
    return None


class Proxy(SynchronousTestCase):
    def test_second_head_in_two_pieces(self) -> None:
        """A second request that began together with the first: its rest was never read."""
        first = b"GET /1 HTTP/1.1\r\nHost: h\r\nTensorlake-Sandbox-Id: sb-1\r\n\r\n"
        second = first.replace(b"GET /1", b"GET /2")

        async def work(loop: Loop) -> None:
            shared = open_edge(loop)
            client = client_of(shared)
            client.feed(first + second[:20])
            await settle(client, *loop.made)
            loop.made[0].feed(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await settle(client, *loop.made)
            client.feed(second[20:])
            await settle(client, *loop.made)
            self.assertIn(b"GET /2 HTTP/1.1\r\n", bytes(loop.made[0].written))
            await close_edge(shared, loop, client)

        in_loop(work)

    def test_container_that_shuts_down_in_order(self) -> None:
        """GOAWAY names the last call that will be answered: that one goes on, the later ones fail at once. Alone and in
        one piece with the settings, before which no call has a number."""
        settings, going = h2_input.frame(4, 0, 0, b""), h2_input.frame(7, 0, 0, (1).to_bytes(4, "big") + bytes(4))
        for arriving in ([settings, going], [settings + going]):

            async def work(loop: Loop, arriving: list[bytes] = arriving) -> None:
                shared = open_edge(loop)
                client = client_of(shared)
                peer = Peer(client, client=True)
                for number in (1, 3):
                    peer.h2.send_headers(number, GRPC, end_stream=True)
                peer.send()
                await settle(client, *loop.made)
                container = loop.made[0]
                for piece in arriving:
                    container.feed(piece)
                    await settle(client, *loop.made)
                peer.read()
                self.assertEqual((status_of(peer.events, 1), status_of(peer.events, 3)), (None, b"14"))
                block = h2_input.literal(b":status", b"200") + h2_input.literal(b"grpc-status", b"0")
                container.feed(h2_input.frame(1, 5, 1, block))
                await settle(client, *loop.made)
                peer.read()
                self.assertEqual(status_of(peer.events, 1), b"0")
                self.assertTrue(container.closing, "nothing is left to wait for")
                await close_edge(shared, loop, client)

            in_loop(work)


class Guest(SynchronousTestCase):
    def test_call_reset_together_with_its_request(self) -> None:
        """A caller that gives up at once does not cut the connection, on which others wait."""

        async def work(loop: Loop) -> None:
            port = Port(loop)
            peer = Peer(port.wire, client=True)
            for number in (1, 3):
                peer.h2.send_headers(number, _CALLS[0])
                peer.h2.send_data(number, bytes(5), end_stream=True)
            peer.h2.reset_stream(1, 8)
            peer.send()
            await settle(port.wire)
            peer.read()
            self.assertEqual(status_of(peer.events, 3), b"0")
            self.assertFalse(port.wire.closing)
            await port.close()

        in_loop(work)

    def test_frame_that_is_too_long(self) -> None:
        """Its header is enough; 16 MiB of it are not kept. Nor is what is not HTTP/2 at all."""
        for noise in (b"\xff\xff\xff\0\0\0\0\0\1", b"x" * 9):

            async def work(loop: Loop, noise: bytes = noise) -> None:
                port = Port(loop)
                port.wire.feed(h2_input.PREFACE + (h2_input.frame(4, 0, 0, b"") if noise[0] == 255 else b"") + noise)
                await settle(port.wire)
                self.assertTrue(port.wire.closing)
                await port.close()

            in_loop(work)
