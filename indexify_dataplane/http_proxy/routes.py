"""What the proxy asks the rest of the node: where a sandbox is, and what is told of each request."""

from __future__ import annotations

from typing import Protocol

from attrs import frozen

DAEMON_PORT = 9501
"""Port of the daemon's HTTP API in every sandbox, and the one a request goes to when it names none."""

DAEMON_GRPC_PORT = 9500
"""The node's own channel to the daemon; never reachable through the proxy."""

TOKEN_HEADER = "X-Indexify-Sandbox-Token"
"""Carries the sandbox's own token to its daemon. The proxy alone sets it, on requests to ``DAEMON_PORT`` only."""


@frozen
class Target:
    """A running container that takes requests.

    ``daemon`` is the recorded address of the daemon's HTTP API, None when ``Routes.connect_address`` has to be asked;
    ``token`` is what the daemon expects in ``TOKEN_HEADER``, None when it expects nothing.
    """

    container_id: str
    sandbox_id: str
    daemon: tuple[str, int] | None = None
    token: str | None = None


@frozen
class NotRunning:
    """The container is known but takes no requests; ``state`` is the word for it in the answer, such as ``pending``."""

    state: str


class Routes(Protocol):
    def find(self, sandbox_id: str) -> Target | NotRunning | None:
        """Look up a sandbox id, else a container id. Asked for every request: must be pure and take microseconds."""

    async def connect_address(self, target: Target, port: int) -> tuple[str, int]:
        """Where to connect for a port of the container; a coroutine on Deferreds.

        Raises ``drivers.base.PortRefused`` when that port is out of bounds, DriverError when nobody can tell.
        """


class RequestLog(Protocol):
    """``logs.RequestLog``: one line for each answered request, cheap enough for every one of them."""

    enabled: bool

    def completed(
        self,
        sandbox_id: str,
        port: int,
        method: str,
        path: str,
        status_code: int,
        duration_ms: float,
        container_addr: str,
    ) -> None: ...


class Timeouts(Protocol):
    """``http_proxy.upstream`` of the configuration; seconds."""

    @property
    def idle_timeout_secs(self) -> int: ...
    @property
    def keepalive_idle_secs(self) -> int: ...
    @property
    def keepalive_interval_secs(self) -> int: ...
    @property
    def keepalive_count(self) -> int: ...
    @property
    def connection_timeout_secs(self) -> int: ...
    @property
    def read_timeout_secs(self) -> int: ...
    @property
    def write_timeout_secs(self) -> int: ...


class Settings(Protocol):
    """``http_proxy`` of the configuration, as far as the proxy reads it."""

    @property
    def port(self) -> int: ...
    @property
    def listen_addr(self) -> str: ...
    @property
    def host_suffixes(self) -> tuple[str, ...]: ...
    @property
    def client_idle_timeout_secs(self) -> float: ...
    @property
    def head_timeout_secs(self) -> float: ...
    @property
    def upgrade_idle_timeout_secs(self) -> float: ...
    @property
    def strip_credentials(self) -> bool: ...
    @property
    def shared_secret_file(self) -> str | None: ...
    @property
    def max_idle_upstreams(self) -> int: ...
    @property
    def upstream(self) -> Timeouts: ...
