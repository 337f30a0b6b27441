"""The connection to an engine, and what is asked of it once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from attrs import frozen
from docker import APIClient
from docker.transport import UnixHTTPAdapter
from docker.utils import kwargs_from_env

from ..base import DriverError
from .failures import EXPECTED, OTHER, engine_call, sentence_of

REQUEST_SECONDS = 120
"""Until an answer begins; bodies that are streamed are not timed."""
CONNECTIONS = 32
DEFAULT_SOCKET = "unix:///var/run/docker.sock"
MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
"""Machine names of the kernel in the engine's words."""


@frozen
class EngineFacts:
    """What does not change while the engine runs. ``architecture`` is in Go's words (amd64, arm64); ``now`` its clock
    when it was asked, in whole seconds."""

    id: str
    version: str
    architecture: str
    runtimes: frozenset[str]
    default_runtime: str
    storage_driver: str
    rootless: bool
    memory_limit: bool
    cpu_quota: bool
    pids_limit: bool
    now: str
    root: str


def shown(address: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """The engine's address as messages name it."""
    return address or environ.get("DOCKER_HOST") or DEFAULT_SOCKET


def options(address: str | None, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """How docker-py is told to connect. TLS comes from DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, as for every Docker
    client. Raises DriverError when its files cannot be used."""
    wanted = shown(address, environ)
    if wanted.startswith(("/", "unix://")):
        return {"base_url": f"unix://{wanted.removeprefix('unix://')}"}
    host = "tcp://" + wanted.partition("://")[2] if wanted.startswith("https://") else wanted
    if wanted.startswith("https://"):
        environ = {"DOCKER_TLS_VERIFY": "1", **environ}
    try:
        return dict(kwargs_from_env(environment={**environ, "DOCKER_HOST": host}))
    except EXPECTED as error:
        raise DriverError(f"TLS to the Docker engine at {wanted} cannot be set up: {error}") from error


def connect(address: str | None, environ: Mapping[str, str] = os.environ) -> Any:
    """A docker-py client with the engine's own API version. Raises DriverError when nobody answers."""
    wanted = shown(address, environ)
    chosen = options(address, environ)
    local = chosen["base_url"].startswith("unix://")
    try:
        client = APIClient(version="auto", timeout=REQUEST_SECONDS, max_pool_size=CONNECTIONS, **chosen)
    except EXPECTED as error:
        cause = error.__context__ or error
        raise DriverError(f"the Docker engine at {wanted} does not answer: {sentence_of(cause)}") from error
    if local:
        # Proxies and netrc have no meaning on a socket file, and looking for them costs every call.
        client.trust_env = False
        adapter = _SocketFile(f"http+{chosen['base_url']}", REQUEST_SECONDS, max_pool_size=CONNECTIONS)
        client.get_adapter("http+docker://").close()
        client.mount("http+docker://", adapter)
    return client


class _SocketFile(UnixHTTPAdapter):  # type: ignore[misc]
    """One pool of connections for the engine. docker-py has one for each URL, hence a new connection for nearly every
    call: a third of what a call costs. Streams keep to connections of their own: who breaks one off shuts its socket
    down, which must not be another call's by then."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._streams = UnixHTTPAdapter(*args, **options)

    def send(self, request: Any, stream: bool = False, **options: Any) -> Any:
        if stream:
            return self._streams.send(request, stream=True, **options)
        return super().send(request, **options)

    def get_connection(self, url: str, proxies: Any = None) -> Any:
        return super().get_connection(self.socket_path, proxies)

    def close(self) -> None:
        super().close()
        self._streams.close()


def facts(client: Any) -> EngineFacts:
    """Ask the engine who it is. Raises DriverError."""
    with engine_call(OTHER, "the Docker engine does not tell about itself"):
        info, version = client.info(), client.version()
    return EngineFacts(
        id=str(info.get("ID", "")),
        version=str(version.get("Version", "")),
        architecture=str(version.get("Arch") or MACHINES.get(info.get("Architecture", ""), "")),
        runtimes=frozenset(info.get("Runtimes") or ()),
        default_runtime=str(info.get("DefaultRuntime", "")),
        storage_driver=str(info.get("Driver", "")),
        rootless=any("rootless" in each for each in info.get("SecurityOptions") or ()),
        memory_limit=bool(info.get("MemoryLimit", True)),
        cpu_quota=bool(info.get("CpuCfsQuota", True)),
        pids_limit=bool(info.get("PidsLimit", True)),
        now=_seconds(str(info.get("SystemTime", ""))),
        root=str(info.get("DockerRootDir", "")),
    )


def opened(address: str | None, environ: Mapping[str, str] = os.environ) -> tuple[Any, EngineFacts]:
    """A client and who it talks to; no connection is left if the engine goes away between the two. Raises
    DriverError."""
    client = connect(address, environ)
    try:
        return client, facts(client)
    except DriverError:
        client.close()
        raise


def check_runtimes(known: EngineFacts, wanted: Iterable[str | None]) -> None:
    """Raises DriverError for a runtime that the engine does not have; None is its default."""
    for each in wanted:
        if each and known.runtimes and each not in known.runtimes:
            raise DriverError(
                f"the Docker engine has no runtime {each}; it has {', '.join(sorted(known.runtimes))}. Register it in"
                " the engine's daemon.json, or configure one of these"
            )


def _seconds(date: str) -> str:
    try:
        return str(int(datetime.fromisoformat(date).timestamp()))
    except ValueError:
        return str(int(time.time()))
