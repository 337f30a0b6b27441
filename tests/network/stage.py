"""A host with a bridge and containers on it, and a place outside, all made of network namespaces.

inside-1 ─┐
inside-2 ─┼─ bridge ixbr0 (10.77.0.1, fd77::1) [host] ── veth ── outside (203.0.113.1, 2001:db8:77::1, metadata)
inside-3 ─┘
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import unittest
from collections.abc import Iterable
from pathlib import Path

from attrs import frozen

from indexify_dataplane.network.chains import Endpoint
from indexify_dataplane.network.policy import Family

PEER = Path(__file__).with_name("peer.py")
BRIDGE = "ixbr0"
OUTSIDE = ("203.0.113.1", "2001:db8:77::1")
ELSEWHERE = ("198.51.100.1", "2001:db8:78::1")
METADATA = ("169.254.169.254", "fd00:ec2::254")
HOST = ("10.77.0.1", "fd77::1")
SUBNETS = ("10.77.0.0/24", "fd77::/64")
_numbers = itertools.count(1)


def run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, input=text)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def require(test: unittest.TestCase) -> None:
    """Skip ``test`` where namespaces and the packet filter cannot be used; fail it in CI."""
    missing = [each for each in ("ip", "iptables", "ip6tables", "nsenter") if shutil.which(each) is None]
    problem = f"not installed: {', '.join(missing)}" if missing else None
    if problem is None:
        name = f"ixcan-{os.getpid()}"
        try:
            run("ip", "netns", "add", name)
            run("ip", "netns", "exec", name, "iptables-nft", "-N", "X")
            run("ip", "netns", "del", name)
        except RuntimeError as error:
            problem = str(error)
    if problem is not None:
        if os.environ.get("CI") == "true":
            test.fail(f"network namespaces are needed in CI: {problem}")
        raise unittest.SkipTest(problem)


@frozen
class Reached:
    """One attempt: protocol, address, port; ``passed`` says that an answer came back."""

    protocol: str
    address: str
    passed: bool


class Node:
    """One namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = f"/var/run/netns/{name}"

    def __call__(self, *command: str, text: str | None = None) -> str:
        return run("ip", "netns", "exec", self.name, *command, text=text)

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, sys.executable, "-S", str(PEER), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def reach(self, addresses: Iterable[str], port: int = 7777) -> dict[str, set[str]]:
        """Which protocols got an answer, by address: of tcp, udp and icmp."""
        asked = list(addresses)
        process = self.popen("probe", str(port), *asked)
        out, _ = process.communicate(timeout=60)
        found: dict[str, list[str]] = json.loads(out)
        return {address: set(found[address]) for address in asked}


class Stage:
    """See the module's text. Everything is removed when ``test`` ends."""

    def __init__(self, test: unittest.TestCase, containers: int = 2) -> None:
        require(test)
        self.number = f"{os.getpid()}-{next(_numbers)}"
        self._nodes: list[Node] = []
        self._servers: list[subprocess.Popen[str]] = []
        test.addCleanup(self.close)
        self.host, self.outside = self._node("host"), self._node("out")
        self.inside = [self._node(f"in{number}") for number in range(1, containers + 1)]
        host = self.host
        host("ip", "link", "add", BRIDGE, "type", "bridge")
        for address, bits in zip(HOST, ("24", "64"), strict=True):
            host("ip", "address", "add", f"{address}/{bits}", "dev", BRIDGE, *(["nodad"] if ":" in address else []))
        host("ip", "link", "set", BRIDGE, "up")
        for number, node in enumerate(self.inside, start=1):
            self._plug(number, node)
        self._connect()
        self._serve()

    def _node(self, role: str) -> Node:
        node = Node(f"ix{role}-{self.number}")
        run("ip", "netns", "add", node.name)
        self._nodes.append(node)
        node("ip", "link", "set", "lo", "up")
        node("sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1",
             "net.ipv6.conf.default.accept_dad=0")  # fmt: skip
        return node

    def _plug(self, number: int, node: Node) -> None:
        self.host("ip", "link", "add", f"veth{number}", "type", "veth", "peer", "name", "eth0", "netns", node.name)
        self.host("ip", "link", "set", f"veth{number}", "master", BRIDGE)
        self.host("ip", "link", "set", f"veth{number}", "up")
        endpoint = self.endpoint(number)
        node("ip", "link", "set", "eth0", "address", endpoint.mac or "")
        for family, address in endpoint.addresses.items():
            bits, nodad = ("24", []) if family is Family.IPV4 else ("64", ["nodad"])
            node("ip", "address", "add", f"{address}/{bits}", "dev", "eth0", *nodad)
        node("ip", "link", "set", "eth0", "up")
        node("ip", "route", "add", "default", "via", HOST[0])
        node("ip", "-6", "route", "add", "default", "via", HOST[1])

    def _connect(self) -> None:
        self.host("ip", "link", "add", "up0", "type", "veth", "peer", "name", "down0", "netns", self.outside.name)
        self.host("ip", "link", "set", "up0", "up")
        self.outside("ip", "link", "set", "down0", "up")
        self.host("ip", "address", "add", "192.0.2.1/30", "dev", "up0")
        self.host("ip", "address", "add", "2001:db8:1::1/64", "dev", "up0", "nodad")
        self.outside("ip", "address", "add", "192.0.2.2/30", "dev", "down0")
        self.outside("ip", "address", "add", "2001:db8:1::2/64", "dev", "down0", "nodad")
        for address in (*OUTSIDE, *ELSEWHERE, *METADATA):
            self.outside("ip", "address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))
            six, via = (["-6"], "2001:db8:1::2") if ":" in address else ([], "192.0.2.2")
            self.host("ip", *six, "route", "add", address, "via", via)
        self.outside("ip", "route", "add", SUBNETS[0], "via", "192.0.2.1")
        self.outside("ip", "-6", "route", "add", SUBNETS[1], "via", "2001:db8:1::1")

    def _serve(self) -> None:
        for node in self._nodes:
            server = node.popen("serve", "7777", "53")
            self._servers.append(server)
        for server in self._servers:
            assert server.stdout is not None and server.stdout.readline() == "ready\n"

    def endpoint(self, number: int) -> Endpoint:
        """The ``number``-th container's, from 1."""
        addresses = {Family.IPV4: f"10.77.0.{number + 1}", Family.IPV6: f"fd77::{number + 1}"}
        return Endpoint(f"02:42:0a:4d:00:{number + 1:02x}", addresses)

    def addresses(self, number: int) -> tuple[str, str]:
        found = self.endpoint(number).addresses
        return found[Family.IPV4], found[Family.IPV6]

    def link_local(self, node: Node, device: str) -> str:
        shown = json.loads(node("ip", "-j", "-6", "address", "show", "dev", device, "scope", "link"))
        [address] = [each["local"] for found in shown for each in found.get("addr_info", ()) if "local" in each]
        return str(address)

    def close(self) -> None:
        for server in self._servers:
            server.kill()
            server.communicate()
        for node in self._nodes:
            run("ip", "netns", "del", node.name)
