"""The embedded control plane as a Twisted service: gRPC for executors, REST for clients, a proxy for sandbox hosts."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from random import SystemRandom
from typing import Any

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from .blobs import DirectoryBlobs
from .engine import LONG_POLL_SECS, Engine
from .grpc import GrpcPort

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
        repeat_removals: bool = True,
        snapshot_base: str | None = None,
        engine: Engine | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._blob_dir = str(blob_dir)
        self.engine = engine or Engine(
            clock=reactor,
            blobs=DirectoryBlobs(blob_dir),
            random=SystemRandom(),
            wall=wall,
            long_poll_secs=long_poll_secs,
            idle_container_secs=idle_container_secs,
            repeat_removals=repeat_removals,
            snapshot_base=snapshot_base,
        )
        grpc_service = GrpcService(self.engine, host, grpc_port, grpc_credentials)
        grpc_service.setServiceParent(self)  # type: ignore[no-untyped-call]
        self.grpc_started = grpc_service.started

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        log.warn("development control plane: its state is in memory and is gone when it stops", blob_dir=self._blob_dir)

    def stopService(self) -> Deferred[Any]:
        self.engine.close()
        return super().stopService()  # type: ignore[no-untyped-call,no-any-return]
