"""The host itself: system, limits of the process, cgroups, disk space."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..config import Config, DockerDriver
from .finding import Finding, failed, ok, warning

LOW_DISK = 1 << 30
FULL_DISK = 64 << 20
FILES = 65536
CONTROLLERS = ("memory", "cpu", "pids")
GIB = 1 << 30


def system(platform: str = sys.platform) -> Iterator[Finding]:
    """Linux is all that is supported."""
    if platform != "linux":
        yield failed("system", f"{platform} is not supported", "run the node on a Linux host (not on Docker Desktop)")
        return
    name = os.uname()
    yield ok("system", f"Linux {name.release} {name.machine}, Python {sys.version.split()[0]}")


def open_files() -> Iterator[Finding]:
    """Every proxied request holds two sockets; the node raises its soft limit to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        yield warning(
            "open files",
            f"at most {hard} may be open",
            f"raise the hard limit to {FILES} or more (systemd: LimitNOFILE=1048576)",
        )
    else:
        yield ok("open files", f"up to {'any number' if hard == resource.RLIM_INFINITY else hard}")


def cgroups(config: Config, *, root: str = "/") -> Iterator[Finding]:
    """The version, and whether child processes can be limited. An engine makes those of its containers itself."""
    base = Path(root, "sys/fs/cgroup")
    version = 2 if (base / "cgroup.controllers").exists() else 1
    if not base.is_dir():
        yield failed("cgroups", f"{base} is not there", "mount the cgroup file system; limits need it")
        return
    if config.sandbox_driver.type != "fork_exec" and config.function_driver.type != "fork_exec":
        yield ok("cgroups", f"version {version}; the engine makes those of containers")
        return
    # What the driver would do when it opens, without leaving a trace: version 2 would move this process.
    if version == 1:
        yield from _first_version(root)
    else:
        yield from _second_version(root)


def _first_version(root: str) -> Iterator[Finding]:
    from ..drivers.fork_exec.cgroups import detect

    found = detect(os.path.join(root, "proc/self"))
    missing = [name for name in CONTROLLERS if name not in found.parents]
    if missing:
        yield warning(
            "cgroups",
            f"version 1, no limits for {', '.join(missing)}: {'; '.join(found.refusals)}",
            "run the node as root or delegate a cgroup to it; without, fork_exec sandboxes run without these limits",
        )
    else:
        yield ok("cgroups", f"version 1, limits for {', '.join(CONTROLLERS)} can be made")


def _second_version(root: str) -> Iterator[Finding]:
    own = Path(root, "proc/self/cgroup").read_text().strip().rpartition("::")[2]
    place = Path(root, "sys/fs/cgroup", own.lstrip("/"))
    controllers = (place / "cgroup.controllers").read_text().split() if place.is_dir() else []
    missing = [name for name in CONTROLLERS if name not in controllers]
    advice = "as a systemd unit: Delegate=yes and DelegateSubgroup=indexify-node; else run it as root in its own cgroup"
    if missing:
        yield warning("cgroups", f"version 2, {own} was not given {', '.join(missing)}", advice)
    elif not os.access(place / "cgroup.procs", os.W_OK):
        yield warning("cgroups", f"version 2, {own} cannot be written to by uid {os.geteuid()}", advice)
    else:
        yield ok("cgroups", f"version 2, {own} may limit {', '.join(CONTROLLERS)}")


def disks(config: Config) -> Iterator[Finding]:
    """Places that the node writes to: they can be made, written, and have room."""
    places = {"state": ("state_dir", config.state_dir)}
    for key in ("sandbox_driver", "function_driver"):
        section = getattr(config, key)
        if isinstance(section, DockerDriver):
            places["snapshots"] = (f"{key}.snapshot_local_dir", section.snapshot_local_dir)
    if config.function_driver.type == "fork_exec":
        places["code"] = ("function_executor.code_cache_path", config.function_executor.code_cache_path)
    for what, (key, path) in places.items():
        yield disk(f"disk {what}", key, path)


def disk(name: str, key: str, path: str) -> Finding:
    """One place; nothing is left of the file that is written there."""
    there = Path(os.path.abspath(path))
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        return failed(
            name,
            f"{path}: {there} cannot be written to: {error.strerror}",
            f"give the node's user (uid {os.geteuid()}) the right to write there, or change {key}",
        )
    free = shutil.disk_usage(there).free
    room = f"{path}: {free / GIB:.1f} GiB free"
    if free < FULL_DISK:
        return failed(name, room, f"make room, or move {key} to another disk: the store cannot be written for long")
    if free < LOW_DISK:
        return warning(name, room, f"make room, or move {key} to another disk; 10 GiB are recommended")
    return ok(name, room)
