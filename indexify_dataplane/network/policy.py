"""What a network policy means, as packet filter rules of one sandbox's chain. Pure.

RETURN means that the packet goes on to whatever else filters on this host; a chain never accepts. First match wins:

    answers       packets of connections that were opened *to* the sandbox (the node's own above all)
    neighbours    IPv6 only: neighbour and router discovery, without which there is no IPv6
    never         containers of this node, link-local neighbours, multicast, broadcast: dropped
    DNS           port 53 of the sandbox's resolvers
    allow_out     entries that name something (at least a /8, a /16 under IPv6)
    protected     the host itself, metadata services, other containers of the network: dropped
    allow_out     wider entries: "the internet" is neither the host nor a metadata service
    deny_out      dropped
    the rest      goes on, or is dropped if ``allow_internet`` is false

Only answers are let through by connection state: what the sandbox itself began is looked at packet by packet, so that
a stricter policy also ends what is under way.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
from collections.abc import Iterable
from typing import Protocol

from attrs import frozen

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Rule = tuple[str, ...]
"""The words of one rule after ``-A CHAIN``."""


class Policy(Protocol):
    """The fields of ``core.model.NetworkPolicy``; ``allow_internet`` None is true."""

    @property
    def allow_internet(self) -> bool | None: ...

    @property
    def allow_out(self) -> tuple[str, ...]: ...

    @property
    def deny_out(self) -> tuple[str, ...]: ...

    def __hash__(self) -> int: ...


class Family(enum.Enum):
    """One of the two packet filters; the value is the IP version."""

    IPV4 = 4
    IPV6 = 6


class InvalidPolicy(ValueError):
    """An entry of a policy or of a sandbox's surroundings is not an address or a network."""


@frozen
class Surroundings:
    """Where sandboxes live: ``subnets`` of their network (CIDR) and the ``resolvers`` they ask (addresses)."""

    subnets: tuple[str, ...] = ()
    resolvers: tuple[str, ...] = ()


ANSWERS: Rule = ("-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "--ctdir", "REPLY", "-j", "RETURN")
NEIGHBOURS: tuple[Rule, ...] = tuple(
    ("-p", "ipv6-icmp", "-m", "icmp6", "--icmpv6-type", number, "-j", "RETURN") for number in ("133", "135", "136")
)
"""Router solicitation, neighbour solicitation and advertisement (RFC 4861)."""

NEVER = {Family.IPV4: ("224.0.0.0/4", "255.255.255.255/32"), Family.IPV6: ("fe80::/10", "ff00::/8")}
METADATA = {
    # Link-local with 169.254.169.254 and the credentials of container services; Azure; Oracle; Alibaba.
    Family.IPV4: ("169.254.0.0/16", "168.63.129.16/32", "192.0.0.192/32", "100.100.100.200/32"),
    # AWS with fd00:ec2::254; Google; Oracle.
    Family.IPV6: ("fd00:ec2::/32", "fd20:ce::254/128", "fd00:c1::a9fe:a9fe/128"),
}
NAMES_SOMETHING = {Family.IPV4: 8, Family.IPV6: 16}
"""Shortest prefix with which an allow_out entry opens what is protected."""

DEFAULT_RESOLVERS = ("8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844")
"""What Docker gives a container when the host has only resolvers on loopback."""


def networks(entries: Iterable[str], where: str) -> list[Network]:
    """Addresses and CIDRs as networks, both families. Raises InvalidPolicy, which names ``where`` and the entry."""
    found: list[Network] = []
    for number, entry in enumerate(entries):
        try:
            network: Network = ipaddress.ip_network(entry.strip(), strict=False)
        except ValueError as error:
            raise InvalidPolicy(f"{where}[{number}]: {entry!r} is neither an IP address nor a CIDR network") from error
        if isinstance(network, ipaddress.IPv6Network):
            mapped = network.network_address.ipv4_mapped
            if network.network_address.scope_id is not None:
                raise InvalidPolicy(f"{where}[{number}]: {entry!r} has a zone, which means nothing outside its host")
            if mapped is not None and network.prefixlen >= 96:
                # The kernel sends to a mapped address over IPv4, so that is where the rule has to be.
                network = ipaddress.IPv4Network((int(mapped), network.prefixlen - 96), strict=False)
        found.append(network)
    return found


def check(policy: Policy) -> None:
    """Raise InvalidPolicy for a policy that no rules can express."""
    networks(policy.allow_out, "network_policy.allow_out")
    networks(policy.deny_out, "network_policy.deny_out")


@functools.lru_cache(maxsize=256)
def rules(policy: Policy | None, family: Family, around: Surroundings, never: str) -> tuple[Rule, ...]:
    """The rules of one sandbox in one family; ``never`` is the chain that drops what goes to this node's containers.

    Without a policy everything that is not protected goes on. Most sandboxes have the policy of another: the newest are
    remembered. Raises InvalidPolicy.
    """
    made: list[Rule] = [ANSWERS]
    if family is Family.IPV6:
        made += NEIGHBOURS
    made.append(("-j", never))
    made += [("-d", network, "-j", "DROP") for network in NEVER[family]]
    if family is Family.IPV4:
        made.append(("-m", "addrtype", "--dst-type", "BROADCAST", "-j", "DROP"))
    for resolver in _of(family, networks(around.resolvers, "resolvers")):
        for protocol in ("udp", "tcp"):
            made.append(("-d", str(resolver), "-p", protocol, "-m", protocol, "--dport", "53", "-j", "RETURN"))
    allowed = _of(family, networks(policy.allow_out, "network_policy.allow_out")) if policy else []
    denied = _of(family, networks(policy.deny_out, "network_policy.deny_out")) if policy else []
    made += [("-d", str(each), "-j", "RETURN") for each in allowed if each.prefixlen >= NAMES_SOMETHING[family]]
    made.append(("-m", "addrtype", "--dst-type", "LOCAL", "-j", "DROP"))
    made += [("-d", network, "-j", "DROP") for network in METADATA[family]]
    made += [("-d", str(each), "-j", "DROP") for each in _of(family, networks(around.subnets, "subnets"))]
    made += [("-d", str(each), "-j", "RETURN") for each in allowed if each.prefixlen < NAMES_SOMETHING[family]]
    made += [("-d", str(each), "-j", "DROP") for each in denied]
    closed = policy is not None and policy.allow_internet is False
    made.append(("-j", "DROP" if closed else "RETURN"))
    return tuple(made)


def resolvers(resolv_conf: str) -> tuple[str, ...]:
    """The resolvers that a container gets on a host with this ``/etc/resolv.conf``: Docker leaves out those on
    loopback, and takes its own default if none is left."""
    found: list[str] = []
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = ipaddress.ip_address(words[1].partition("%")[0])
        except ValueError:
            continue
        if not address.is_loopback:
            found.append(str(address))
    return tuple(dict.fromkeys(found)) or DEFAULT_RESOLVERS


def _of(family: Family, found: Iterable[Network]) -> list[Network]:
    return [each for each in dict.fromkeys(found) if each.version == family.value]
