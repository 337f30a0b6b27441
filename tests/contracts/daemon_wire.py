"""What the daemon's contract suite speaks with: plain HTTP, event streams and WebSockets, each with a deadline."""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

from attrs import field, frozen
from wsproto.frame_protocol import FrameProtocol, Opcode

DEADLINE = 20.0
SMALL_DISK = 64 * 1024
"""Bytes that fit into ``DaemonRunner.small_disk``."""
T = TypeVar("T")


@frozen
class RunningDaemon:
    """A started daemon: where its ports are and how to end it."""

    http: tuple[str, int]
    grpc: tuple[str, int]
    pid: int
    signal: Callable[[int], None]
    wait: Callable[[], int]
    """Until it has ended; the exit code."""
    logs: Callable[[], tuple[str, str]]
    """Its standard output and standard error so far."""
    token: str | None = None


class DaemonRunner(Protocol):
    """How a place starts daemons; ``stop_all`` leaves nothing of them behind."""

    scratch: str
    """A directory inside the place that tests may fill, as the daemon sees it."""

    root: bool
    """Whether the daemon runs as root there and may switch users."""

    def start(self, *args: str, env: dict[str, str] | None = None, token: str | None = None) -> RunningDaemon:
        """Start one that serves; ``args`` as on its command line."""

    def stop_all(self) -> None: ...

    @property
    def small_disk(self) -> str:
        """A directory that all may write to, on a file system of its own with room for ``SMALL_DISK`` bytes. Raises
        SkipTest where none can be mounted."""


@frozen
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@frozen
class Event:
    name: str
    data: Any
    id: str | None


def eventually(look: Callable[[], T | None], what: str, timeout: float = DEADLINE) -> T:
    """The first truthy result of ``look``; AssertionError at the deadline."""
    end = time.monotonic() + timeout
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"did not come true within {timeout} s: {what}")
        time.sleep(0.01)


@frozen
class Api:
    """One daemon's HTTP API; each call on a connection of its own unless one is given."""

    address: tuple[str, int]
    headers: dict[str, str] = field(factory=dict)

    def connect(self, timeout: float = DEADLINE) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self.address, timeout=timeout)

    def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, raw: bytes | None = None
    ) -> Answer:
        connection = self.connect()
        try:
            return self.call_on(connection, method, path, body, headers, raw)
        finally:
            connection.close()

    def call_on(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
    ) -> Answer:
        fields = {**self.headers, **(headers or {})}
        if body is not None:
            raw = json.dumps(body).encode()
            fields.setdefault("content-type", "application/json")
        connection.request(method, "/api/v1" + path, body=raw, headers=fields)
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def start(self, command: str, *args: str, **options: Any) -> dict[str, Any]:
        answer = self.call("POST", "/processes", {"command": command, "args": list(args), **options})
        assert answer.status == 201, answer
        return answer.json

    def get(self, reference: object) -> dict[str, Any]:
        answer = self.call("GET", f"/processes/{reference}")
        assert answer.status == 200, answer
        return answer.json

    def ended(self, reference: object) -> dict[str, Any]:
        """The process once it has ended."""
        return eventually(
            lambda: info if (info := self.get(reference))["status"] != "running" else None, f"the end of {reference}"
        )

    def lines(self, reference: object, stream: str = "stdout") -> list[str]:
        return self.call("GET", f"/processes/{reference}/{stream}").json["lines"]

    def run(self, command: str, *args: str, **options: Any) -> list[Event]:
        stream = EventStream(self, "POST", "/processes/run", {"command": command, "args": list(args), **options})
        return list(stream)

    def output(self, command: str, *args: str, **options: Any) -> tuple[list[str], dict[str, Any]]:
        """The lines of a run, and its exit event."""
        events = self.run(command, *args, **options)
        return [e.data["line"] for e in events if e.name == "output"], events[-1].data

    def put(self, path: str, data: bytes) -> Answer:
        return self.call("PUT", file_path(path), raw=data)

    def read(self, path: str, headers: dict[str, str] | None = None) -> Answer:
        return self.call("GET", file_path(path), headers=headers)


def file_path(path: str, kind: str = "/files") -> str:
    return f"{kind}?path={quote(path, safe='')}"


class EventStream:
    """Server-sent events of one request, one by one as they come."""

    def __init__(
        self, api: Api, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> None:
        self._connection = api.connect()
        fields = {**api.headers, "accept": "text/event-stream", **(headers or {})}
        raw = None
        if body is not None:
            raw = json.dumps(body).encode()
            fields["content-type"] = "application/json"
        self._connection.request(method, "/api/v1" + path, body=raw, headers=fields)
        self._response = self._connection.getresponse()
        self.status = self._response.status
        self.content_type = self._response.getheader("content-type")
        self.comments: list[str] = []
        if self.status != 200:
            body = self._response.read()
            self._connection.close()
            raise AssertionError(f"{self.status}: {body!r}")

    def next(self) -> Event | None:
        """None at the end of the answer."""
        name, data, number = "message", None, None
        while raw := self._response.readline():
            line = raw.decode().rstrip("\n")
            if not line:
                if data is not None:
                    return Event(name, json.loads(data), number)
                continue
            key, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if key == "":
                self.comments.append(value)
            elif key == "event":
                name = value
            elif key == "data":
                data = value
            elif key == "id":
                number = value
        return None

    def __iter__(self) -> Iterator[Event]:
        try:
            while (event := self.next()) is not None:
                yield event
        finally:
            self.close()

    def close(self) -> None:
        self._response.close()
        self._connection.close()


class SocketClosed(Exception):
    """The peer closed; ``code`` None: without a close frame."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


class WebSocket:
    """A blocking WebSocket client; ``status`` other than 101 means that it was refused."""

    def __init__(self, api: Api, path: str, headers: dict[str, str] | None = None) -> None:
        self._socket = socket.create_connection(api.address, timeout=DEADLINE)
        fields = {
            "host": f"{api.address[0]}:{api.address[1]}",
            "connection": "Upgrade",
            "upgrade": "websocket",
            "sec-websocket-version": "13",
            "sec-websocket-key": base64.b64encode(os.urandom(16)).decode(),
            **api.headers,
            **(headers or {}),
        }
        head = f"GET /api/v1{path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n"
        self._socket.sendall(head.encode())
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = self._socket.recv(65536)
            if not chunk:
                raise AssertionError(f"closed in the middle of the handshake: {data!r}")
            data += chunk
        answer, _, rest = data.partition(b"\r\n\r\n")
        self.status = int(answer.split(b" ")[1])
        self.rest = rest
        self._frames = FrameProtocol(client=True, extensions=[])
        self._messages: list[bytes] = []
        self._part = b""
        if self.status == 101:
            self._take(rest)

    def send(self, data: bytes) -> None:
        self._socket.sendall(self._frames.send_data(data))

    def send_text(self, data: str) -> None:
        self._socket.sendall(self._frames.send_data(data))

    def receive(self) -> bytes:
        """The next binary message. Raises SocketClosed."""
        while not self._messages:
            try:
                data = self._socket.recv(1 << 20)
            except ConnectionResetError:
                data = b""
            if not data:
                raise SocketClosed(None, "")
            self._take(data)
        found = self._messages.pop(0)
        if isinstance(found, SocketClosed):
            raise found
        return found

    def close(self, code: int = 1000) -> None:
        self._socket.sendall(self._frames.close(code, ""))

    def drop(self) -> None:
        self._socket.close()

    def _take(self, data: bytes) -> None:
        self._frames.receive_bytes(data)
        for frame in self._frames.received_frames():
            if frame.opcode is Opcode.PING:
                self._socket.sendall(self._frames.pong(bytes(frame.payload)))
            elif frame.opcode is Opcode.CLOSE:
                code, reason = frame.payload
                self._messages.append(SocketClosed(int(code), reason or ""))  # type: ignore[arg-type]
            elif frame.opcode is not Opcode.PONG:
                self._part += bytes(frame.payload)
                if frame.message_finished:
                    self._messages.append(self._part)
                    self._part = b""
