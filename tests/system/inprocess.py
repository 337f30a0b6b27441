"""The control plane in the test's own process, so that its faults and records are at hand, and the wire to it.

Tests run in a thread (``threaded``) while the reactor goes on; everything here may be called from that thread.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest_twisted
from google.protobuf.message import Message
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import blockingCallFromThread, deferToThread
from twisted.protocols.portforward import ProxyFactory

from indexify_dataplane.devserver.blobs import Blobs, DirectoryBlobs
from indexify_dataplane.devserver.engine import Engine
from indexify_dataplane.devserver.service import DevServer
from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .harness import Rest

T = TypeVar("T")


def threaded(test: Callable[..., None]) -> Any:
    """Run a blocking test beside the reactor."""

    @pytest_twisted.ensureDeferred
    @functools.wraps(test)
    async def beside(*args: Any, **fixtures: Any) -> None:
        await deferToThread(test, *args, **fixtures)

    return beside


def in_reactor(call: Callable[..., T], *args: Any, **options: Any) -> T:
    return blockingCallFromThread(reactor, call, *args, **options)


class EngineServer:
    """A DevServer whose engine can be given orders; it can be stopped and started again on the same ports."""

    def __init__(
        self, directory: Path, *, liveness_secs: float = 30.0, seed: int = 0, blobs: Blobs | None = None
    ) -> None:
        self._directory = directory
        self._ports = {"grpc": 0, "rest": 0}
        self.engine = Engine(
            clock=reactor, blobs=blobs or DirectoryBlobs(directory / "blobs"), random=Random(seed), wall=time.time,
            liveness_secs=liveness_secs, idle_container_secs=60.0, repeat_removals=True,
        )  # fmt: skip
        self.engine.faults.recording = True
        self.start()

    def start(self) -> None:
        async def listen() -> dict[str, int]:
            self._server = DevServer(
                reactor, blob_dir=self._directory / "blobs", grpc_port=self._ports["grpc"],
                rest_port=self._ports["rest"], sandbox_proxy_port=None, engine=self.engine,
            )  # fmt: skip
            self._server.startService()
            return await self._server.listening()

        self._ports = in_reactor(lambda: Deferred.fromCoroutine(listen()))
        self.grpc_port = self._ports["grpc"]
        self.rest = Rest(self._ports["rest"])

    def stop(self) -> None:
        """Close ports and connections; what the engine knows stays."""
        in_reactor(lambda: maybeDeferred(self._server.stopService))

    def order(self, call: Callable[[Engine], T]) -> T:
        return in_reactor(lambda: call(self.engine))

    def heartbeats(self) -> list[pb.HeartbeatRequest]:
        """All that came so far."""
        found: list[tuple[str, Message]] = self.order(lambda engine: list(engine.faults.recorded))
        return [request for rpc, request in found if isinstance(request, pb.HeartbeatRequest)]

    def stopped(self) -> list[str]:
        """Executors that said that they stop, as often as they said it."""
        return [each.executor_id for each in self.heartbeats() if each.status == pb.EXECUTOR_STATUS_STOPPED]


class Wire:
    """A TCP relay between node and server that can be cut, silently (nothing arrives) or with refusals."""

    def __init__(self, target: int) -> None:
        self._factory = _Relay("127.0.0.1", target)
        self._listening: Any = in_reactor(lambda: reactor.listenTCP(0, self._factory, interface="127.0.0.1"))
        self.port = int(self._listening.getHost().port)

    def silence(self) -> None:
        """What is sent does not arrive any more, and nobody is told."""
        in_reactor(self._factory.silence)

    def refuse(self) -> None:
        """All connections break, new ones are refused."""
        self.close()

    def restore(self) -> None:
        """New connections pass; those of before, if any are left, break."""

        def listen() -> None:
            self._factory.break_all()
            self._factory.silent = False
            if self._listening is None:
                self._listening = reactor.listenTCP(self.port, self._factory, interface="127.0.0.1")

        in_reactor(listen)

    def close(self) -> None:
        def end() -> Any:
            self._factory.break_all()
            listening, self._listening = self._listening, None
            return maybeDeferred(listening.stopListening) if listening is not None else None

        in_reactor(end)


class _Relay(ProxyFactory):
    noisy = False

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.open: list[Any] = []
        self.silent = False

    def buildProtocol(self, address: Any) -> Any:
        relay = Protocol() if self.silent else Factory.buildProtocol(self, address)
        self.open.append(relay)
        return relay

    def silence(self) -> None:
        self.silent = True
        for relay in self.open:
            self._pause(relay)

    def _pause(self, relay: Any) -> None:
        for end in (relay, getattr(relay, "peer", None)):
            if end is not None and end.transport is not None:
                end.transport.pauseProducing()

    def break_all(self) -> None:
        for relay in self.open:
            for end in (relay, getattr(relay, "peer", None)):
                if end is not None and end.transport is not None:
                    end.transport.abortConnection()
        self.open.clear()
