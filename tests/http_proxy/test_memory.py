"""However much one side sends and however slowly the other reads, the proxy keeps no more than its buffers."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from .support import EdgeCase, get, in_loop, read_head

SIZE = 256 << 20
BLOCK = bytes(range(256)) * 1024
BOUND = 24 << 20
"""The test's own server and client live in the same process, each with a buffer."""


def resident() -> int:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) << 10


class Memory(EdgeCase):
    timeout = 60

    def taken(self) -> None:
        self.base = resident()
        self.most = self.base

    def look(self) -> None:
        self.most = max(self.most, resident())

    async def stalls(self, moved: list[int]) -> None:
        """Wait until nothing moves any more: all buffers on the way are full."""
        before, still = -1, 0
        while still < 200:
            await asyncio.sleep(0)
            still = still + 1 if moved[0] == before else 0
            before = moved[0]
            self.look()

    @in_loop
    async def test_slow_reader(self) -> None:
        moved = [0]
        chunked = False

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            await read_head(reader)
            writer.transport.set_write_buffer_limits(1 << 16)
            if chunked:
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
            for _ in range(SIZE // len(BLOCK)):
                writer.write(b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK) if chunked else BLOCK)
                await writer.drain()
                moved[0] += len(BLOCK)
            if chunked:
                writer.write(b"0\r\n\r\n")

        await self.start_server(serve)
        await self.start_edge()
        for chunked in (False, True):
            moved[0] = 0
            client = await self.connect(limit=1 << 16)
            self.taken()
            client.send(get())
            head = await read_head(client.reader)
            self.assertIn(b"chunked" if chunked else b"Content-Length", head)
            await self.stalls(moved)
            self.assertLess(moved[0], 32 << 20, "the container was stopped")
            self.assertLess(self.most - self.base, BOUND)
            got = 0
            while got < SIZE:
                got += len(await client.reader.read(1 << 18))
                self.look()
            self.assertLess(self.most - self.base, BOUND)
            client.close()

    @in_loop
    async def test_slow_container(self) -> None:
        go = asyncio.Event()
        total = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            nonlocal total
            await read_head(reader)
            await go.wait()
            while total < SIZE:
                total += len(await reader.read(1 << 18))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        await self.start_server(serve)
        await self.start_edge()
        client = await self.connect()
        client.writer.transport.set_write_buffer_limits(1 << 16)
        self.taken()
        moved = [0]
        client.send(get("/", b"Content-Length: %d\r\n" % SIZE, "POST"))

        async def send() -> None:
            for _ in range(SIZE // len(BLOCK)):
                client.send(BLOCK)
                await client.writer.drain()
                moved[0] += len(BLOCK)

        sending = asyncio.create_task(send())
        await self.stalls(moved)
        self.assertLess(moved[0], 32 << 20, "the client was stopped")
        self.assertLess(self.most - self.base, BOUND)
        go.set()
        await sending
        self.assertEqual((await client.answer()).body, b"ok")
        self.assertEqual(total, SIZE)
        self.look()
        self.assertLess(self.most - self.base, BOUND)

    @in_loop
    async def test_requests_without_end_from_a_client_that_never_reads(self) -> None:
        served = [0]

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            while True:
                await read_head(reader)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BLOCK), BLOCK))
                await writer.drain()
                served[0] += 1

        await self.start_server(serve)
        await self.start_edge()
        client = await self.connect(limit=1 << 16)
        self.taken()
        client.send(get() * 2000)
        await self.stalls(served)
        self.assertLess(served[0], 200)
        self.assertLess(self.most - self.base, BOUND)
        for _ in range(300):
            answer = await client.answer()
            self.assertEqual(len(answer.body), len(BLOCK))

    @in_loop
    async def test_paused_connection_serves_the_next_request(self) -> None:
        """A connection to a container that was paused for a slow client is read again when it is used again."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
            while True:
                await read_head(reader)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(BLOCK) * 40))
                for _ in range(40):
                    writer.write(BLOCK)

        server = await self.start_server(serve)
        await self.start_edge()
        for _ in range(4):
            client = await self.connect(limit=1 << 16)
            client.send(get())
            await read_head(client.reader)
            for _ in range(300):
                await asyncio.sleep(0)
            await asyncio.wait_for(client.reader.readexactly(len(BLOCK) * 40), 10)
            client.close()
        self.assertEqual(server.connections, 1)
