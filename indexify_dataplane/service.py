"""The composition root: configuration in, one running node out.

``Root`` is the MultiService that twistd, twist and the console script run. Its children are heartbeat, the two polls,
reconciliation, proxy and monitoring (and the control plane of ``dev``). They start in the order in which they need one
another and stop in the order that loses nothing, so ``Root`` starts and stops them itself; being its children gives
them names and an owner.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
import uuid
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import CannotListenError, ReactorNotRunning
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from . import __version__, build, link_metrics, node_gauges
from .config import Config, Loaded
from .config_show import flat
from .control.client import GrpcTransport
from .control.tls import TlsError
from .control_socket import ControlSocket, ControlSocketError
from .core.model import Kind
from .daemon_client import GrpcDaemons
from .dataplane import Dataplane
from .drivers.base import DriverError
from .host import gpus
from .host.resources import HostResources, ResourcesUnknown, probe
from .host.usage import FreeResources
from .http_proxy.edge import Edge
from .logs import LogPipe, create, start
from .metrics import Metrics, begin_counters
from .monitoring import Monitoring
from .otlp import metrics_push
from .process import Signals, exit_with, exit_within, quiet_libraries, raise_file_limit, settle_memory, share_one_arena
from .proxy_service import ProxyService
from .reactor import Pool
from .state_view import View
from .store import Store, StoreError, control_socket, place
from .telemetry import resource
from .tracing import Tracing, tracing

if TYPE_CHECKING:
    from .cli import DevOptions

log = Logger()
T = TypeVar("T")

DRAIN_SECS = 3.0
"""How long reports may still be delivered at a stop; whoever stops the node kills it after five seconds."""

STOP_SECS = 30.0
"""How long a stop may take besides the proxy's drain before the process ends as it is."""

BLOB_PATIENCE_SECS = 0.5
"""What calls to blob stores have to finish; nobody waits for them any more, and what they begin is swept later."""
ONE_ORDER_SECS = 0.5
"""Signals so close to the first one are the same order, told to the process and to its group as timeout(1) does it; a
later one means now."""

EXPECTED = (StoreError, DriverError, TlsError, ControlSocketError, ResourcesUnknown, CannotListenError, OSError)
"""What can make a start impossible; the error's own text is the sentence for the operator."""


class Root(MultiService):
    """One node. ``owns_process``: the console script runs it, and reads ``exit_code`` when the reactor has stopped."""

    name = "indexify-dataplane"

    def __init__(self, *, loaded: Loaded, dev: DevOptions | None, owns_process: bool) -> None:
        base: Any = super()
        base.__init__()
        self.exit_code = 0
        self._loaded = loaded
        self._config = loaded.config
        self._dev = dev
        self._owns_process = owns_process
        self._pipe: LogPipe | None = None
        self._starting: Deferred[None] | None = None
        self._stopping = False
        self._part_has_died = False
        self._signalled_at: float | None = None
        self._leave_nothing = dev is not None
        self._up: list[Any] = []
        self.dataplane: Dataplane | None = None

    def setServiceParent(self, parent: Any) -> None:
        if isinstance(parent, Componentized):
            # The application's own observer: twistd would install one that knows nothing of levels and fields.
            parent.setComponent(ILogObserver, self.pipe)
        base: Any = super()
        base.setServiceParent(parent)

    def _own(self, child: Any) -> None:
        child.setServiceParent(self)

    @property
    def pipe(self) -> LogPipe:
        if self._pipe is None:
            self._pipe = pipe_for(self._config)
        return self._pipe

    def startService(self) -> None:
        self._reactor = reactor = the_reactor()
        base: Any = super()
        base.startService()
        self.pipe.capture()
        self._signals = Signals(reactor=reactor, stop=self._signalled)
        reactor.callWhenRunning(self._signals.take)
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._cannot_start)

    def stopService(self) -> Deferred[None]:
        self._stopping = True
        return Deferred.fromCoroutine(self._stop())

    # Start

    async def _start(self) -> None:
        config, reactor = self._config, self._reactor
        quiet_libraries()
        raise_file_limit()
        share_one_arena()
        self._tell_configuration()
        build.check_drivers(config)
        self.metrics = metrics = Metrics()
        begin_counters(metrics)
        self._pool = Pool(reactor, "files", 4)
        self._pool.start()
        self._up.append(self._pool)
        try:
            os.makedirs(config.state_dir, mode=0o700, exist_ok=True)
        except OSError as error:
            raise StoreError(f"state_dir: {config.state_dir} cannot be made: {error.strerror}") from error
        self._view = view = View(self, started_at=time.time(), instance_id=self._instance_id())
        self.monitoring = Monitoring(
            reactor=reactor, host=config.monitoring.listen_addr, port=config.monitoring.port, view=view,
            metrics=metrics, clock=reactor, wall=time.time,
        )  # fmt: skip
        self._own(self.monitoring)
        await self._named("monitoring.port", self.monitoring.start())
        server_addr = await self._start_dev() if self._dev is not None else config.server_addr
        disks = build.disks(config)
        resources = probe(
            disks=disks, confined=True, gpus=await gpus.discover(reactor=reactor),
            override=config.resource_overrides, reserve=config.resource_reserve,
        )  # fmt: skip
        self._transport = GrpcTransport(server_addr=server_addr, tls_settings=config.tls)
        self._transport.start()
        await self._open(resources)
        dataplane = self.dataplane
        assert dataplane is not None
        dataplane.died.addErrback(self._part_died)
        self.edge = Edge(
            config=config.http_proxy, routes=dataplane.routes, metrics=metrics,
            request_log=self.pipe.request_log(reactor), reactor=reactor, own_names=(build.hostname(),),
        )  # fmt: skip
        self.proxy = ProxyService(edge=self.edge, drain_secs=config.http_proxy.drain_secs)
        self._own(self.proxy)
        address, port = await self._named("http_proxy.port", self.proxy.start())
        self._identity = build.identity(config, resources, build.advertised(config, port))
        log.info("Starting HTTP proxy server", listen_addr=f"{address}:{port}",
                 advertise_addr=self._identity.proxy_address)  # fmt: skip
        self.leaks = build.leaks(config, reactor=reactor, dataplane=dataplane)
        self._own(self.leaks)
        self.control = ControlSocket(
            reactor=reactor, path=control_socket(self._store.path), answers=self.monitoring.answers, drain=self.drain,
            leaks=self.leaks.look,
        )  # fmt: skip
        self._own(self.control)
        await self.control.start()
        link_metrics.register(metrics, dataplane.session)
        node_gauges.register(metrics, lambda: dataplane.node)
        dataplane.connect(self)
        await self._start_telemetry(disks, view.instance_id)
        self._own(settle_memory())
        log.info("node started", executor_id=dataplane.executor_id, version=__version__)

    async def _named(self, key: str, work: Coroutine[Any, Any, T]) -> T:
        """Say which key of the configuration a failed bind belongs to."""
        try:
            return await work
        except (OSError, CannotListenError) as error:
            raise OSError(f"{key}: {error}") from error

    async def _open(self, resources: HostResources) -> None:
        config = self._config
        self._store = Store(
            reactor=self._reactor, path=place(config.state_dir, config.state_file), others=config.env == "local",
            executor_id=config.executor_id,
        )  # fmt: skip
        blob_calls = Pool(self._reactor, "blobs", 8, patience=BLOB_PATIENCE_SECS)
        blob_calls.start()
        self._up.append(blob_calls)
        executors = build.executors(
            config,
            reactor=self._reactor,
            blob_calls=blob_calls,
            executor_id=lambda: self.dataplane.executor_id if self.dataplane is not None else "",
            metrics=self.metrics,
        )
        snapshot_calls = Pool(self._reactor, "snapshots", 4, patience=BLOB_PATIENCE_SECS)
        snapshot_calls.start()
        self._up.append(snapshot_calls)
        self._identity = build.identity(config, resources, build.advertised(config, config.http_proxy.port))
        self.dataplane = Dataplane(
            clock=self._reactor,
            store=self._store,
            drivers=build.drivers(config, reactor=self._reactor, pool=self._pool, metrics=self.metrics),
            daemons=GrpcDaemons(),
            executors=executors,
            snapshot_blobs=build.blobs(config, reactor=self._reactor, calls=snapshot_calls, metrics=self.metrics),
            transport=self._transport,
            identity=lambda: self._identity,
            settings=build.settings(config, resources),
            metrics=self.metrics,
            tracing=self._trace,
            rng=random.SystemRandom(),
            left_running=lambda container_id: self.edge.forget(container_id) if self.proxy_up else None,
        )
        await self.dataplane.open()

    @property
    def proxy_up(self) -> bool:
        return hasattr(self, "edge")

    async def _start_dev(self) -> str:
        """The embedded control plane; returns where it listens."""
        from .devserver.service import DevServer

        assert self._dev is not None
        self.devserver = DevServer(
            self._reactor,
            blob_dir=Path(self._config.state_dir) / "blobs",
            grpc_port=self._dev.grpc_port,
            rest_port=self._dev.http_port,
            sandbox_proxy_port=self._dev.sandbox_proxy_port,
            queue_size=self._dev.queue_size,
        )
        self._own(self.devserver)
        ports = await self.devserver.listening()
        log.info("embedded control plane is up", **{f"{name}_port": port for name, port in ports.items()})
        return f"http://127.0.0.1:{ports['grpc']}"

    async def _start_telemetry(self, disks: tuple[str, ...], instance_id: str) -> None:
        assert self.dataplane is not None
        settings, executor_id = self._config.telemetry, self.dataplane.executor_id
        attributes = resource(executor_id=executor_id, instance_id=instance_id, version=__version__)
        usage = FreeResources(clock=self._reactor, calls=self._pool, metrics=self.metrics, disks=disks)
        self._own(usage)
        push = metrics_push(
            reactor=self._reactor, settings=settings, environ=os.environ, resource=attributes, metrics=self.metrics
        )
        if push is not None:
            self._own(push)
        self.dataplane.tracing.start()

    def _trace(self, executor_id: str) -> Tracing:
        instance_id = self._view.instance_id
        return tracing(
            reactor=self._reactor,
            settings=self._config.telemetry,
            environ=os.environ,
            resource=resource(executor_id=executor_id, instance_id=instance_id, version=__version__),
            process={"env": self._config.env, "instance_id": instance_id, "executor_id": executor_id},
        )

    def _instance_id(self) -> str:
        return self._config.telemetry.instance_id or f"dataplane-{self._config.env}-{uuid.uuid4()}"

    def _tell_configuration(self) -> None:
        for warning in self._loaded.warnings:
            log.warn(warning)
        log.info("configuration", **{key.replace(".", "_"): value for key, value in flat(self._config).items()})

    def _cannot_start(self, failure: Failure) -> None:
        if failure.check(CancelledError) and self._stopping:
            return
        if failure.check(*EXPECTED):
            log.error("the node cannot start", error=str(failure.value))
        else:
            log.failure("the node cannot start", failure)
        print(f"Error: the node cannot start: {failure.getErrorMessage()}", file=sys.__stderr__)
        self._fail()

    def _part_died(self, failure: Failure) -> None:
        self._part_has_died = True
        log.failure("a part that the node cannot do without has ended; the node stops", failure)
        print(f"Error: a part of the node has ended: {failure.getErrorMessage()}", file=sys.__stderr__)
        self._fail()

    def _fail(self) -> None:
        self.exit_code = 1
        if not self._owns_process:
            exit_with(1)
        self._reactor.callLater(0, self._stop_reactor)

    def _stop_reactor(self) -> None:
        with contextlib.suppress(ReactorNotRunning):  # it is being stopped already
            self._reactor.stop()

    # Stop

    def _signalled(self, name: str) -> None:
        now, first = self._reactor.seconds(), self._signalled_at
        log.info("signal received", signal=name, again=first is not None)
        if first is None:
            self._signalled_at = now
            self._stopping = True
            self._stop_reactor()
        elif now - first > ONE_ORDER_SECS:
            os._exit(self.exit_code or 1)

    def drain(self) -> None:
        """End every container, then the node, which tells the server that it is gone."""
        if self.dataplane is not None:
            self.dataplane.drain().addCallback(lambda _: self._stop_reactor())

    async def _stop(self) -> None:
        began = self._reactor.seconds()
        exit_within(self._config.http_proxy.drain_secs + STOP_SECS, lambda: self.exit_code)
        if self._starting is not None and not self._starting.called:
            self._starting.cancel()
        try:
            await self._stop_parts(began)
        except Exception:
            log.failure("stop is not clean")
            self.exit_code = self.exit_code or 1
        self._signals.ignore()
        log.info("node stopped", exit_code=self.exit_code, took_ms=round((self._reactor.seconds() - began) * 1000))
        self.pipe.stop()

    async def _stop_parts(self, began: float) -> None:
        dataplane = self.dataplane
        if dataplane is not None and hasattr(dataplane, "heartbeat"):
            if self._leave_nothing and dataplane.live():
                # The control plane of dev forgets everything now: what would go on would go on for nobody.
                await dataplane.drain()
            draining = Deferred.fromCoroutine(self.proxy.stop())
            await dataplane.stop(deadline=self._reactor.seconds() + DRAIN_SECS, farewell=not self._part_has_died)
            await draining
        elif dataplane is not None:
            await dataplane.abandon()
        if hasattr(self, "_transport"):
            await self._transport.close()
        if hasattr(self, "control"):
            await self.control.stop()
        if dataplane is not None:
            await dataplane.tracing.stop()
        base: Any = super()
        children = base.stopService()
        if children is not None:
            await children
        if hasattr(self, "monitoring"):
            await self.monitoring.stop()
        for part in self._up:
            part.stop()

    # What the state routes ask

    def live_sandboxes(self) -> int:
        return len(self.dataplane.live(Kind.SANDBOX)) if self.dataplane is not None else 0


def the_reactor() -> Any:
    """The installed reactor."""
    from twisted.internet import reactor

    return reactor


def pipe_for(config: Config) -> LogPipe:
    """The log pipe of a node that somebody else's runner starts."""
    return create(config.env, os.environ)


def run(loaded: Loaded, dev: DevOptions | None) -> int:
    """Run a node in this process; returns the exit code."""
    reactor = the_reactor()
    root = Root(loaded=loaded, dev=dev, owns_process=True)
    root._pipe = start(loaded.config.env, os.environ)
    reactor.callWhenRunning(root.startService)
    reactor.addSystemEventTrigger("before", "shutdown", root.stopService)
    reactor.run(installSignalHandlers=True)
    return root.exit_code
