"""Where the node reaches its containers: by their own addresses, nothing is published.

That works when the node can route to the container's network: on the engine's host, with the host's network, or, for a
node that is itself a container of this engine, when both are attached to the same network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from docker.errors import NotFound

from ..base import DriverError
from .failures import OTHER, engine_call

_OWN = re.compile(r"/containers/([0-9a-f]{64})/(?:hostname|hosts|resolv\.conf)")
NO_ADDRESS = ("none", "host")


def own_container(mountinfo: Path = Path("/proc/self/mountinfo")) -> str | None:
    """The id of the container this process runs in, None outside of one: engines mount files of theirs into each."""
    try:
        found = _OWN.search(mountinfo.read_text(errors="replace"))
    except OSError:
        return None
    return found[1] if found is not None else None


def own_networks(client: Any, container: str | None) -> tuple[str, ...]:
    """Networks of the node's own container; empty when it is none of this engine's, or has the host's network."""
    if container is None:
        return ()
    with engine_call(OTHER, "the node's own container cannot be looked at"):
        try:
            found = client.inspect_container(container)
        except NotFound:
            return ()
    networks = (found.get("NetworkSettings") or {}).get("Networks") or {}
    return tuple(name for name in networks if name not in NO_ADDRESS)


def network_to_use(configured: str | None, own: Sequence[str]) -> str | None:
    """The network mode for new containers, None for the engine's. Raises DriverError for one without addresses."""
    if configured in NO_ADDRESS or (configured or "").startswith("container:"):
        raise DriverError(
            f"network: {configured} gives containers no address of their own; name a network, or leave it out"
        )
    if configured is not None or not own or "bridge" in own:
        return configured
    return own[0]


def address(networks: Mapping[str, Any] | None, preferred: str | None) -> str | None:
    """The container's IPv4 address: on the preferred network, else on the first by name that has one."""
    found = {name: each.get("IPAddress") for name, each in (networks or {}).items() if each and each.get("IPAddress")}
    name = "bridge" if preferred in (None, "default") else preferred
    if name in found:
        return str(found[name])
    return str(found[min(found)]) if found else None
