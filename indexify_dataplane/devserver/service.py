"""The embedded control plane as a Twisted service: gRPC for executors, REST for clients, a proxy for sandbox hosts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from random import SystemRandom
from typing import Any

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.logger import Logger

from .blobs import DirectoryBlobs
from .engine import LONG_POLL_SECS, Engine
from .grpc import GrpcPort
from .image_builds import ImageBuilds
from .rest import RestConnections, RestSite, Routes
from .rest_applications import ApplicationRoutes
from .rest_image_builds import ImageBuildRoutes
from .rest_sandboxes import SandboxRoutes
from .sandbox_proxy import SandboxProxy

log = Logger()

IDLE_CONTAINER_SECS = 60.0
"""How long an idle function container is kept for the next call, so that trying something twice is quick."""


class GrpcService(Service):
    """Owns the gRPC port. ``started`` fires with the bound port, or fails with OSError."""

    def __init__(self, engine: Engine, host: str, port: int, credentials: Any = None) -> None:
        self._port = GrpcPort(engine, host, port, credentials)
        self.started: Deferred[int] = Deferred()

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        Deferred.fromCoroutine(self._port.start()).chainDeferred(self.started)

    def stopService(self) -> Deferred[None]:
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._port.stop())


class TcpService(Service):
    """Owns one listening port. ``started`` fires with the bound port, or fails with OSError."""

    def __init__(self, reactor: Any, what: str, factory: Any, host: str, port: int) -> None:
        self._reactor = reactor
        self._what = what
        self._factory = factory
        self._host = host
        self._wanted = port
        self._listening: Any = None
        self.started: Deferred[int] = Deferred()

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        try:
            self._listening = self._reactor.listenTCP(self._wanted, self._factory, interface=self._host)
        except CannotListenError as error:
            self.started.errback(OSError(f"cannot listen on {self._host}:{self._wanted} for {self._what}: {error}"))
            return
        self.started.callback(self._listening.getHost().port)

    async def _stop(self) -> None:
        if self._listening is not None:
            listening, self._listening = self._listening, None
            await maybeDeferred(listening.stopListening)

    def stopService(self) -> Deferred[None]:
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())


def rest_routes(engine: Engine, clock: Any, allowed_hosts: Iterable[str] = ()) -> Routes:
    """Everything that REST clients can ask of an engine."""
    builds = ImageBuilds(engine.world, clock.seconds)
    sandboxes = SandboxRoutes(engine)
    patterns = [
        *ImageBuildRoutes(engine, builds, sandboxes).patterns(),
        *sandboxes.patterns(),
        *ApplicationRoutes(engine, clock).patterns(),
    ]
    # SDKs name a sandbox on this machine by its host name, <id>.local.
    return Routes(patterns, allowed_hosts, lambda name: builds.builder(name.removesuffix(".local")) is not None)


class DevServer(MultiService):
    """A development control plane. Everything it knows is in memory and gone when it stops; only blobs are files.

    Ports may be 0; ``grpc_started``, ``rest_started`` and ``sandbox_proxy_started`` fire with the bound ones, or fail
    with the reason for which there is none. ``sandbox_proxy_port`` None leaves the sandbox-proxy out. ``clock`` is the
    reactor unless a test gives another.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        blob_dir: str | Path,
        host: str = "127.0.0.1",
        grpc_port: int = 8901,
        rest_port: int = 8900,
        sandbox_proxy_port: int | None = 9443,
        allowed_hosts: tuple[str, ...] = (),
        grpc_credentials: Any = None,
        long_poll_secs: float = LONG_POLL_SECS,
        idle_container_secs: float = IDLE_CONTAINER_SECS,
        queue_size: int = 1,
        repeat_removals: bool = True,
        snapshot_base: str | None = None,
        engine: Engine | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._blob_dir = str(blob_dir)
        self._host = host
        self.engine = engine or Engine(
            clock=reactor,
            blobs=DirectoryBlobs(blob_dir),
            random=SystemRandom(),
            wall=wall,
            long_poll_secs=long_poll_secs,
            idle_container_secs=idle_container_secs,
            queue_size=queue_size,
            repeat_removals=repeat_removals,
            snapshot_base=snapshot_base,
        )
        grpc_service = GrpcService(self.engine, host, grpc_port, grpc_credentials)
        grpc_service.setServiceParent(self)  # type: ignore[no-untyped-call]
        self.grpc_started = grpc_service.started
        site = RestSite(rest_routes(self.engine, reactor, allowed_hosts), reactor)
        self._rest = RestConnections(site)  # type: ignore[no-untyped-call]
        rest_service = TcpService(reactor, "REST", self._rest, host, rest_port)
        rest_service.setServiceParent(self)  # type: ignore[no-untyped-call]
        self.rest_started = rest_service.started
        self._proxy = SandboxProxy(self.engine, reactor)
        self.sandbox_proxy_started: Deferred[int] | None = None
        if sandbox_proxy_port is not None:
            proxy_service = TcpService(reactor, "the sandbox-proxy", self._proxy, host, sandbox_proxy_port)
            proxy_service.setServiceParent(self)  # type: ignore[no-untyped-call]
            self.sandbox_proxy_started = proxy_service.started

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        log.warn("development control plane: its state is in memory and is gone when it stops", blob_dir=self._blob_dir)

    async def listening(self) -> dict[str, int]:
        """Wait until every listener is up; the bound ports by name. OSError when one cannot be had."""
        ports = {"grpc": await self.grpc_started, "rest": await self.rest_started}
        if self.sandbox_proxy_started is not None:
            ports["sandbox_proxy"] = await self.sandbox_proxy_started
        log.info("development control plane is listening", host=self._host, **ports)
        return ports

    def stopService(self) -> Deferred[Any]:
        self.engine.close()
        self._rest.close()
        self._proxy.close()
        return super().stopService()  # type: ignore[no-untyped-call,no-any-return]
