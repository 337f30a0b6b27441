"""Policies as rules: what the rules let through is what the policy says, for every packet."""

from __future__ import annotations

import ipaddress
import itertools

from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from indexify_dataplane.core.model import NetworkPolicy
from indexify_dataplane.network.policy import (
    DEFAULT_RESOLVERS,
    Family,
    InvalidPolicy,
    Rule,
    Surroundings,
    check,
    resolvers,
    rules,
)

AROUND = Surroundings(subnets=("172.17.0.0/16", "fd00:17::/64"), resolvers=("10.0.0.2", "fd00:17::1", "2001:db8::53"))
HOST = ("172.17.0.1", "192.168.1.5", "fd00:17::1", "2001:db8:1::5")
OURS = ("172.17.0.3", "fd00:17::3")


@frozen
class Packet:
    """What leaves a sandbox. ``answer``: it belongs to a connection that was opened to the sandbox."""

    to: str
    protocol: str = "tcp"
    port: int = 443
    answer: bool = False

    @property
    def family(self) -> Family:
        return Family(ipaddress.ip_address(self.to).version)


def passes(policy: NetworkPolicy | None, packet: Packet) -> bool:
    """The kernel's reading of the rules."""
    for rule in rules(policy, packet.family, AROUND, "OURS"):
        if matches(rule, packet):
            verdict = rule[-1]
            if verdict == "OURS":
                if packet.to in OURS:
                    return False
                continue
            return verdict == "RETURN"
    raise AssertionError("a chain must decide on every packet")


def matches(rule: Rule, packet: Packet) -> bool:
    address = ipaddress.ip_address(packet.to)
    words = list(rule[:-2])
    assert rule[-2] == "-j"
    while words:
        match words:
            case ["-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "--ctdir", "REPLY", *words]:
                holds = packet.answer
            case ["-p", protocol, "-m", _, "--dport", port, *words]:
                holds = packet.protocol == protocol and packet.port == int(port)
            case ["-p", "ipv6-icmp", "-m", "icmp6", "--icmpv6-type", number, *words]:
                holds = packet.protocol == "icmp" and packet.port == int(number)
            case ["-m", "addrtype", "--dst-type", "LOCAL", *words]:
                holds = packet.to in HOST
            case ["-m", "addrtype", "--dst-type", "BROADCAST", *words]:
                holds = packet.to == "172.17.255.255"
            case ["-d", network, *words]:
                holds = address in ipaddress.ip_network(network)
            case _:
                raise AssertionError(f"no reading for {words}")
        if not holds:
            return False
    return True


def permitted(policy: NetworkPolicy | None, packet: Packet) -> bool:
    """What the documents promise, written down independently of the rules."""
    address = ipaddress.ip_address(packet.to)

    def within(entries: tuple[str, ...], shortest: int = 0) -> bool:
        found = (ipaddress.ip_network(entry, strict=False) for entry in entries)
        return any(address in each and each.prefixlen >= shortest for each in found)

    metadata = ("169.254.0.0/16", "168.63.129.16", "192.0.0.192", "100.100.100.200", "fd00:ec2::/32", "fd20:ce::254",
                "fd00:c1::a9fe:a9fe")  # fmt: skip
    if packet.answer:
        return True
    if address.version == 6 and packet.protocol == "icmp" and packet.port in (133, 135, 136):
        return True
    if packet.to in OURS or address.is_multicast or packet.to in ("255.255.255.255", "172.17.255.255"):
        return False
    if address.version == 6 and address.is_link_local:
        return False
    if packet.port == 53 and packet.protocol in ("tcp", "udp") and packet.to in AROUND.resolvers:
        return True
    allow_out, deny_out = (policy.allow_out, policy.deny_out) if policy else ((), ())
    if within(allow_out, 8 if address.version == 4 else 16):
        return True
    if packet.to in HOST or within(metadata) or within(AROUND.subnets):
        return False
    if within(allow_out):
        return True
    if within(deny_out):
        return False
    return policy is None or policy.allow_internet is not False


PLACES = (
    *HOST, *OURS, *AROUND.resolvers, "1.1.1.1", "10.0.0.9", "172.17.0.9", "172.17.255.255", "169.254.169.254",
    "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192", "224.0.0.251", "255.255.255.255",
    "2001:db8::1", "2606:4700::1111", "fd00:17::9", "fe80::1", "ff02::1", "fd00:ec2::254", "fd20:ce::254",
    "fd00:c1::a9fe:a9fe", "fd12::1",
)  # fmt: skip
ENTRIES = (
    *PLACES, "0.0.0.0/0", "::/0", "0.0.0.0/1", "128.0.0.0/1", "2000::/3", "10.0.0.0/8", "10.0.0.9/24", "172.17.0.0/16",
    "169.254.169.254/32", "fd00::/8", "fd00:17::/64", "2001:db8::/32", "1.1.1.0/24",
)  # fmt: skip
entries = st.lists(st.sampled_from(ENTRIES), max_size=5).map(tuple)
policies = st.none() | st.builds(
    NetworkPolicy, allow_internet=st.sampled_from((None, True, False)), allow_out=entries, deny_out=entries
)
packets = st.builds(
    Packet, to=st.sampled_from(PLACES), protocol=st.sampled_from(("tcp", "udp", "icmp")),
    port=st.sampled_from((53, 443, 135, 128)), answer=st.booleans(),
)  # fmt: skip

CLOSED = NetworkPolicy(allow_internet=False)


class PolicyTests(TestCase):
    @given(policy=policies, packet=packets)
    def test_the_rules_say_what_the_policy_says(self, policy: NetworkPolicy | None, packet: Packet) -> None:
        self.assertEqual(passes(policy, packet), permitted(policy, packet))

    def test_table(self) -> None:
        rows = [
            ("no policy: the internet", None, Packet("1.1.1.1"), True),
            ("no policy: the host", None, Packet("172.17.0.1"), False),
            ("no policy: another address of the host", None, Packet("192.168.1.5"), False),
            ("no policy: metadata", None, Packet("169.254.169.254"), False),
            ("no policy: metadata over IPv6", None, Packet("fd00:ec2::254"), False),
            ("no policy: a sandbox", None, Packet("172.17.0.3"), False),
            ("no policy: a container of somebody else", None, Packet("172.17.0.9"), False),
            ("an empty policy is none", NetworkPolicy(), Packet("1.1.1.1"), True),
            ("closed", CLOSED, Packet("1.1.1.1"), False),
            ("closed over IPv6", CLOSED, Packet("2606:4700::1111"), False),
            ("closed: DNS", CLOSED, Packet("10.0.0.2", "udp", 53), True),
            ("closed: DNS of nobody", CLOSED, Packet("1.1.1.1", "udp", 53), False),
            ("closed: another port of the resolver", CLOSED, Packet("10.0.0.2"), False),
            ("closed: answers", CLOSED, Packet("1.1.1.1", answer=True), True),
            ("allow before deny", NetworkPolicy(False, ("1.1.1.1",), ("1.1.1.0/24",)), Packet("1.1.1.1"), True),
            ("deny", NetworkPolicy(True, (), ("1.1.1.0/24",)), Packet("1.1.1.1"), False),
            ("the host, allowed", NetworkPolicy(False, ("172.17.0.1",)), Packet("172.17.0.1"), True),
            ("metadata, allowed", NetworkPolicy(False, ("169.254.169.254",)), Packet("169.254.169.254"), True),
            ("everything is not the host", NetworkPolicy(False, ("0.0.0.0/0",)), Packet("172.17.0.1"), False),
            ("everything is not metadata", NetworkPolicy(False, ("::/0",)), Packet("fd00:ec2::254"), False),
            ("everything is the internet", NetworkPolicy(False, ("0.0.0.0/0",)), Packet("1.1.1.1"), True),
            ("... of its own family", NetworkPolicy(False, ("0.0.0.0/0",)), Packet("2606:4700::1111"), False),
            ("a sandbox is never allowed", NetworkPolicy(True, ("172.17.0.3",)), Packet("172.17.0.3"), False),
            ("somebody's container, allowed", NetworkPolicy(True, ("172.17.0.9",)), Packet("172.17.0.9"), True),
            ("mapped addresses are IPv4", NetworkPolicy(True, (), ("::ffff:1.1.1.1",)), Packet("1.1.1.1"), False),
        ]  # fmt: skip
        for name, policy, packet, passed in rows:
            with self.subTest(name):
                self.assertEqual(passes(policy, packet), passed, name)

    def test_what_is_no_network_is_named(self) -> None:
        bad = ("example.com", "1.2.3.4.5", "", "10.0.0.0/33", "fe80::1%eth0", "1.1.1.1 -j ACCEPT", "-j", "10.0.0.1:80")
        for place, entry in itertools.product(("allow_out", "deny_out"), bad):
            policy = NetworkPolicy(**{place: ("1.1.1.1", entry)})
            error = self.assertRaises(InvalidPolicy, check, policy)
            self.assertIn(f"network_policy.{place}[1]: {entry!r}", str(error))
            self.assertRaises(InvalidPolicy, rules, policy, Family.IPV4, AROUND, "OURS")

    @given(policy=policies)
    def test_each_address_is_in_its_own_family_and_every_word_is_plain(self, policy: NetworkPolicy | None) -> None:
        for family in Family:
            for rule in rules(policy, family, AROUND, "OURS"):
                for word in rule:
                    self.assertRegex(word, r"\A[A-Za-z0-9.,:/_-]+\Z")
                if "-d" in rule:
                    self.assertEqual(ipaddress.ip_network(rule[rule.index("-d") + 1]).version, family.value)

    def test_resolvers(self) -> None:
        rows = {
            "nameserver 10.0.0.2\nnameserver fe80::1%eth0\nsearch x\n": ("10.0.0.2", "fe80::1"),
            "nameserver 127.0.0.53\noptions edns0\n": DEFAULT_RESOLVERS,
            "": DEFAULT_RESOLVERS,
            "nameserver nonsense\nnameserver\n  nameserver 1.1.1.1 # x\nnameserver 1.1.1.1\n": ("1.1.1.1",),
        }
        for text, expected in rows.items():
            self.assertEqual(resolvers(text), expected, text)
