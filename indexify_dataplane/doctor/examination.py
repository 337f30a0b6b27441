"""Which checks a configuration needs, in the order in which their answers make sense."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from ..config import Config, DockerDriver
from ..config_model import Driver
from . import engine, firewall, host, ports, programs, server
from .finding import Finding, failed

Check = Callable[[], Iterable[Finding]]


def examine(config: Config, *, timeout: float = 5.0, root: str = "/") -> Iterator[Finding]:
    """All findings, each as soon as it is known. Never raises: a check that cannot be made is a finding.

    ``timeout``: seconds that anything on the network may take; ``root``: where the kernel's files are.
    """
    drivers = {"sandbox_driver": config.sandbox_driver, "function_driver": config.function_driver}
    checks: list[tuple[str, Check]] = [
        ("system", lambda: host.system()),
        ("drivers", lambda: programs.drivers(config)),
        ("isolation", lambda: programs.isolation(config)),
    ]
    engines = _engines(drivers)
    checks += [(f"engine ({key})", partial(engine.engine, key, section, timeout)) for key, section in engines.items()]
    if engines:
        checks += [
            ("packet filter", lambda: firewall.packet_filter(root=root)),
            ("guest bundle", lambda: programs.guest_bundle(config.state_dir)),
        ]
    checks += [
        ("cgroups", lambda: host.cgroups(config, root=root)),
        ("function executor", lambda: programs.function_executor(config)),
        ("files", lambda: host.open_files()),
        ("disk", lambda: host.disks(config)),
        ("ports", lambda: ports.ports(config)),
        ("server", lambda: server.server(config, timeout)),
    ]
    for name, check in checks:
        yield from _guarded(name, check)


def _engines(drivers: dict[str, Driver]) -> dict[str, DockerDriver]:
    """Docker sections by their key; equal ones once, under both keys."""
    found: dict[DockerDriver, list[str]] = {}
    for key, section in drivers.items():
        if isinstance(section, DockerDriver):
            found.setdefault(section, []).append(key)
    return {", ".join(keys): section for section, keys in found.items()}


def _guarded(name: str, check: Check) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:
        # A doctor that breaks off tells nothing of all that it would have looked at next.
        yield failed(name, f"the check itself failed: {type(error).__name__}: {error}", "tell the developers")
