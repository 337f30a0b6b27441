"""What network policies need: the packet filter's tools, the privilege, the engine's chains, and bridges that pass it.

The tools are found as the node finds them, which touches none of the tables that are not there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ..network.policy import Family
from ..network.tables import PROGRAMS, FirewallError, Namespace, find_tables
from .finding import Finding, Grade, failed, ok, skipped, warning

NET_ADMIN = 12
CALL_SECS = 10.0
CHAINS = {"DOCKER", "DOCKER-USER"}
HOST = "host/proc/1"
_NONE = "sandboxes with a network policy are refused until then"


def packet_filter(*, root: str = "/", namespace: Namespace | None = None) -> Iterator[Finding]:
    """``root`` is where the kernel's files are. ``namespace`` is the network namespace of the rules: the host's, if the
    node is in a container that can enter it."""
    privileged = _privileged(root)
    if privileged:
        yield ok("privilege", "NET_ADMIN is there")
    else:
        yield failed(
            "privilege",
            "NET_ADMIN is missing: the packet filter cannot be changed",
            f"run as root, or with --cap-add NET_ADMIN or --privileged in a container; {_NONE}",
        )
    places = list(_namespace(root))
    yield from places
    if not privileged:
        yield from (skipped(each, "cannot be looked at without the privilege") for each in PROGRAMS.values())
    else:
        entered = any(each.grade is Grade.WARNING for each in places)
        yield from _tools(namespace or Namespace(str(Path(root, HOST, "ns/net")) if entered else None))
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
    name, host = "network namespace", Path(root, HOST)
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


def _tools(namespace: Namespace) -> Iterator[Finding]:
    try:
        tables = find_tables(namespace)
        dumps = tables.dumps()
    except FirewallError as error:
        four, six = PROGRAMS.values()
        yield failed(four, str(error), f"install the package iptables, which has both; {_NONE}")
        yield skipped(six, f"see {four}")
        return
    for family, program in PROGRAMS.items():
        if family not in tables.programs:
            yield ok(program, "is not needed: IPv6 is off on this host")
            continue
        found = _run(tables.programs[family][0], "--version").stdout.strip()
        if CHAINS & set(dumps[family].chains):
            yield ok(program, f"{found}, with the engine's chains")
        else:
            yield _without_engine(program, family, found)


def _without_engine(program: str, family: Family, found: str) -> Finding:
    how = "iptables" if family is Family.IPV4 else "ip6tables, ipv6 and, before 27, experimental"
    return warning(
        program,
        f"{found}; the engine has no chains there",
        f"start the engine with its packet filter on ({how} in its daemon.json), in this network namespace; with an "
        "engine that leaves it off the node hooks its own chain into FORWARD",
    )


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


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=CALL_SECS, check=False)
