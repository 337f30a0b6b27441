"""Health, readiness, state and metrics over HTTP on the monitoring port, and the same state on the control socket.

``/health`` says that the process answers, ``/ready`` that it can do its work; ``/monitoring/startup`` and
``/monitoring/health`` are the reference's probes with its exact bodies. Nothing here changes the node, so that no
authentication is needed where the port may be seen; secrets are never part of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from attrs import frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from . import node_view, prometheus, status_page
from .core.node import Node
from .metrics import Metrics
from .reactor import Clock
from .web_site import TEXT, Listener, answer, bare_errors, compact, readable, resolve, site

log = Logger()

STARTED = {"status": "ok"}
NOT_STARTED = {"status": "nok"}
HEALTHY = {"status": "ok", "message": "Successful", "checker": "DataplaneHealthChecker"}
UNHEALTHY = {"status": "nok", "message": "heartbeat unhealthy", "checker": "DataplaneHealthChecker"}
NOTHING_REPORTED = "No state reported so far"
NOTHING_DESIRED = "No desired state received from Server yet"


@frozen
class Identity:
    """Who this node is. ``started_at`` in seconds since the epoch."""

    executor_id: str
    instance_id: str
    version: str
    started_at: float


@frozen
class Check:
    """One condition of readiness; ``detail`` says why it does not hold."""

    name: str
    ok: bool
    detail: str = ""


class StateView(Protocol):
    """What the routes show; every method is quick and has no effect."""

    def identity(self) -> Identity: ...

    def node(self) -> Node: ...

    def ever_answered(self) -> bool:
        """The server answered a heartbeat once, if only to ask for state."""

    def healthy(self) -> bool:
        """The server accepted the last heartbeat."""

    def checks(self) -> Sequence[Check]:
        """The conditions of readiness: link, both polls, store, listeners."""

    def reported(self) -> str:
        """The last heartbeat attempt in one line; empty before the first."""

    def cursors(self) -> Mapping[str, int | None]:
        """The acknowledged position of each sequence; None where nothing was acknowledged yet."""


class Answers:
    """The routes' contents, shared by the monitoring port and the control socket."""

    def __init__(self, *, view: StateView, clock: Clock, wall: Callable[[], float]) -> None:
        self._view = view
        self._clock = clock
        self._wall = wall

    def now(self) -> node_view.Moment:
        return node_view.Moment(monotonic=self._clock.seconds(), wall=self._wall())

    def readiness(self) -> tuple[bool, dict[str, Any]]:
        checks = self._view.checks()
        reasons = [f"{check.name}: {check.detail or 'not ok'}" for check in checks if not check.ok]
        return not reasons, {
            "ready": not reasons,
            "reasons": reasons,
            "checks": {check.name: check.ok for check in checks},
        }

    def node(self) -> dict[str, Any]:
        """What ``/state`` and the page say first."""
        identity, now = self._view.identity(), self.now()
        started = node_view.Moment(monotonic=0.0, wall=identity.started_at)
        return {
            "executor_id": identity.executor_id,
            "instance_id": identity.instance_id,
            "version": identity.version,
            "started_at": started.date(0.0),
            "uptime_secs": round(max(0.0, now.wall - identity.started_at), 1),
            "heartbeat_healthy": self._view.healthy(),
        }

    def state(self) -> dict[str, Any]:
        _, readiness = self.readiness()
        return {
            **self.node(),
            **readiness,
            "cursors": dict(self._view.cursors()),
            **node_view.state(self._view.node(), self.now()),
        }

    def desired(self) -> dict[str, Any] | None:
        """None as long as the server has said nothing."""
        node, cursors = self._view.node(), self._view.cursors()
        if not node.containers and not node.allocations and not any(cursors.values()):
            return None
        return node_view.desired(node, cursors)

    def page(self) -> str:
        _, readiness = self.readiness()
        return status_page.page(
            node=self.node(), state=node_view.state(self._view.node(), self.now()), reasons=readiness["reasons"]
        )


def routes(*, answers: Answers, view: StateView, metrics: Metrics) -> Any:
    """The klein application. Only call it when a reactor is installed: klein installs the default one otherwise."""
    from klein import Klein

    app = Klein()
    exposition = prometheus.exposition(metrics)

    @app.route("/monitoring/startup", methods=["GET"])
    def startup(request: Any) -> bytes:
        ok = view.ever_answered()
        return answer(request, compact(STARTED if ok else NOT_STARTED), status=200 if ok else 503)

    @app.route("/monitoring/health", methods=["GET"])
    def server_health(request: Any) -> bytes:
        ok = view.healthy()
        return answer(request, compact(HEALTHY if ok else UNHEALTHY), status=200 if ok else 503)

    @app.route("/health", methods=["GET"])
    def health(request: Any) -> bytes:
        return answer(request, compact({"status": "ok"}))

    @app.route("/ready", methods=["GET"])
    def ready(request: Any) -> bytes:
        ok, body = answers.readiness()
        return answer(request, readable(body), status=200 if ok else 503)

    @app.route("/state/reported", methods=["GET"])
    def reported(request: Any) -> bytes:
        return answer(request, view.reported() or NOTHING_REPORTED, content_type=TEXT)

    @app.route("/state/desired", methods=["GET"])
    def desired(request: Any) -> bytes:
        known = answers.desired()
        if known is None:
            return answer(request, NOTHING_DESIRED, content_type=TEXT)
        return answer(request, readable(known))

    @app.route("/state", methods=["GET"])
    def state(request: Any) -> bytes:
        return answer(request, readable(answers.state()))

    @app.route("/metrics", methods=["GET"])
    @app.route("/monitoring/metrics", methods=["GET"])
    def prometheus_text(request: Any) -> bytes:
        return answer(request, exposition(), content_type=prometheus.CONTENT_TYPE)

    @app.route("/", methods=["GET"])
    def page(request: Any) -> bytes:
        return answer(request, answers.page(), content_type="text/html; charset=utf-8")

    bare_errors(app)
    return app.resource()


class Monitoring(Service):
    """Owns the monitoring port from ``start`` to ``stop``."""

    name = "monitoring"

    def __init__(
        self,
        *,
        reactor: Any,
        host: str,
        port: int,
        view: StateView,
        metrics: Metrics,
        clock: Clock,
        wall: Callable[[], float],
    ) -> None:
        self._reactor = reactor
        self._host = host
        self._port = port
        self._view = view
        self._metrics = metrics
        self._answers = Answers(view=view, clock=clock, wall=wall)
        self._listener: Listener | None = None

    @property
    def answers(self) -> Answers:
        """The same contents for the control socket."""
        return self._answers

    @property
    def listening(self) -> bool:
        return self._listener is not None

    async def start(self) -> tuple[str, int]:
        """Bind; returns the address bound. Raises CannotListenError or the resolver's error: the node cannot run
        without the port its supervisor asks."""
        if self._listener is not None:
            raise RuntimeError("monitoring is listening already")
        address = await resolve(self._reactor, self._host)
        listener = Listener(site(routes(answers=self._answers, view=self._view, metrics=self._metrics)))
        listener.port = self._reactor.listenTCP(self._port, listener.factory, interface=address)
        self._listener = listener
        bound = listener.port.getHost()
        log.info("monitoring is listening", host=bound.host, port=bound.port)
        return bound.host, bound.port

    async def stop(self) -> None:
        """Close the port and every connection to it. Harmless when it is closed."""
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.stop()

    def stopService(self) -> Deferred[None]:
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self.stop())
