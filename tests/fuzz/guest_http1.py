"""The guest daemon's HTTP/1.1 port in memory, with the daemon's own router, bodies and JSON orders."""

from __future__ import annotations

import zlib
from typing import Any

import h11
import httptools

from indexify_dataplane.guest.http1 import LARGEST_HEAD
from indexify_dataplane.guest.http_server import HttpServer
from indexify_dataplane.guest.logs import Log
from indexify_dataplane.guest.messages import Answer, Out, Reply, Request, Stream, Upgrade, Wire, json_reply
from indexify_dataplane.guest.process_request import requested_order, requested_supervision
from indexify_dataplane.guest.ranges import requested_range
from indexify_dataplane.guest.refusal import Refusal
from indexify_dataplane.guest.router import Router
from indexify_dataplane.guest.schema import json_fields
from indexify_dataplane.guest.websocket import WebSocket, WebSocketClosed, accept_headers

from . import wire
from .wire import Loop, cuts, expect, in_loop, responses_by_h11, settle

Seen = tuple[str, str, tuple[tuple[bytes, bytes], ...], bytes]


def silent_log(lines: list[str]) -> Log:
    return Log(write=lambda line: lines.append(line.decode("utf-8", "replace")), level="warn")


class Endpoints:
    """One for each way to treat a body; ``seen`` has what was read whole."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, bytes]] = []
        self.seen: list[Seen] = []
        self._router = self._routes()

    async def answer(self, request: Request) -> Answer:
        self.asked.append((request.method.encode(), request.path.encode("latin-1")))
        return await self._router.answer(request)

    async def echo(self, request: Request) -> Answer:
        body = await request.read_all(1 << 20)
        self._note(request, body)
        return Reply(200, b"%d" % zlib.crc32(body))

    async def unread(self, request: Request) -> Answer:
        self._note(request, b"")
        return Reply(200, b"ok")

    async def stream(self, request: Request) -> Answer:
        parts = [await request.read_all(1 << 20), b"", b"end"]

        async def produce(out: Out) -> None:
            for part in parts:
                await out.write(part)

        return Stream(200, produce)

    async def order(self, request: Request) -> Answer:
        fields = await json_fields(request)
        found = requested_order(fields, None, ends_with_leader=False), requested_supervision(fields)
        expect(found[0].command, "an order has a command")
        return json_reply(200, {"command": found[0].command, "args": list(found[0].args)})

    async def part(self, request: Request, name: str) -> Answer:
        found = requested_range(request, 10, '"tag"')
        expect(found is None or 0 <= found.first <= found.last < 10, "a range lies in the file", found)
        self._note(request, b"")
        return json_reply(200, {"name": name, "query": request.query})

    async def upgrade(self, request: Request) -> Answer:
        headers = accept_headers(request)

        async def attend(wire: Wire) -> None:
            socket = WebSocket(wire=wire)
            try:
                while True:
                    message = await socket.receive(1000)
                    await socket.send(message.encode() if isinstance(message, str) else message)
            except WebSocketClosed:
                await socket.close(1000, "")

        return Upgrade(attend, headers=headers)

    def _note(self, request: Request, body: bytes) -> None:
        self.seen.append((request.method, request.path, tuple(request.headers), body))

    def _routes(self) -> Router:
        return Router(
            routes=[
                ("POST", "/echo", self.echo), ("PUT", "/echo", self.echo), ("GET", "/echo", self.echo),
                ("POST", "/unread", self.unread), ("POST", "/stream", self.stream), ("POST", "/order", self.order),
                ("GET", "/part/{}", self.part), ("GET", "/ws", self.upgrade),
            ],
            token=None,
        )  # fmt: skip


class _Others:
    """The requests as llhttp reads them."""

    def __init__(self, data: bytes) -> None:
        self.found: list[tuple[bytes, bytes, bytes]] = []
        self._url = self._body = b""
        self._parser: Any = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return

    def on_message_begin(self) -> None:
        self._url = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self.found.append((self._parser.get_method(), self._url, self._body))


async def _serve(loop: Loop, arriving: list[bytes]) -> tuple[Endpoints, bytes, bool]:
    lines: list[str] = []
    endpoints = Endpoints()
    server = HttpServer(answer=endpoints.answer, loop=loop, log=silent_log(lines))
    connection: Any = server.protocol()
    client = wire.Wire(connection).begin()
    for piece in arriving:
        client.feed(piece)
        await settle(client)
        expect(len(connection._ahead) <= LARGEST_HEAD + len(piece), "what waits is bounded", len(connection._ahead))
        parser = connection._parser
        if parser is not None:
            expect(len(parser.trailing_data[0]) <= LARGEST_HEAD + len(piece), "what the parser keeps is bounded")
    client.end()
    await settle(client)
    sent, closed = bytes(client.written), client.closing
    await server.close(0)
    client.lose(None)
    await settle(client)
    expect(not lines, "no request fails", lines)
    expect(connection.task is None, "no request outlives its connection")
    return endpoints, sent, closed


def guest_request(data: bytes) -> None:
    """Requests on one connection: read alike whatever the pieces, as llhttp reads them, and answered well-formed."""
    if not data:
        return
    outcomes: list[tuple[Endpoints, bytes, bool]] = []

    async def work(loop: Loop, arriving: list[bytes]) -> None:
        outcomes.append(await _serve(loop, arriving))

    in_loop(lambda loop: work(loop, [data]))
    in_loop(lambda loop: work(loop, cuts(data)))
    (endpoints, sent, closed), (in_pieces, sent_in_pieces, _) = outcomes
    if b"/unread" not in data:
        # How much of a body nobody reads has come decides whether the connection goes on.
        expect(endpoints.seen == in_pieces.seen, "pieces change nothing", data, endpoints.seen, in_pieces.seen)
    expect(endpoints.asked[:1] == in_pieces.asked[:1], "pieces change nothing of the first request", data)
    expect(sent[:12] == sent_in_pieces[:12], "pieces do not change the first answer", data, sent, sent_in_pieces)
    _check_answers(data, sent, closed)
    if endpoints.asked:
        _compare(data, endpoints)


def _check_answers(data: bytes, sent: bytes, closed: bool) -> None:
    if not sent:
        return
    method = data.lstrip(b"\r\n").partition(b" ")[0]
    try:
        answers = responses_by_h11(sent, [b"HEAD" if method == b"HEAD" else b"GET"], closed=closed)
    except h11.RemoteProtocolError as error:
        # Cut after "100 Continue", where the body did not come; anything else has to be an answer.
        expect("ConnectionClosed" in str(error), "a client gets an answer", data, sent, error)
        return
    if answers:
        expect(answers[0].head.status_code != 500, "no request fails", data, sent)


def _compare(data: bytes, mine: Endpoints) -> None:
    """Only the first request, and if llhttp has read it to its end; h11 forgives more than llhttp."""
    others = _Others(data).found
    if not others:
        return
    method, url, body = others[0]
    path = url.partition(b"?")[0]
    if not path.startswith(b"/"):
        return
    expect(mine.asked[0] == (method, path), "llhttp reads the same line", data, mine.asked[0], method, path)
    if path == b"/echo" and mine.seen and method in (b"GET", b"PUT", b"POST"):
        expect(mine.seen[0][3] == body, "llhttp reads the same body", data, mine.seen[0][3], body)


def guest_order(data: bytes) -> None:
    """Any JSON for the order of a process is an order or is refused with a status that is the client's fault."""

    async def work(loop: Loop) -> None:
        lines: list[str] = []
        endpoints = Endpoints()
        server = HttpServer(answer=endpoints.answer, loop=loop, log=silent_log(lines))
        client = wire.Wire(server.protocol()).begin()
        head = b"POST /order HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        client.feed(head % len(data) + data)
        await settle(client)
        status = bytes(client.written[9:12])
        expect(status in (b"200", b"400", b"403", b"422"), "an order is taken or refused", data, bytes(client.written))
        expect(not lines, "no request fails", lines)
        client.lose(None)
        await server.close(0)
        await settle(client)

    in_loop(work)


__all__ = ["Refusal", "guest_order", "guest_request"]
