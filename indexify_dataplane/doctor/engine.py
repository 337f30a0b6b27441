"""A Docker engine: there, new enough, and able to do what the driver will ask of it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from ..config import DockerDriver
from .finding import Finding, Grade, failed, ok, skipped, warning
from .grants import grants

LEAST_API = (1, 41)
LIMITS = (("MemoryLimit", "memory"), ("CpuCfsQuota", "CPU"), ("PidsLimit", "pids"))
GIB = 1 << 30


def engine(key: str, section: DockerDriver, timeout: float) -> Iterator[Finding]:
    """All that can be asked of the engine of ``section``; ``key`` names the section."""
    import docker
    from docker.errors import DockerException

    from ..drivers.base import DriverError
    from ..drivers.docker.connection import options

    where = address(section)
    try:
        client = docker.DockerClient(version="auto", timeout=timeout, **options(section.address))
    except (DriverError, DockerException, OSError) as error:
        yield failed(
            "engine",
            f"{where} ({key}) does not answer: {_reason(error)}",
            f"start the engine, or correct {key.split(', ')[0]}.address; the node's user needs the right to "
            "open its socket",
        )
        yield skipped("runtime", "needs the engine")
        return
    with contextlib.closing(client):
        info = client.info()
        yield reached(where, client.version(), info)
        chosen = runtime(key, section, info)
        yield chosen
        yield network(key, section, {each["Name"] for each in client.api.networks()})
        yield limits(info)
        if chosen.grade is Grade.OK:
            yield from grants(client, section.runtime)
        yield storage(info)
        yield from complaints(info)
    if section.runtime == "runsc":
        yield snapshots()


def address(section: DockerDriver) -> str:
    """Where the driver connects: the key, else DOCKER_HOST, else the usual socket."""
    wanted = section.address or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    return f"unix://{wanted}" if wanted.startswith("/") else wanted


def _reason(error: BaseException) -> str:
    """The innermost sentence; the libraries in between wrap it several times."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


def reached(where: str, version: Mapping[str, Any], info: Mapping[str, Any]) -> Finding:
    """Which one it is, and whether it is one that is supported."""
    api, system = str(version.get("ApiVersion", "0")), str(info.get("OperatingSystem", ""))
    said = f"{version.get('Version')} (API {api}) at {where}, {system} {info.get('Architecture', '')}".strip()
    if "Docker Desktop" in system:
        return failed(
            "engine",
            said,
            "Docker Desktop is not supported: its containers are out of reach from here, and "
            "policies would be made in the wrong kernel; use an engine on Linux",
        )
    if tuple(int(part) for part in api.split(".")[:2]) < LEAST_API:
        return failed("engine", said, f"API {LEAST_API[0]}.{LEAST_API[1]} (Docker 20.10) or newer is needed")
    if any("rootless" in each for each in info.get("SecurityOptions") or ()):
        return warning(
            "engine",
            f"{said}, rootless",
            "its containers cannot be reached by their addresses; use an engine that runs as root",
        )
    return ok("engine", said)


def runtime(key: str, section: DockerDriver, info: Mapping[str, Any]) -> Finding:
    there = sorted(info.get("Runtimes") or {})
    if section.runtime is None:
        return ok("runtime", f"{info.get('DefaultRuntime', 'runc')}, the engine's default")
    if section.runtime in there:
        return ok("runtime", f"{section.runtime} is registered")
    return failed(
        "runtime",
        f"{section.runtime} ({key}) is not registered with the engine; it has {', '.join(there)}",
        f'add it under "runtimes" in the engine\'s daemon.json and restart the engine, or change {key}.runtime',
    )


def network(key: str, section: DockerDriver, networks: set[str]) -> Finding:
    if section.network in (None, "default"):
        return ok("network", "the engine's default")
    if section.network in ("host", "none") or section.network.startswith("container:"):
        return failed(
            "network",
            f"{section.network} ({key}): containers get no address of their own",
            f"use bridge or a network of your own for {key}.network",
        )
    if section.network not in networks:
        return failed(
            "network",
            f"{section.network} ({key}) is not there; there are {', '.join(sorted(networks))}",
            f"docker network create {section.network}",
        )
    return ok("network", section.network)


def limits(info: Mapping[str, Any]) -> Finding:
    """What the engine's kernel can limit."""
    version = info.get("CgroupVersion", "1")
    missing = [what for name, what in LIMITS if not info.get(name)]
    if missing:
        return warning(
            "engine limits",
            f"cgroup {version} cannot limit {', '.join(missing)}",
            "enable these controllers in the kernel of the engine (cgroup_enable=memory, systemd's Delegate)",
        )
    swap = "" if info.get("SwapLimit") else "; swap is not counted"
    return ok("engine limits", f"memory, CPU and pids by cgroup {version} ({info.get('CgroupDriver')}){swap}")


def storage(info: Mapping[str, Any]) -> Finding:
    """Where images and containers are, and whether disks of containers can be limited."""
    driver, place = str(info.get("Driver")), str(info.get("DockerRootDir"))
    status = {str(name): str(value) for name, value in info.get("DriverStatus") or ()}
    quota = driver in ("btrfs", "zfs", "devicemapper") or status.get("Backing Filesystem") == "xfs"
    said = f"{driver} in {place}"
    if os.path.isdir(place):
        free = shutil.disk_usage(place).free
        said += f", {free / GIB:.1f} GiB free"
        if free < 5 * GIB:
            return warning("engine storage", said, "make room there (docker system df), or use the image watermark")
    if not quota:
        return ok("engine storage", f"{said}; disk limits of containers need xfs with pquota and are not enforced")
    return ok("engine storage", said)


def complaints(info: Mapping[str, Any]) -> Iterator[Finding]:
    """The engine's own complaints; some of them are checks of ours already."""
    for text in info.get("Warnings") or ():
        if "bridge-nf-call" not in text and "No swap limit" not in text:
            yield warning("engine", str(text).removeprefix("WARNING: "), "see the engine's documentation")


def snapshots() -> Finding:
    """``runsc tar`` reads a running sandbox from the host; without it a snapshot exports the stopped container."""
    found = shutil.which("runsc")
    if found is None:
        return warning(
            "runsc",
            "is not on this host's PATH",
            "install it here for snapshots of running sandboxes; the slower export is used otherwise",
        )
    return ok("runsc", found)
