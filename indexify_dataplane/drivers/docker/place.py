"""What all starts of one engine share, known once the driver is open."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ...core.model import Handle, Kind
from ...guestbundle import Bundle
from ...snapshots.docker import Restores
from ...snapshots.gvisor import Uppers
from . import creation
from .creation import DAEMON_PORT, EXECUTOR_PORT, HTTP_PORT
from .firewall import Firewall
from .guest_mount import Warming
from .images import Images, Policy
from .limits import Grants
from .tokens import Tokens


class Settings(creation.Settings, Protocol):
    """A ``docker`` section of the configuration."""

    @property
    def pull_policy(self) -> Policy: ...
    @property
    def runsc_root(self) -> str: ...
    @property
    def snapshot_local_dir(self) -> str: ...


class Place:
    """See the module's text. ``startup_timeout`` is in seconds: so long may a start wait for an engine that is away."""

    def __init__(
        self,
        *,
        driver: str,
        client: Any,
        images: Images,
        grants: Mapping[Kind, Grants],
        settings: Mapping[Kind, Settings],
        networks: Mapping[Kind, str | None],
        bundle: Bundle,
        mount: str,
        daemon: Sequence[str],
        tokens: Tokens,
        firewall: Firewall | None,
        restores: Restores,
        uppers: Uppers | None,
        default_runtime: str,
        output: Callable[[str, int], str],
        startup_timeout: float,
    ) -> None:
        self.driver = driver
        self.client = client
        self.images = images
        self.grants = grants
        self.settings = settings
        self.networks = networks
        self.bundle = bundle
        self.mount = mount
        self.daemon = tuple(daemon)
        self.tokens = tokens
        self.firewall = firewall
        self.restores = restores
        self.uppers = uppers
        self.default_runtime = default_runtime
        self.output = output
        self.startup_timeout = startup_timeout
        self.warm_bundle = Warming(bundle)

    def handle(self, identity: str, kind: Kind, run: str, ip: str | None, container_id: str) -> Handle:
        """The handle of a container; one that has ended has no address any more."""
        if kind is Kind.FUNCTION:
            return Handle(self.driver, identity, f"{ip}:{EXECUTOR_PORT}" if ip else None, ip=ip, opaque=container_id)
        return Handle(
            driver=self.driver,
            id=identity,
            daemon_address=f"{ip}:{DAEMON_PORT}" if ip else None,
            http_address=f"{ip}:{HTTP_PORT}" if ip else None,
            ip=ip,
            opaque=container_id,
            token=self.tokens.token(run),
            held=True,
        )  # fmt: skip
