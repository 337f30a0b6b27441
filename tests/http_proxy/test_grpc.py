"""gRPC through the proxy: a grpcio server in the sandbox, a grpcio client outside, HTTP/2 with prior knowledge."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
from twisted.internet.defer import Deferred

from indexify_dataplane.http_proxy.routes import NotRunning, Target
from indexify_dataplane.reactor import to_asyncio

from .support import EdgeCase, echo, get, in_loop

PORT = 50051
ROUTE = (("tensorlake-sandbox-id", "sb-1"), ("tensorlake-sandbox-port", str(PORT)))
BIG = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Service(grpc.GenericRpcHandler):
    """Methods by name; what they were cancelled with is kept."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.metadata: dict[str, Any] = {}
        self.hanging = asyncio.Event()
        self.sent = 0

    def service(self, details: Any) -> Any:
        match details.method.rpartition("/")[2]:
            case "Unary":
                return grpc.unary_unary_rpc_method_handler(self.unary)
            case "Fail":
                return grpc.unary_unary_rpc_method_handler(self.fail)
            case "Down":
                return grpc.unary_stream_rpc_method_handler(self.down)
            case "Up":
                return grpc.stream_unary_rpc_method_handler(self.up)
            case "Both":
                return grpc.stream_stream_rpc_method_handler(self.both)
            case "Hang":
                return grpc.unary_unary_rpc_method_handler(self.hang)
            case "Flood":
                return grpc.unary_stream_rpc_method_handler(self.flood)
        return None

    async def unary(self, request: bytes, context: Any) -> bytes:
        self.metadata = dict(context.invocation_metadata())
        await context.send_initial_metadata((("x-initial", "i"),))
        context.set_trailing_metadata((("x-trailing", "t"), ("x-bin", b"\x00\xff")))
        return request[::-1]

    async def fail(self, request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now: é", (("x-why", "y"),))
        return b""

    async def down(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number

    async def up(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"%d" % sum([len(each) async for each in requests])

    async def both(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for each in requests:
            yield each + each

    async def hang(self, request: bytes, context: Any) -> bytes:
        self.hanging.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return b""

    async def flood(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        block = bytes(32768)
        while True:
            await context.write(block)
            self.sent += 1


class Grpc(EdgeCase):
    timeout = 30

    async def serve(self, **changes: Any) -> Service:
        service = Service()
        server = grpc.aio.server(options=BIG)
        server.add_generic_rpc_handlers((service,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self.addCleanup(lambda: Deferred.fromFuture(asyncio.ensure_future(server.stop(None))))
        self.table.sandboxes["sb-1"] = Target(container_id="c-sb-1", sandbox_id="sb-1")
        self.table.ports[("c-sb-1", PORT)] = ("127.0.0.1", port)
        self.grpc_server = server
        await self.start_edge(**changes)
        self.channel = self.open_channel()
        return service

    def open_channel(self) -> grpc.aio.Channel:
        options = [*BIG, ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.address[1]}", options=options)
        self.addCleanup(lambda: Deferred.fromFuture(asyncio.ensure_future(channel.close())))
        return channel

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0)

    @in_loop
    async def test_unary(self) -> None:
        service = await self.serve()
        call = self.channel.unary_unary("/s/Unary")(
            b"abc", metadata=(*ROUTE, ("x-mine", "m"), ("x-b-bin", b"\x01\xfe"))
        )
        self.assertEqual(await call, b"cba")
        self.assertEqual(dict(await call.initial_metadata())["x-initial"], "i")
        trailing = dict(await call.trailing_metadata())
        self.assertEqual((trailing["x-trailing"], trailing["x-bin"]), ("t", b"\x00\xff"))
        self.assertEqual((service.metadata["x-mine"], service.metadata["x-b-bin"]), ("m", b"\x01\xfe"))
        self.assertEqual(service.metadata["x-forwarded-for"], "127.0.0.1")
        self.assertNotIn("tensorlake-sandbox-id", service.metadata)
        self.assertEqual(self.log.lines[-1].path, "/s/Unary")
        self.assertEqual(self.log.lines[-1].status_code, 200)

    @in_loop
    async def test_errors_of_the_service(self) -> None:
        await self.serve()
        for _ in range(2):
            with self.assertRaises(grpc.aio.AioRpcError) as caught:
                await self.channel.unary_unary("/s/Fail")(b"", metadata=ROUTE)
            error = caught.exception
            self.assertEqual((error.code(), error.details()), (grpc.StatusCode.FAILED_PRECONDITION, "not now: é"))
            self.assertEqual(dict(error.trailing_metadata())["x-why"], "y")
        with self.assertRaises(grpc.aio.AioRpcError) as caught:
            await self.channel.unary_unary("/s/Nothing")(b"", metadata=ROUTE)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNIMPLEMENTED)

    @in_loop
    async def test_streams(self) -> None:
        await self.serve()
        got = [each async for each in self.channel.unary_stream("/s/Down")(b"500", metadata=ROUTE)]
        self.assertEqual(got, [b"%d" % number for number in range(500)])

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(50):
                yield bytes(100_000)

        self.assertEqual(await self.channel.stream_unary("/s/Up")(parts(), metadata=ROUTE), b"5000000")
        both = self.channel.stream_stream("/s/Both")(metadata=ROUTE)
        for word in (b"a", b"bc", bytes(300_000)):
            await both.write(word)
            self.assertEqual(await both.read(), word + word)
        await both.done_writing()
        self.assertEqual(await both.read(), grpc.aio.EOF)
        self.assertEqual(await both.code(), grpc.StatusCode.OK)
        big = bytes(range(256)) * 80_000
        self.assertEqual(await self.channel.unary_unary("/s/Unary")(big, metadata=ROUTE), big[::-1])

    @in_loop
    async def test_a_thousand_at_once(self) -> None:
        await self.serve()
        calls = [self.channel.stream_stream("/s/Both")(metadata=ROUTE) for _ in range(1000)]

        async def first(number: int) -> None:
            await calls[number].write(b"%d|" % number)
            self.assertEqual(await calls[number].read(), b"%d|" % number * 2)

        await asyncio.gather(*(first(number) for number in range(1000)))
        self.assertEqual(self.edge.active_requests, 1000)

        async def last(number: int) -> None:
            await calls[number].done_writing()
            self.assertEqual(await calls[number].read(), grpc.aio.EOF)

        await asyncio.gather(*(last(number) for number in range(1000)))
        await self.until(lambda: not self.edge.active_requests)
        self.assertEqual(self.edge.connections, 1)

    @in_loop
    async def test_cancellation_and_deadlines(self) -> None:
        service = await self.serve()
        call = self.channel.unary_unary("/s/Hang")(b"", metadata=ROUTE)
        await service.hanging.wait()
        call.cancel()
        await asyncio.wait_for(service.cancelled.wait(), 5)
        await self.until(lambda: not self.edge.active_requests)
        service.cancelled.clear()
        with self.assertRaises(grpc.aio.AioRpcError) as caught:
            await self.channel.unary_unary("/s/Hang")(b"", metadata=ROUTE, timeout=0.3)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        await asyncio.wait_for(service.cancelled.wait(), 5)
        self.assertEqual(await self.channel.unary_unary("/s/Unary")(b"ok", metadata=ROUTE), b"ko")

    @in_loop
    async def test_flow_control(self) -> None:
        """A reader that stops, stops its own sender and nobody else."""
        service = await self.serve()
        slow = self.channel.unary_stream("/s/Flood")(b"", metadata=ROUTE)
        await slow.read()
        stopped, still = -1, 0
        while still < 20:
            # Others go on meanwhile; the flood has stopped when it did not move through twenty of their calls.
            self.assertEqual(await self.channel.unary_unary("/s/Unary")(bytes(50_000), metadata=ROUTE), bytes(50_000))
            still, stopped = (still + 1 if service.sent == stopped else 0), service.sent
            self.assertLess(service.sent * 32768, 16 << 20)
        for _ in range(stopped + 50):
            await slow.read()
        slow.cancel()
        await self.until(lambda: not self.edge.active_requests)

    @in_loop
    async def test_each_stream_has_its_own_route(self) -> None:
        await self.serve()
        self.table.sandboxes["early"] = NotRunning("pending")
        port = ("tensorlake-sandbox-port", str(PORT))
        closed = await self.start_server(echo, port=81)
        await closed.stop()
        expected = {
            (): (grpc.StatusCode.INTERNAL, "Missing Tensorlake-Sandbox-Id header"),
            (("tensorlake-sandbox-id", "no"), port): (grpc.StatusCode.NOT_FOUND, "Sandbox not found"),
            (("tensorlake-sandbox-id", "early"), port): (
                grpc.StatusCode.UNAVAILABLE, "Sandbox not running (state: pending)"
            ),
            (("tensorlake-sandbox-id", "sb-1"), ("tensorlake-sandbox-port", "9500")): (
                grpc.StatusCode.PERMISSION_DENIED, "Port 9500 of this sandbox cannot be reached through the proxy",
            ),
            (("tensorlake-sandbox-id", "sb-1"), ("tensorlake-sandbox-port", "80")): (
                grpc.StatusCode.PERMISSION_DENIED, "Port 80 of this sandbox cannot be reached through the proxy",
            ),
            (("tensorlake-sandbox-id", "sb-1"), ("tensorlake-sandbox-port", "81")): (
                grpc.StatusCode.UNAVAILABLE,
                "Connection to sandbox refused. The sandbox may not be running.",
            ),
        }  # fmt: skip
        for metadata, (code, details) in expected.items():
            with self.assertRaises(grpc.aio.AioRpcError) as caught:
                await self.channel.unary_unary("/s/Unary")(b"", metadata=metadata)
            self.assertEqual((caught.exception.code(), caught.exception.details()), (code, details))
        self.assertEqual(await self.channel.unary_unary("/s/Unary")(b"ok", metadata=ROUTE), b"ko")
        self.assertEqual(self.edge.connections, 1)

    @in_loop
    async def test_server_without_http2(self) -> None:
        await self.serve()
        await self.start_server(echo, port=82)
        with self.assertRaises(grpc.aio.AioRpcError) as caught:
            await self.channel.unary_unary("/s/Unary")(
                b"", metadata=(("tensorlake-sandbox-id", "sb-1"), ("tensorlake-sandbox-port", "82"))
            )
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertEqual(caught.exception.details(), "Failed to proxy request to sandbox.")

    @in_loop
    async def test_server_that_dies(self) -> None:
        service = await self.serve()
        calls = [self.channel.unary_unary("/s/Hang")(b"", metadata=ROUTE) for _ in range(3)]
        await service.hanging.wait()
        await self.until(lambda: self.edge.active_requests == 3)
        await self.grpc_server.stop(None)
        for call in calls:
            with self.assertRaises(grpc.aio.AioRpcError) as caught:
                await call
            self.assertIn(caught.exception.code(), (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED))
        await self.until(lambda: not self.edge.active_requests)

    @in_loop
    async def test_drain(self) -> None:
        """Running calls end; new ones are refused on this connection from the first moment."""
        await self.serve()
        both = self.channel.stream_stream("/s/Both")(metadata=ROUTE)
        await both.write(b"a")
        self.assertEqual(await both.read(), b"aa")
        stopped = Deferred.fromCoroutine(self.edge.stop(10))
        await both.write(b"b")
        self.assertEqual(await both.read(), b"bb")
        await both.done_writing()
        self.assertEqual(await both.read(), grpc.aio.EOF)
        self.assertEqual(await both.code(), grpc.StatusCode.OK)
        await self.until(lambda: not self.edge.connections)
        self.clock.advance(1)
        await to_asyncio(stopped)
        with self.assertRaises(grpc.aio.AioRpcError):
            await self.channel.unary_unary("/s/Unary")(b"", metadata=ROUTE)

    @in_loop
    async def test_idle_connections_end(self) -> None:
        await self.serve()
        for _ in range(2):
            self.assertEqual(await self.open_channel().unary_unary("/s/Unary")(b"ok", metadata=ROUTE), b"ko")
            assert self.edge._shared is not None and self.edge._shared.http2 is not None
            self.assertEqual(self.edge._shared.http2.count, 1)
            self.clock.pump([1] * 58)
            await self.until(lambda: not self.edge._shared.http2.count)
            self.clock.pump([1] * 20)
            await self.until(lambda: not self.edge.connections)

    @in_loop
    async def test_forgotten_container(self) -> None:
        await self.serve()
        await self.channel.unary_unary("/s/Unary")(b"ok", metadata=ROUTE)
        both = self.channel.stream_stream("/s/Both")(metadata=ROUTE)
        await both.write(b"a")
        await both.read()
        self.edge.forget("c-sb-1")
        await both.write(b"b")
        self.assertEqual(await both.read(), b"bb")
        await both.done_writing()
        await both.read()
        await self.until(lambda: not self.edge._shared.http2.count)

    @in_loop
    async def test_http1_client_of_a_grpc_port(self) -> None:
        """The content type decides how the container is spoken to; trailers arrive after the chunks."""
        await self.serve()
        client = await self.connect()
        route = f"Tensorlake-Sandbox-Port: {PORT}\r\nContent-Type: application/grpc\r\nTE: trailers\r\n".encode()
        message = b"\x00\x00\x00\x00\x03abc"
        client.send(get("/s/Unary", route + b"Content-Length: 8\r\n", "POST") + message)
        head = await client.reader.readuntil(b"\r\n\r\n")
        self.assertTrue(head.startswith(b"HTTP/1.1 200 OK\r\n"))
        rest = await client.reader.readuntil(b"\r\n\r\n")
        self.assertIn(b"\x00\x00\x00\x00\x03cba", rest)
        trailers = rest if b"grpc-status" in rest else await client.reader.readuntil(b"\r\n\r\n")
        self.assertIn(b"grpc-status: 0\r\n", trailers)
