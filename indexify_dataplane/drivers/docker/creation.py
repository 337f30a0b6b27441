"""The body of the request that creates a container. Pure: order, settings and facts in, JSON out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Protocol

from ...core.model import Kind
from ...guestbundle import MOUNT_POINT, container_environment
from ..base import StartOrder
from .images import ImageFacts

DAEMON_PORT, HTTP_PORT, EXECUTOR_PORT = 9500, 9501, 9600
TOKEN_VARIABLE = "INDEXIFY_SANDBOX_TOKEN"
SANDBOX_CAP_DROP = ("NET_RAW", "MKNOD", "AUDIT_WRITE")
LOG_CONFIG: Mapping[str, Any] = {
    "Type": "local",
    "Config": {"max-size": "10m", "max-file": "3", "compress": "true", "mode": "non-blocking"},
}
EVERYWHERE = "0.0.0.0"


class Settings(Protocol):
    """A ``docker`` section of the configuration, as far as it says how containers are made."""

    @property
    def runtime(self) -> str | None: ...
    @property
    def network(self) -> str | None: ...
    @property
    def binds(self) -> Sequence[str]: ...
    @property
    def cap_drop(self) -> Sequence[str] | None: ...
    @property
    def cap_add(self) -> Sequence[str]: ...
    @property
    def no_new_privileges(self) -> bool: ...
    @property
    def pids_limit(self) -> int: ...
    @property
    def freeze_idle_pool(self) -> bool: ...
    @property
    def extra_hosts(self) -> Sequence[str]: ...


def body(
    *,
    order: StartOrder,
    image: ImageFacts,
    labels: Mapping[str, str],
    settings: Settings,
    limits: Mapping[str, Any],
    network: str | None,
    daemon: Sequence[str],
    mount: str,
    token: str,
    placeholder: str | None = None,
) -> dict[str, Any]:
    """``daemon`` is the command line of the guest daemon, ``mount`` what is bound at its place, ``network`` the
    network mode to ask for, None for the engine's choice; ``limits`` come from ``Grants``; ``placeholder`` is a file
    that the daemon removes before it runs anything."""
    host: dict[str, Any] = {**limits, "LogConfig": dict(LOG_CONFIG), "Binds": list(settings.binds)}
    if settings.runtime:
        host["Runtime"] = settings.runtime
    if network:
        host["NetworkMode"] = network
    if settings.extra_hosts:
        host["ExtraHosts"] = list(settings.extra_hosts)
    if settings.no_new_privileges:
        host["SecurityOpt"] = ["no-new-privileges"]
    if settings.cap_add:
        host["CapAdd"] = list(settings.cap_add)
    if order.gpus:
        host["DeviceRequests"] = [{"Driver": "nvidia", "DeviceIDs": list(order.gpus), "Capabilities": [["gpu"]]}]
    made: dict[str, Any] = {
        "Image": image.reference,
        "Labels": dict(labels),
        "HostConfig": host,
        # The image's check belongs to the image's own command, which does not run here.
        "Healthcheck": {"Test": ["NONE"]},
    }
    if order.snapshot is not None and image.working_dir:
        made["WorkingDir"] = image.working_dir  # the image of a snapshot has no configuration of its own
    if order.kind is Kind.SANDBOX:
        _sandbox(made, order, image, daemon, mount, token, placeholder)
    else:
        _function(made, order)
    dropped = settings.cap_drop
    if dropped is None:
        dropped = SANDBOX_CAP_DROP if order.kind is Kind.SANDBOX else ()
    if dropped:
        host["CapDrop"] = list(dropped)
    return made


def _sandbox(
    made: dict[str, Any],
    order: StartOrder,
    image: ImageFacts,
    daemon: Sequence[str],
    mount: str,
    token: str,
    placeholder: str | None,
) -> None:
    """The image's own entrypoint and command are not run: a sandbox runs what its order says, or nothing."""
    arguments = ["--port", str(DAEMON_PORT), "--http-port", str(HTTP_PORT), "--log-dir", "/var/log/indexify", "--held"]
    if image.user:
        # The daemon itself needs root for its directory and for the users that requests name.
        arguments += ["--image-user", image.user]
    if placeholder is not None:
        arguments += ["--remove", placeholder]
    if order.argv:
        arguments += ["--", *order.argv]
    made["Entrypoint"] = list(daemon)
    made["Cmd"] = arguments
    made["User"] = "0:0"
    made["Env"] = container_environment(image.env, {**order.env, TOKEN_VARIABLE: token})
    made["HostConfig"]["Binds"].append(f"{mount}:{PurePosixPath(MOUNT_POINT)}:ro")


def _function(made: dict[str, Any], order: StartOrder) -> None:
    """User, directory and environment are the image's, as the executor's own tests expect."""
    if order.argv:
        made["Entrypoint"] = [order.argv[0]]
    made["Cmd"] = [*order.argv[1:], "--address", f"{EVERYWHERE}:{EXECUTOR_PORT}"]
    made["Env"] = [f"{name}={value}" for name, value in order.env.items()]
