"""The kernel's packet filter through the iptables programs: which of them, in which network namespace.

Two kinds of iptables exist, ``nft`` and ``legacy``, and both sets of rules are in force at once. The kind that holds
Docker's chains is used. ``iptables-legacy`` is only ever run where its tables exist, because running it makes them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from attrs import frozen

from .chains import Dump
from .policy import Family

LOCK_SECONDS = 10
"""How long iptables waits for another program that changes the rules."""
DEADLINE = 30.0
"""Seconds after which an iptables program is killed."""

PROGRAMS = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
LEGACY_TABLES = {Family.IPV4: "ip_tables_names", Family.IPV6: "ip6_tables_names"}
BRIDGE_FILTER = {Family.IPV4: "bridge-nf-call-iptables", Family.IPV6: "bridge-nf-call-ip6tables"}


class FirewallError(Exception):
    """The packet filter cannot be used or has refused something; the text says what to do where that is known."""


@frozen
class Namespace:
    """The network namespace of the containers' host: this process's own (``path`` None), or one to be entered."""

    path: str | None = None

    def command(self, words: Sequence[str]) -> list[str]:
        return [*(["nsenter", f"--net={self.path}", "--"] if self.path else []), *words]

    def read(self, path: str) -> str | None:
        """A file of /proc as it is in there; None where there is none."""
        if self.path is None:
            try:
                return Path(path).read_text()
            except OSError:
                return None
        done = subprocess.run(self.command(["cat", path]), capture_output=True, text=True, timeout=DEADLINE)
        return done.stdout if done.returncode == 0 else None

    def has(self, interface: str) -> bool:
        text = self.read("/proc/self/net/dev") or ""
        return any(line.split(":")[0].strip() == interface for line in text.splitlines())


HOST_NAMESPACE = "/host/proc/1/ns/net"
"""Where the host's namespace is when the node runs in a container that was started with ``-v /proc:/host/proc:ro``."""


def find_namespace(bridge: str, candidates: Sequence[str | None] = (None, HOST_NAMESPACE)) -> Namespace:
    """The namespace that has the containers' ``bridge``. Raises FirewallError."""
    for path in candidates:
        if path is None or os.path.exists(path):
            namespace = Namespace(path)
            if namespace.has(bridge):
                return namespace
    raise FirewallError(
        f"the containers' bridge {bridge} is in no network namespace that this process can reach: run the node on the "
        f"engine's host, in its network (--network host), or privileged with -v /proc:/host/proc:ro"
    )


@frozen
class Tables:
    """The filter tables of both families in one namespace, changed through ``programs`` (``...-restore`` and
    ``...-save`` by family). A family that the host does not have is left out."""

    namespace: Namespace
    programs: Mapping[Family, tuple[str, str]]
    kind: str

    def dump(self, family: Family) -> Dump:
        return Dump.parse(self.saved((family,))[family])

    def dumps(self) -> dict[Family, Dump]:
        """All families. Raises FirewallError."""
        return {family: Dump.parse(text) for family, text in self.saved().items()}

    def saved(self, families: Iterable[Family] | None = None) -> dict[Family, str]:
        """The table as ``iptables-save`` tells it, of all families if none are named. Raises FirewallError."""
        asked = list(self.programs if families is None else families)
        commands = [self.namespace.command([self.programs[family][1], "-t", "filter"]) for family in asked]
        results = _run(commands, [None for _ in asked])
        for family, (code, _, problem) in zip(asked, results, strict=True):
            if code:
                raise FirewallError(f"{self.programs[family][1]} failed: {problem}")
        return {family: out for family, (_, out, _) in zip(asked, results, strict=True)}

    def restore(self, texts: Mapping[Family, str]) -> None:
        """Apply one transaction per family, all at the same time. Raises FirewallError; a family is changed as a whole
        or not at all."""
        families = [family for family in texts if family in self.programs]
        commands = [
            self.namespace.command([self.programs[family][0], "--noflush", "-w", str(LOCK_SECONDS)])
            for family in families
        ]
        results = _run(commands, [texts[family] for family in families])
        problems = [
            f"{self.programs[family][0]}: {problem or f'exit code {code}'}"
            for family, (code, _, problem) in zip(families, results, strict=True)
            if code
        ]
        if problems:
            raise FirewallError("; ".join(problems))


def find_tables(namespace: Namespace) -> Tables:
    """The kind of iptables that is in use in ``namespace``. Raises FirewallError where none can be used."""
    families = [Family.IPV4]
    if namespace.read("/proc/self/net/if_inet6") is not None:
        families.append(Family.IPV6)
    problems: list[str] = []
    usable: list[Tables] = []
    for kind in _kinds(namespace):
        programs = {family: _programs(kind, family) for family in families}
        missing = [PROGRAMS[family] for family, found in programs.items() if found is None]
        if missing:
            problems.append(f"{' and '.join(missing)} of kind {kind}: not installed")
            continue
        tables = Tables(namespace, {family: found for family, found in programs.items() if found}, kind)
        try:
            dump = tables.dump(Family.IPV4)
            for family in families[1:]:
                tables.dump(family)
        except FirewallError as error:
            problems.append(str(error))
            continue
        if "DOCKER" in dump.chains or "DOCKER-USER" in dump.chains:
            return tables
        usable.append(tables)
    if usable:
        return usable[0]
    raise FirewallError(f"the packet filter cannot be used: {'; '.join(problems) or 'iptables is not installed'}")


def _kinds(namespace: Namespace) -> list[str]:
    legacy = "filter" in (namespace.read(f"/proc/self/net/{LEGACY_TABLES[Family.IPV4]}") or "").split()
    return ["nft", "legacy"] if legacy else ["nft"]


def _programs(kind: str, family: Family) -> tuple[str, str] | None:
    named = f"{PROGRAMS[family]}-{kind}"
    for stem in (named, PROGRAMS[family]):
        restore, save = shutil.which(f"{stem}-restore"), shutil.which(f"{stem}-save")
        if restore and save and (stem == named or _kind_of(restore) == kind):
            return restore, save
    return None


def _kind_of(program: str) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=DEADLINE)
    return "nft" if "nf_tables" in done.stdout else "legacy"


def filter_bridges(namespace: Namespace, families: Sequence[Family]) -> None:
    """Make sure that what one container sends another through the bridge passes the packet filter. Raises
    FirewallError where it does not and cannot be made to."""
    for family in families:
        switch = f"/proc/sys/net/bridge/{BRIDGE_FILTER[family]}"
        if namespace.read(switch) is None and shutil.which("modprobe"):
            subprocess.run(["modprobe", "br_netfilter"], capture_output=True, timeout=DEADLINE)
        if (namespace.read(switch) or "").strip() == "1":
            continue
        write = ["sh", "-c", f"echo 1 > {switch}"]
        subprocess.run(namespace.command(write), capture_output=True, timeout=DEADLINE)
        if (namespace.read(switch) or "").strip() != "1":
            raise FirewallError(
                f"traffic between containers does not pass the packet filter: load the kernel module br_netfilter and "
                f"set net.bridge.{BRIDGE_FILTER[family]}=1 on the host"
            )


def _run(commands: Sequence[list[str]], inputs: Sequence[str | None]) -> list[tuple[int, str, str]]:
    """Run programs at the same time; exit code, output and the last line of complaint of each."""
    running: list[subprocess.Popen[str]] = []
    try:
        for command, text in zip(commands, inputs, strict=True):
            # A file in memory is read at each program's own pace: no thread is needed to feed a pipe.
            stdin = os.memfd_create("rules")
            try:
                os.write(stdin, (text or "").encode())
                os.lseek(stdin, 0, os.SEEK_SET)
                running.append(
                    subprocess.Popen(
                        command,
                        stdin=stdin,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        text=True,
                        errors="replace",
                    )
                )
            finally:
                os.close(stdin)
        results: list[tuple[int, str, str]] = []
        for process in running:
            out, complaint = process.communicate(timeout=DEADLINE)
            lines = [line for line in complaint.splitlines() if line.strip() and not line.startswith("#")]
            results.append((process.returncode, out, _explained(" / ".join(lines[:3]))))
        return results
    except OSError as error:
        raise FirewallError(f"{commands[len(running)][0]} cannot be run: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise FirewallError(f"{error.cmd[0]} did not end within {DEADLINE:g} s") from error
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.communicate()


def _explained(complaint: str) -> str:
    if "ermission denied" in complaint or "not permitted" in complaint or "must be root" in complaint:
        return f"{complaint} (run with --privileged or the capability NET_ADMIN)"
    return complaint
