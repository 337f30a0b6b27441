"""A small sandbox-proxy: finds the sandbox that a request is for and passes the request to its executor's proxy.

SDKs reach sandboxes by host names (``<id>.local``, ``<port>-<id>.example.org``) or by ``X-Tensorlake-Sandbox-Id``.
Every request of a connection is routed by itself, so one connection may serve several sandboxes. HTTP/1.1 with bodies
streamed both ways, interim answers, trailers and upgrades (WebSocket).

An upstream that was connected but ends without an answer closes the client's connection instead of answering 502:
SDKs send a request again on 502, and a command would run twice.
"""

from __future__ import annotations

import json
from typing import Any

import h11
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from .engine import Engine
from .sandbox_directory import HEAD_END, Directory, NoRoute, is_upgrade, passed_on, wanted, with_one_host

log = Logger()

CONNECT_SECS = 10.0
HEAD_BYTES = 64 * 1024


class Client(Protocol):
    """A connection of a client: one request after the other, each with an upstream connection of its own."""

    def __init__(self, directory: Directory, reactor: Any, connections: set[Client]) -> None:
        self._directory = directory
        self._reactor = reactor
        self._connections = connections
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self._upstream: Upstream | None = None
        self._connecting: Deferred[Upstream] | None = None
        self._tunnel = False
        self._last = False
        self._method = b""
        self._head = b""

    def connectionMade(self) -> None:
        self._connections.add(self)
        transport: Any = self.transport
        transport.setTcpNoDelay(True)
        transport.registerProducer(self, True)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._connections.discard(self)
        if self._connecting is not None:
            self._connecting.cancel()
        if self._upstream is not None:
            self._upstream.leave()

    # The client is slow, or fast again: hold the upstream.

    def pauseProducing(self) -> None:
        if self._upstream is not None:
            self._upstream.pause()

    def resumeProducing(self) -> None:
        if self._upstream is not None:
            self._upstream.resume()

    def stopProducing(self) -> None:
        """The transport is gone; ``connectionLost`` ends the upstream."""

    def pause(self) -> None:
        transport: Any = self.transport
        transport.pauseProducing()

    def resume(self) -> None:
        transport: Any = self.transport
        transport.resumeProducing()

    # From the client

    def dataReceived(self, data: bytes) -> None:
        if self._tunnel and self._upstream is not None:
            self._upstream.send_raw(data)
            return
        if self._http.their_state is h11.IDLE and not self._http.trailing_data[0]:
            # Nothing of this request was read yet: keep its head until it is whole.
            self._head += data
            end = HEAD_END.search(self._head)
            if end is None and len(self._head) <= HEAD_BYTES:
                return
            size = end.end() if end else 0
            data, self._head = with_one_host(self._head[:size]) + self._head[size:], b""
        self._http.receive_data(data)
        self._advance()

    def _advance(self) -> None:
        try:
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    return
                if isinstance(event, h11.Request):
                    self._begin(event)
                    return
                if isinstance(event, h11.Data | h11.EndOfMessage):
                    if self._upstream is not None:
                        self._upstream.send(event)
                elif isinstance(event, h11.ConnectionClosed):
                    return
        except h11.RemoteProtocolError as error:
            log.debug("client broke the protocol", error=str(error))
            self._refuse(NoRoute(error.error_status_hint, "BAD_REQUEST", str(error)))

    def _begin(self, request: h11.Request) -> None:
        self._method = bytes(request.method)
        headers = [(bytes(name).lower(), bytes(value)) for name, value in request.headers]
        try:
            target = wanted(headers)
            host, port = self._directory.address(target.sandbox_id)
        except NoRoute as problem:
            self._refuse(problem)
            return
        forwarded = h11.Request(
            method=request.method,
            target=request.target,
            headers=[
                *passed_on(headers, upgrade=is_upgrade(headers)),
                (b"X-Tensorlake-Sandbox-Id", target.sandbox_id.encode()),
                (b"X-Tensorlake-Sandbox-Port", str(target.port).encode()),
            ],
        )
        self.pause()
        self._connecting = self._connect(host, port)
        self._connecting.addCallbacks(self._connected, self._unreachable, callbackArgs=(forwarded,))
        self._connecting.addErrback(self._broken)

    def _connect(self, host: str, port: int) -> Deferred[Upstream]:
        endpoint: Any = HostnameEndpoint(self._reactor, host, port, timeout=CONNECT_SECS)
        connecting: Deferred[Upstream] = endpoint.connect(UpstreamFactory(self))
        return connecting

    def _connected(self, upstream: Upstream, request: h11.Request) -> None:
        self._connecting = None
        self._upstream = upstream
        upstream.send(request)
        self.resume()
        self._advance()

    def _unreachable(self, failure: Failure) -> None:
        self._connecting = None
        failure.trap(ConnectError, DNSLookupError)
        self.resume()
        self._refuse(NoRoute(502, "SANDBOX_UNREACHABLE", f"the executor's proxy: {failure.getErrorMessage()}"))

    def _broken(self, failure: Failure) -> None:
        transport: Any = self.transport
        if transport.connected:
            log.failure("request not passed on", failure)
            transport.abortConnection()

    def _refuse(self, problem: NoRoute) -> None:
        """Answer by ourselves, and close: what follows of the request's body is not read."""
        transport: Any = self.transport
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            transport.abortConnection()
            return
        body = json.dumps({"error": str(problem), "code": problem.code}).encode()
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        response = h11.Response(status_code=problem.status, headers=headers)
        self._write(self._http.send(response))
        if self._method != b"HEAD":
            self._write(self._http.send(h11.Data(data=body)))
        self._write(self._http.send(h11.EndOfMessage()))
        self._close()

    # From the upstream

    def _write(self, data: bytes | None) -> None:
        transport: Any = self.transport
        if data:
            transport.write(data)

    def answered(self, event: h11.Event) -> None:
        """Pass an event of the upstream's answer on."""
        if isinstance(event, h11.Response):
            headers = [(bytes(n).lower(), bytes(v)) for n, v in event.headers]
            self._last = any(n == b"connection" and b"close" in v.lower() for n, v in headers)
            event = h11.Response(
                status_code=event.status_code, headers=passed_on(headers, upgrade=False), reason=event.reason
            )
        elif isinstance(event, h11.InformationalResponse) and event.status_code == 101:
            headers = [(bytes(n).lower(), bytes(v)) for n, v in event.headers]
            event = h11.InformationalResponse(
                status_code=101, headers=passed_on(headers, upgrade=True), reason=event.reason
            )
        self._write(self._http.send(event))

    def switched(self, early: bytes) -> None:
        """The upstream upgraded the connection: from here bytes pass both ways as they are."""
        self._tunnel = True
        sent, _ = self._http.trailing_data
        if self._upstream is not None and sent:
            self._upstream.send_raw(sent)
        self._write(early)

    def _close(self) -> None:
        """Close when everything is written. A transport that still has a paused producer would wait for it for ever."""
        transport: Any = self.transport
        transport.unregisterProducer()
        transport.loseConnection()

    def send_raw(self, data: bytes) -> None:
        self._write(data)

    def finished(self) -> None:
        """The answer is complete; the next request may come over this connection."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.leave()
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            self.resume()
            self._advance()
        else:
            self._close()

    def upstream_lost(self) -> None:
        """The upstream ended in the middle, or a tunnel ended."""
        self._upstream = None
        transport: Any = self.transport
        if self._tunnel:
            self._close()
        else:
            transport.abortConnection()


class Upstream(Protocol):
    """A connection to an executor's proxy, for one request of one client."""

    def __init__(self, client: Client) -> None:
        self._client: Client | None = client
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)
        self._tunnel = False

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.setTcpNoDelay(True)
        transport.registerProducer(self, True)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        if not self._tunnel:
            # A body without a length ends with the connection; anything else was cut.
            self._client = client
            self.dataReceived(b"")
            if self._client is None:
                return
            self._client = None
        client.upstream_lost()

    def pauseProducing(self) -> None:
        if self._client is not None:
            self._client.pause()

    def resumeProducing(self) -> None:
        if self._client is not None:
            self._client.resume()

    def stopProducing(self) -> None:
        """The transport is gone; ``connectionLost`` tells the client."""

    def pause(self) -> None:
        transport: Any = self.transport
        transport.pauseProducing()

    def resume(self) -> None:
        transport: Any = self.transport
        transport.resumeProducing()

    def leave(self) -> None:
        """The client is done with this connection."""
        self._client = None
        transport: Any = self.transport
        transport.abortConnection()

    def send(self, event: h11.Event) -> None:
        transport: Any = self.transport
        try:
            data = self._http.send(event)
        except h11.LocalProtocolError as error:
            # The upstream answered before the request was complete and takes no more of it.
            log.debug("rest of a request not sent", error=str(error))
            return
        if data:
            transport.write(data)

    def send_raw(self, data: bytes) -> None:
        transport: Any = self.transport
        transport.write(data)

    def dataReceived(self, data: bytes) -> None:
        if self._client is None:
            return
        if self._tunnel:
            self._client.send_raw(data)
            return
        try:
            self._http.receive_data(data)
            while self._client is not None:
                event = self._http.next_event()
                if event is h11.NEED_DATA or isinstance(event, h11.ConnectionClosed):
                    return
                if event is h11.PAUSED:
                    if self._http.their_state is h11.SWITCHED_PROTOCOL:
                        self._tunnel = True
                        self._client.switched(self._http.trailing_data[0])
                    return
                assert isinstance(event, h11.Event)
                self._client.answered(event)
                if isinstance(event, h11.EndOfMessage):
                    self._client.finished()
        except (h11.RemoteProtocolError, h11.LocalProtocolError) as error:
            log.warn("the executor's proxy broke the protocol", error=str(error))
            client, self._client = self._client, None
            transport: Any = self.transport
            transport.abortConnection()
            if client is not None:
                client.upstream_lost()


class UpstreamFactory(Factory):
    """Makes the upstream connection of one request."""

    noisy = False

    def __init__(self, client: Client) -> None:
        self._client = client

    def buildProtocol(self, addr: Any) -> Upstream:
        return Upstream(self._client)


class SandboxProxy(Factory):
    """Listens for clients; ``close`` ends what is open."""

    noisy = False

    def __init__(self, engine: Engine, reactor: Any) -> None:
        self._directory = Directory(engine)
        self._reactor = reactor
        self._connections: set[Client] = set()

    def buildProtocol(self, addr: Any) -> Client:
        return Client(self._directory, self._reactor, self._connections)

    def close(self) -> None:
        for client in list(self._connections):
            transport: Any = client.transport
            transport.abortConnection()
