"""Secrets that a container is announced with: names in its description, values from a provider, never stored.

The node itself has no provider; who embeds it gives one to ``Dataplane``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ..core.model import ContainerSpec
from ..drivers.base import DriverError

log = Logger()

_VARIABLE = re.compile(r"[^=\0]+")


class SecretProvider(Protocol):
    """Knows the values of secrets."""

    def fetch(self, executor_id: str, namespace: str, names: tuple[str, ...]) -> Deferred[Mapping[str, str]]:
        """Values by name. Asked once for each start of a container, also with no name at all; tries again by itself.
        Any exception fails the start, and its text is logged and reported. May be cancelled."""


async def variables(provider: SecretProvider | None, executor_id: str, spec: ContainerSpec) -> dict[str, str]:
    """The variables that the secrets of ``spec`` become; names that stay without a value are told in one warning.

    Raises DriverError for a value that no environment can hold, and whatever the provider raises. Values appear in
    no text of this module.
    """
    if provider is None:
        found: dict[str, str] = {}
        reason = "this node has no secrets provider"
    else:
        namespace = (spec.function.namespace if spec.function else None) or ""
        found = dict(await provider.fetch(executor_id, namespace, spec.secret_names))
        reason = "the secrets provider does not know them"
    for name, value in found.items():
        if not _VARIABLE.fullmatch(name) or "\0" in value:
            raise DriverError(f"the secret {name!r} cannot be an environment variable")
    missing = [name for name in spec.secret_names if name not in found]
    if missing:
        log.warn(
            "container starts without secrets that it asks for",
            container_id=spec.id,
            function=_whose(spec),
            secrets=", ".join(missing),
            reason=reason,
        )
    return found


def _whose(spec: ContainerSpec) -> str:
    function = spec.function
    if function is None:
        return ""
    parts = (function.namespace, function.application, function.function, function.version)
    return ":".join(part for part in parts if part)
