"""The packet filter of an engine's sandboxes: what the driver asks for, and how ``network`` does it.

A container's place on its network is what the engine says of it. It is asked once for each life of a container; the
address cannot change while the container runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from docker.errors import NotFound
from twisted.logger import Logger

from ...core.model import Handle, NetworkPolicy
from ...network import firewall
from ...network.chains import Endpoint
from ...network.policy import Family, InvalidPolicy, Surroundings, resolvers
from ...network.tables import FirewallError
from ..base import DriverError
from ..blocking import Cancelled
from .failures import OTHER, engine_call

log = Logger()
Networks = Mapping[str, Any]
"""``NetworkSettings.Networks`` of a container."""


class Firewall(Protocol):
    """Blocking, called from several threads at once."""

    def open(self, client: Any, network: str | None, alive: Callable[[], Collection[str]]) -> str | None:
        """Get ready for sandboxes on ``network`` (None: the engine's own) and drop the rules of containers that are
        not in ``alive``. Why policies cannot be enforced, None if they can: then nothing else is called."""

    def admit(
        self,
        container_id: str,
        handle: Handle,
        networks: Networks,
        policy: NetworkPolicy | None,
        cancelled: Cancelled,
    ) -> None:
        """Put the rules of a new sandbox in force. It is held: nothing of its user's has run. Raises DriverError, and
        then the sandbox does not start."""

    def protect(self, container_id: str, handle: Handle, networks: Networks) -> None:
        """Keep sandboxes away from a new container that has no rules of its own. Raises DriverError."""

    def apply(self, container_id: str, handle: Handle, policy: NetworkPolicy | None) -> None:
        """Make the rules of a running sandbox those of ``policy``. Raises DriverError: it must not run on then."""

    def forget(self, handle: Handle) -> None:
        """Remove the rules of a container that is gone. Idempotent. Raises DriverError."""

    def check(self) -> None:
        """Look whether the rules are still in force, and repair them. Raises DriverError."""

    def repairs(self) -> int:
        """How often rules that somebody else had changed were put back. Never waits."""

    def close(self) -> None:
        """Nothing is asked any more. The rules of containers stay; where there are none, nothing of the node stays.
        Idempotent."""


class EngineFirewall:
    """Implements ``Firewall``. ``resolv_conf`` is the host's, from which the engine makes that of containers."""

    def __init__(self, *, executor_id: str, resolv_conf: Path = Path("/etc/resolv.conf")) -> None:
        self._executor_id = executor_id
        self._resolv_conf = resolv_conf
        self._client: Any = None
        self._network = "bridge"
        self._rules: firewall.Firewall | None = None
        self._endpoints: dict[str, Endpoint] = {}
        self._lives: dict[str, str] = {}

    def open(self, client: Any, network: str | None, alive: Callable[[], Collection[str]]) -> str | None:
        self.close()
        self._client = client
        self._network = "bridge" if network in (None, "default") else str(network)
        try:
            rules = self._made()
            rules.open()
            self._rules = rules
        except (DriverError, FirewallError, InvalidPolicy) as error:
            self.close()
            return str(error)
        try:
            swept = rules.sweep(alive, self._subnets())
        except (DriverError, FirewallError, InvalidPolicy) as error:
            log.warn("rules of containers that are gone cannot be removed", error=str(error))
            return None
        if swept:
            log.info("rules of containers that are gone were removed", chains=swept)
        return None

    def _made(self) -> firewall.Firewall:
        with engine_call(OTHER, f"network {self._network} cannot be looked at"):
            found = self._client.inspect_network(self._network)
        if found.get("Driver") != "bridge":
            raise DriverError(
                f"network {self._network} is of kind {found.get('Driver')}: rules can be enforced on bridges only"
            )
        self._network = str(found["Name"])
        options = found.get("Options") or {}
        bridge = options.get("com.docker.network.bridge.name") or f"br-{found['Id'][:12]}"
        subnets = [each["Subnet"] for each in (found.get("IPAM") or {}).get("Config") or () if each.get("Subnet")]
        try:
            asked = resolvers(self._resolv_conf.read_text(errors="replace"))
        except OSError:
            asked = resolvers("")
        return firewall.Firewall(
            executor_id=self._executor_id, bridge=str(bridge), around=Surroundings(tuple(subnets), asked)
        )

    def _subnets(self) -> list[str]:
        """All networks whose containers this engine knows."""
        with engine_call(OTHER, "the engine's networks cannot be listed"):
            found = self._client.networks(filters={"driver": "bridge"})
        configured = [each for network in found for each in (network.get("IPAM") or {}).get("Config") or ()]
        return [str(each["Subnet"]) for each in configured if each.get("Subnet")]

    def admit(
        self,
        container_id: str,
        handle: Handle,
        networks: Networks,
        policy: NetworkPolicy | None,
        cancelled: Cancelled,
    ) -> None:
        endpoint = self._endpoint(container_id, networks)
        self._lives[container_id] = handle.id
        self._endpoints[handle.id] = endpoint
        self._apply(container_id, endpoint, policy)

    def protect(self, container_id: str, handle: Handle, networks: Networks) -> None:
        if self._network not in networks:
            return  # the engine keeps networks apart
        endpoint = self._endpoint(container_id, networks)
        self._lives[container_id] = handle.id
        with filtering(f"container {container_id} cannot be kept from sandboxes"):
            self._opened().protect(container_id, endpoint)

    def apply(self, container_id: str, handle: Handle, policy: NetworkPolicy | None) -> None:
        endpoint = self._endpoints.get(handle.id)
        if endpoint is None:
            with engine_call(OTHER, f"container {container_id} cannot be looked at"):
                try:
                    found = self._client.inspect_container(handle.id)
                except NotFound as error:
                    raise DriverError(f"container {container_id} is gone") from error
            endpoint = self._endpoint(container_id, (found.get("NetworkSettings") or {}).get("Networks") or {})
            self._lives[container_id] = handle.id
            self._endpoints[handle.id] = endpoint
        self._apply(container_id, endpoint, policy)

    def _apply(self, container_id: str, endpoint: Endpoint, policy: NetworkPolicy | None) -> None:
        with filtering(f"the network policy of container {container_id} cannot be put in force"):
            self._opened().apply(container_id, endpoint, policy)

    def forget(self, handle: Handle) -> None:
        self._endpoints.pop(handle.id, None)
        container_id = handle.opaque
        if self._rules is None or self._lives.get(container_id, handle.id) != handle.id:
            return  # the rules are those of a later life
        with filtering(f"the rules of container {container_id} cannot be removed"):
            self._rules.remove(container_id)
        self._lives.pop(container_id, None)

    def check(self) -> None:
        rules = self._rules
        with filtering("the packet filter cannot be looked at"):
            if rules is not None:
                rules.check()

    def repairs(self) -> int:
        rules = self._rules
        return rules.repairs if rules is not None else 0

    def close(self) -> None:
        rules, self._rules = self._rules, None
        if rules is not None:
            rules.close()

    def _opened(self) -> firewall.Firewall:
        if self._rules is None:
            raise DriverError("the packet filter is not open")
        return self._rules

    def _endpoint(self, container_id: str, networks: Networks) -> Endpoint:
        if set(networks) != {self._network}:
            known = ", ".join(sorted(networks)) or "none"
            raise DriverError(
                f"container {container_id} is on other networks ({known}) than {self._network}, where its rules hold"
            )
        found = networks[self._network]
        addresses = {Family.IPV4: found.get("IPAddress"), Family.IPV6: found.get("GlobalIPv6Address")}
        known_addresses = {family: str(each) for family, each in addresses.items() if each}
        mac = found.get("MacAddress")
        if not mac or not known_addresses:
            raise DriverError(f"container {container_id} has no address on {self._network}: it does not run")
        return Endpoint(str(mac), known_addresses)


class filtering:
    """Context in which errors of ``network`` become DriverErrors that say ``what``."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FirewallError | InvalidPolicy):
            raise DriverError(f"{self._what}: {error}") from error
