"""What network policies need: the packet filter's tools, the privilege, the engine's chain, and bridges that pass it.

The back end is found without touching the other one: ``iptables-legacy -L`` would create the very tables it looks for,
so what exists is read from ``/proc/net/ip_tables_names``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .finding import Finding, failed, ok, skipped, warning

NET_ADMIN = 12
CALL_SECS = 10.0
CHAIN = "DOCKER-USER"
_NONE = "sandboxes with a network policy are refused until then"


def packet_filter(*, root: str = "/") -> Iterator[Finding]:
    privileged = _privileged(root)
    if privileged:
        yield ok("privilege", "NET_ADMIN is there")
    else:
        yield failed(
            "privilege",
            "NET_ADMIN is missing: the packet filter cannot be changed",
            f"run as root, or with --cap-add NET_ADMIN or --privileged in a container; {_NONE}",
        )
    yield from _namespace(root)
    for program, names in (("iptables", "ip_tables_names"), ("ip6tables", "ip6_tables_names")):
        yield _tool(program, names, root, privileged=privileged)
    for program, switch in (("iptables", "bridge-nf-call-iptables"), ("ip6tables", "bridge-nf-call-ip6tables")):
        yield _bridges(program, switch, root)


def _privileged(root: str) -> bool:
    for line in Path(root, "proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> NET_ADMIN & 1)
    return False


def _namespace(root: str) -> Iterator[Finding]:
    """Only where the host's ``/proc`` is mounted: we are in a container then, perhaps with a network of its own.

    Files of ``/proc/PID/net`` have an inode per network namespace, and may be looked at without the right to trace the
    process, which ``/proc/PID/ns`` asks for.
    """
    name, host = "network namespace", Path(root, "host/proc/1")
    if not Path(root, "host/proc").is_dir():
        return
    try:
        same = os.stat(host / "net/dev").st_ino == os.stat(Path(root, "proc/self/net/dev")).st_ino
    except OSError as error:
        yield failed(
            name,
            f"{host}/net/dev cannot be looked at: {error.strerror}",
            f"mount the host's /proc at /host/proc; {_NONE}",
        )
        return
    if same:
        yield ok(name, "is the host's")
    elif not shutil.which("nsenter"):
        yield failed(
            name,
            "is not the host's, and nsenter is missing",
            f"run with --network host, or install util-linux; {_NONE}",
        )
    elif _run("nsenter", f"--net={host}/ns/net", "true").returncode:
        yield failed(
            name,
            "is not the host's, and nsenter may not enter that one",
            f"run with --network host, or with --privileged; {_NONE}",
        )
    else:
        yield warning(
            name,
            "is not the host's: rules go through nsenter",
            "run with --network host; else the proxy needs a route to the containers",
        )


def _tool(program: str, names: str, root: str, *, privileged: bool) -> Finding:
    if shutil.which(program) is None:
        return failed(program, "is not installed", f"install the package iptables; {_NONE}")
    version = _run(program, "--version").stdout.strip()
    legacy_tables = _words(Path(root, "proc/net", names))
    if not privileged:
        return skipped(program, f"{version}; its rules cannot be read without the privilege")
    listed = _run(program, "-w", "5", "-t", "filter", "-S", CHAIN) if _touches_nothing(version, legacy_tables) else None
    if listed is not None and listed.returncode == 0:
        return ok(program, f"{version}, with the engine's chain {CHAIN}")
    if "legacy" not in version and "filter" in legacy_tables:
        other = f"{program}-legacy"
        if shutil.which(other) and _run(other, "-w", "5", "-t", "filter", "-S", CHAIN).returncode == 0:
            return ok(program, f"{version}; the engine uses {other}, and so does the node")
    said = (listed.stderr.strip().splitlines() or ["no chain by that name"])[0] if listed is not None else "no tables"
    return warning(
        program,
        f"{version}; the chain {CHAIN} of the engine is not there ({said})",
        "start the engine with its packet filter on (iptables, ip6tables with experimental), in this network "
        "namespace; with an engine that leaves it off the node makes the chain itself",
    )


def _touches_nothing(version: str, legacy_tables: list[str]) -> bool:
    """Listing with the legacy tool creates the table, unless it is there."""
    return "legacy" not in version or "filter" in legacy_tables


def _bridges(program: str, switch: str, root: str) -> Finding:
    """Without it packets between two containers of one bridge are never shown to the packet filter."""
    name = f"br_netfilter {program}"
    path = Path(root, "proc/sys/net/bridge", switch)
    advice = (
        f"modprobe br_netfilter && sysctl -w net.bridge.{switch}=1 (and in /etc/modules-load.d, /etc/sysctl.d); "
        "without it policies do not hold between sandboxes of one bridge"
    )
    if not path.exists():
        return failed(name, "the module br_netfilter is not loaded", advice)
    if path.read_text().strip() != "1":
        return failed(name, f"net.bridge.{switch} is off", advice)
    return ok(name, f"net.bridge.{switch} is on")


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=CALL_SECS, check=False)
