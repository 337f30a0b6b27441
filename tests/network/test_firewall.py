"""Real rules on real packets, in namespaces that the tests make; both kinds of iptables."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import sys
import threading
import unittest
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from attrs import evolve
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import TestCase

from indexify_dataplane.core.model import NetworkPolicy
from indexify_dataplane.network import presence
from indexify_dataplane.network.chains import Dump, Endpoint, node_chain
from indexify_dataplane.network.firewall import Firewall
from indexify_dataplane.network.graves import members
from indexify_dataplane.network.hooks import Hooks
from indexify_dataplane.network.policy import Family, Surroundings
from indexify_dataplane.network.tables import FirewallError, Namespace, Tables, find_namespace, find_tables

from .stage import BRIDGE, ELSEWHERE, HOST, METADATA, OUTSIDE, SUBNETS, Node, Stage

FAR = Endpoint("02:42:00:00:00:77", {Family.IPV4: "10.99.0.2"})
CLOSED = NetworkPolicy(allow_internet=False)
DOCKER = "*filter\n:DOCKER-USER - [0:0]\n:DOCKER - [0:0]\n-I FORWARD -j DOCKER-USER\n-A DOCKER-USER -j RETURN\nCOMMIT\n"


def refuse(*_: Any) -> bool:
    raise FirewallError("the rules of INPUT cannot be read from the kernel: of a test")


def free(places: Iterable[str]) -> dict[str, set[str]]:
    return {place: {"tcp", "udp", "icmp"} for place in places}


def shut(places: Iterable[str]) -> dict[str, set[str]]:
    return {place: set() for place in places}


class FailsInOneFamily:
    """The kernel takes the change over IPv4 and refuses it over IPv6."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tables, name)

    def restore(self, texts: Mapping[Family, str]) -> None:
        self._tables.restore({family: text for family, text in texts.items() if family is Family.IPV4})
        raise FirewallError("refused, for a test")


class Meanwhile:
    """Somebody else writes rules just after the node has looked, or has written."""

    def __init__(self, tables: Tables, *, looked: Callable[[], None], wrote: Callable[[], None] = lambda: None) -> None:
        self._tables = tables
        self._looked, self._wrote = looked, wrote

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tables, name)

    def dumps(self) -> Any:
        found = self._tables.dumps()
        self._looked()
        return found

    def restore(self, texts: Mapping[Family, str]) -> None:
        self._tables.restore(texts)
        self._wrote()


class Rules:
    """Tests of one kind of iptables, on a host where Docker has made its chains."""

    kind = ""
    assertEqual: Any
    assertIn: Any
    assertNotIn: Any
    assertRaises: Any
    assertTrue: Any
    patch: Any
    addCleanup: Any

    def setUp(self) -> None:
        self.stage = Stage(self)  # type: ignore[arg-type]
        if shutil.which(f"iptables-{self.kind}") is None:
            raise unittest.SkipTest(f"iptables-{self.kind} is not installed")
        self.stage.host(f"iptables-{self.kind}-restore", "--noflush", text=DOCKER)
        self.firewall = self.new()

    def new(self, executor: str = "executor-1", resolvers: tuple[str, ...] = (OUTSIDE[0],)) -> Firewall:
        firewall = Firewall(
            executor_id=executor,
            bridge=BRIDGE,
            around=Surroundings(SUBNETS, resolvers),
            locate=lambda bridge: find_namespace(bridge, (self.stage.host.path,)),
        )
        firewall.open()
        self.addCleanup(firewall.close)
        return firewall

    def again(self) -> None:
        """The next process of the node."""
        self.firewall.close()
        self.firewall = self.new()

    def kill(self, firewall: Firewall) -> None:
        """Its process is gone, and what it had put into the kernel is there."""
        saved = {each: self.stage.host(f"{each}-{self.kind}-save") for each in ("iptables", "ip6tables")}
        firewall.close()
        for family, text in saved.items():
            self.stage.host(f"{family}-{self.kind}-restore", text=text)

    def listed(self, *arguments: str, family: str = "iptables") -> str:
        return self.stage.host(f"{family}-{self.kind}", *arguments)

    def dump(self, family: str) -> Dump:
        return Dump.parse(self.stage.host(f"{family}-{self.kind}-save", "-t", "filter"))

    def apply(self, number: int, policy: NetworkPolicy | None, id: str | None = None) -> str:
        name = f"sandbox-{number}-abcdefghijk" if id is None else id
        return self.firewall.apply(name, self.stage.endpoint(number), policy)

    def assert_reach(self, node: Node, expected: dict[str, set[str]], port: int = 7777) -> None:
        self.assertEqual(node.reach(expected, port), expected)

    def test_without_a_policy_only_what_is_protected_is_out_of_reach(self) -> None:
        one, _ = self.stage.inside
        link = f"{self.stage.link_local(self.stage.host, BRIDGE)}%eth0"
        neighbour = f"{self.stage.link_local(self.stage.inside[1], 'eth0')}%eth0"
        closed = [*METADATA, *HOST, *self.stage.addresses(2), link, neighbour, "192.0.2.1", "2001:db8:1::1"]
        self.assert_reach(one, free([*OUTSIDE, *closed]))  # the stage itself is open
        self.apply(1, None)
        self.apply(2, None)
        self.assert_reach(one, {**free(OUTSIDE), **shut(closed)})

    def test_the_node_reaches_every_port(self) -> None:
        for number in (1, 2):
            self.apply(number, CLOSED)
            self.assert_reach(self.stage.host, free(self.stage.addresses(number)))

    def test_opposite_policies_at_once(self) -> None:
        one, two = self.stage.inside
        self.apply(1, CLOSED)
        self.apply(2, NetworkPolicy(allow_internet=True))
        self.assert_reach(one, shut(OUTSIDE))
        self.assert_reach(one, {OUTSIDE[0]: {"tcp", "udp"}, ELSEWHERE[0]: set()}, port=53)
        self.assert_reach(two, free(OUTSIDE))
        self.apply(1, NetworkPolicy(allow_internet=True))
        self.apply(2, CLOSED)
        self.assert_reach(one, free(OUTSIDE))
        self.assert_reach(two, shut(OUTSIDE))

    def test_allow_before_deny_and_protected_only_by_name(self) -> None:
        one, _ = self.stage.inside
        self.apply(1, NetworkPolicy(True, (OUTSIDE[0], OUTSIDE[1], HOST[0], METADATA[1]), ("0.0.0.0/0", "::/0")))
        self.apply(2, None)
        opened = [*OUTSIDE, HOST[0], METADATA[1]]
        closed = [*ELSEWHERE, HOST[1], METADATA[0], *self.stage.addresses(2)]
        self.assert_reach(one, {**free(opened), **shut(closed)})
        self.apply(1, NetworkPolicy(False, ("0.0.0.0/0", "::/0", *self.stage.addresses(2)), ELSEWHERE))
        closed = [*HOST, *METADATA, *self.stage.addresses(2)]
        self.assert_reach(one, {**free([*OUTSIDE, *ELSEWHERE]), **shut(closed)})

    def test_a_false_source_address_does_not_help(self) -> None:
        """A process may choose an IPv6 source that is not its own (IPV6_FREEBIND) without any privilege."""
        one, _ = self.stage.inside
        self.apply(1, CLOSED)
        one("ip", "address", "add", "10.77.0.99/24", "dev", "eth0")
        one("ip", "address", "add", "fd77::99/64", "dev", "eth0", "nodad")
        one("ip", "route", "replace", "default", "via", HOST[0], "src", "10.77.0.99")
        one("ip", "-6", "route", "replace", "default", "via", HOST[1], "src", "fd77::99")
        self.assert_reach(one, shut([*OUTSIDE, *HOST]))

    def test_what_the_sandbox_began_ends_with_a_stricter_policy(self) -> None:
        one, _ = self.stage.inside
        self.apply(1, None)
        talk = (
            "import socket,sys\ns=socket.create_connection((sys.argv[1],7777),5)\n"
            "u=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\nu.settimeout(1)\nu.connect((sys.argv[1],7777))\n"
            "def ask():\n try:\n  u.send(b'x'); u.recv(1); return True\n except OSError: return False\n"
            "print(ask(),flush=True)\ninput()\nprint(ask(),flush=True)"
        )
        process = subprocess.Popen(
            ["ip", "netns", "exec", one.name, "python3", "-c", talk, OUTSIDE[0]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline(), "True\n")
        self.apply(1, CLOSED)
        out, _ = process.communicate("\n", timeout=20)
        self.assertEqual(out, "False\n")

    def test_the_chain_is_found_as_operators_are_told(self) -> None:
        chain = self.apply(1, NetworkPolicy(False, (OUTSIDE[0],), ()), id="0123456789abcdefghijk")
        self.assertEqual(chain, "INDEXIFY-SB-0123456789abcdef")
        self.stage.inside[0].reach([ELSEWHERE[0]])
        for family in ("iptables", "ip6tables"):
            self.assertIn("DROP", self.listed("-L", chain, "-n", "-v", family=family))
        shown = self.listed("-L", chain, "-n", "-v")
        dropped = [line.split() for line in shown.splitlines() if line.split()[2:3] == ["DROP"]]
        self.assertTrue(int(dropped[-1][0]) > 0, shown)
        self.assertIn(node_chain("executor-1"), self.listed("-L", "DOCKER-USER", "-n", "-v"))
        self.assertIn("0123456789abcdefghijk", self.listed("-L", node_chain("executor-1"), "-n", "-v"))

    def test_removal_leaves_nothing(self) -> None:
        chain = self.apply(1, CLOSED)
        self.firewall.remove("sandbox-1-abcdefghijk")
        self.firewall.remove("sandbox-1-abcdefghijk")
        self.firewall.remove("never seen")
        for family in ("iptables", "ip6tables"):
            shown = self.listed("-S", family=family)
            self.assertNotIn(chain, shown)
            self.assertNotIn("sandbox-1", shown)
        self.assert_reach(self.stage.inside[0], free(OUTSIDE))

    def test_the_next_process_takes_over_and_sweeps(self) -> None:
        self.apply(1, CLOSED)
        kept = self.apply(2, CLOSED)
        other = self.new("executor-2")
        other.apply("of-another-node", Endpoint("02:42:00:00:00:77"), CLOSED)
        self.stage.host(f"iptables-{self.kind}", "-N", "INDEXIFY-SB-left")
        self.again()
        self.assertEqual(self.firewall.stray(), ["INDEXIFY-SB-left"])
        self.assert_reach(self.stage.inside[0], shut(OUTSIDE))
        before = self.listed("-S", kept)
        alive = ["sandbox-2-abcdefghijk", "of-another-node"]
        gone = self.firewall.sweep(lambda: alive)
        self.assertEqual(gone, ["sandbox-1-abcdefghijk", "INDEXIFY-SB-left"])
        self.assertEqual(self.listed("-S", kept), before)
        self.assertIn("INDEXIFY-SB-of-another-node", self.listed("-S"))
        self.assertEqual(self.firewall.sweep(lambda: alive), [])
        self.assert_reach(self.stage.inside[0], free(OUTSIDE))
        self.assert_reach(self.stage.inside[1], shut(OUTSIDE))

    def test_rules_of_a_node_that_is_gone_do_not_hold_for_its_addresses(self) -> None:
        """Its containers died; their addresses are given to new ones. What is on another network stays."""
        gone = self.new("executor-2")
        chain = gone.apply("dead", self.stage.endpoint(1), CLOSED)
        elsewhere = gone.apply("elsewhere", FAR, CLOSED)
        killed = gone.apply("killed-by-its-successor", self.stage.endpoint(2), CLOSED)
        gone.close()
        self.assertEqual(self.firewall.sweep(lambda: ["killed-by-its-successor"]), ["dead", chain])
        self.firewall.remove("killed-by-its-successor")
        for family in ("iptables", "ip6tables"):
            shown = self.listed("-S", family=family)
            self.assertNotIn(chain, shown)
            self.assertNotIn(killed, shown)
        self.assertIn(elsewhere, self.listed("-S"))
        self.assertIn(f"-A INPUT -j {node_chain('executor-2')}", self.listed("-S"))
        for inside in self.stage.inside:
            self.assert_reach(inside, free(OUTSIDE))
        swept = self.firewall.sweep(list, ["10.99.0.0/24"])
        self.assertEqual(swept, ["elsewhere", *sorted([elsewhere, *members(node_chain("executor-2"))])])
        for family in ("iptables", "ip6tables"):
            self.assertNotIn(node_chain("executor-2"), self.listed("-S", family=family))

    def test_nodes_that_are_there_lose_nothing(self) -> None:
        """Neither their rules, whatever this engine knows of their containers, nor their empty chains."""
        busy, idle = self.new("executor-2"), self.new("executor-3")
        busy.apply("of-another-engine", self.stage.endpoint(1), CLOSED)
        before = {family: self.listed("-S", family=family) for family in ("iptables", "ip6tables")}
        self.assertEqual(self.firewall.sweep(list, ["0.0.0.0/0", "::/0"]), [])
        self.firewall.remove("of-another-engine")
        self.assertEqual({family: self.listed("-S", family=family) for family in before}, before)
        idle.apply("new", self.stage.endpoint(2), CLOSED)
        self.assert_reach(self.stage.inside[1], shut(OUTSIDE))

    def test_a_node_that_was_killed_finds_its_rules_as_long_as_its_sandboxes_live(self) -> None:
        killed = self.new("executor-2")
        killed.apply("lives", self.stage.endpoint(1), CLOSED)
        killed.apply("lives-elsewhere", FAR, CLOSED)
        killed.close()
        before = {family: self.listed("-S", family=family) for family in ("iptables", "ip6tables")}
        self.assertEqual(self.firewall.sweep(lambda: ["lives"]), [])
        self.assertEqual({family: self.listed("-S", family=family) for family in before}, before)
        again = self.new("executor-2")
        self.assertEqual(again.check(), [])
        self.assert_reach(self.stage.inside[0], shut(OUTSIDE))

    def test_chains_of_a_node_that_never_comes_back_go_with_the_next_start_of_any(self) -> None:
        for number in range(3):
            self.kill(self.new(f"gone-{number}"))
        self.assertEqual(self.listed("-S").count("-j INDEXIFY-"), 8)
        self.assertEqual(len(self.firewall.sweep(list)), 6)
        for family in ("iptables", "ip6tables"):
            chains = {word for word in self.listed("-S", family=family).split() if word.startswith("INDEXIFY-")}
            self.assertEqual(chains, {*members(node_chain("executor-1"))})

    def test_an_ordered_end_leaves_chains_only_for_containers_that_go_on(self) -> None:
        families = ("iptables", "ip6tables")
        mine = node_chain("executor-1")
        neighbour = self.new("executor-2")
        chain = self.apply(1, CLOSED)
        self.firewall.protect("function-1", self.stage.endpoint(2))
        before = {family: self.listed("-S", family=family) for family in families}
        self.firewall.close()
        self.assertEqual({family: self.listed("-S", family=family) for family in families}, before)
        self.firewall = self.new()
        self.firewall.remove("sandbox-1-abcdefghijk")
        self.firewall.close()
        for family in families:
            self.assertIn(f"-A INPUT -j {mine}", self.listed("-S", family=family), "the function goes on")
        self.firewall = self.new()
        self.firewall.remove("function-1")
        self.listed("-A", "INPUT", "-p", "udp", "-j", "DROP")
        self.firewall.close()
        for family in families:
            shown = self.listed("-S", family=family)
            self.assertNotIn(mine, shown)
            self.assertNotIn(chain, shown)
            self.assertIn(f"-A INPUT -j {node_chain('executor-2')}", shown)
        self.assertIn("-A INPUT -p udp -j DROP", self.listed("-S"))
        self.assertIn("-A DOCKER-USER -j RETURN", self.listed("-S"))
        self.assertEqual(neighbour.check(), [])

    def test_chains_that_cannot_be_removed_at_the_end_are_told(self) -> None:
        begun = threading.Event()

        class Broken:
            def __init__(self, tables: Any) -> None:
                self._tables = tables

            def __getattr__(self, name: str) -> Any:
                return getattr(self._tables, name)

            def dumps(self) -> Any:
                if begun.is_set():
                    raise FirewallError("the kernel's table is locked")
                return self._tables.dumps()

        firewall = Firewall(
            executor_id="executor-2",
            bridge=BRIDGE,
            around=Surroundings(SUBNETS),
            locate=lambda bridge: find_namespace(bridge, (self.stage.host.path,)),
            tables=lambda namespace: cast(Tables, Broken(find_tables(namespace))),
        )
        firewall.open()
        begun.set()
        told: list[Any] = []
        globalLogPublisher.addObserver(told.append)
        self.addCleanup(globalLogPublisher.removeObserver, told.append)
        firewall.close()
        [event] = [each for each in told if each.get("executor_id") == "executor-2"]
        self.assertIn("the kernel's table is locked", event["error"])
        self.new("executor-2")

    def test_a_node_whose_chains_are_gone_puts_them_back(self) -> None:
        """Another one took them while it was down, or somebody else while it runs."""
        self.kill(self.firewall)
        self.new("executor-2").sweep(list)
        self.assertNotIn(node_chain("executor-1"), self.listed("-S"))
        self.firewall = self.new()
        self.assertEqual(self.firewall.check(), [])
        self.apply(1, CLOSED)
        self.assert_reach(self.stage.inside[0], shut([*OUTSIDE, *HOST]))
        for family in ("iptables", "ip6tables"):
            self.stage.host(f"{family}-{self.kind}-restore", text="*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\nCOMMIT\n")
        self.assert_reach(self.stage.inside[0], free(OUTSIDE))
        self.assertTrue(self.firewall.check())
        self.assert_reach(self.stage.inside[0], shut([*OUTSIDE, *HOST]))

    def test_two_processes_cannot_be_the_same_node(self) -> None:
        host = Namespace(self.stage.host.path)
        name = node_chain("executor-1")
        self.assertIsNone(presence.hold(host, name))
        error = self.assertRaises(FirewallError, presence.take, host, name, "executor-1", 0.1)
        self.assertIn("executor-1", str(error))
        self.assertEqual(presence.present(host, [name, node_chain("executor-2")]), {name})
        self.assertEqual(presence.present(Namespace(), [name]), set(), "names are kept apart as rules are")
        with presence.borrowed(host, [name, node_chain("executor-2")]) as dead:
            self.assertEqual(dead, {node_chain("executor-2")})
            self.assertIsNone(presence.hold(host, node_chain("executor-2")))
        self.again()

    def test_a_start_under_flushed_rules_puts_all_back(self) -> None:
        """Nothing has looked at the rules since, and nothing may start under rules that are not asked."""
        self.apply(1, CLOSED)
        for family in ("iptables", "ip6tables"):
            self.listed("-F", family=family)
        self.apply(2, CLOSED)
        for inside in self.stage.inside:
            self.assert_reach(inside, shut([*OUTSIDE, *HOST]))
        self.assertEqual((self.firewall.repairs, self.firewall.check()), (1, []))
        for family in ("iptables", "ip6tables"):
            self.stage.host(f"{family}-{self.kind}-restore", text="*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\nCOMMIT\n")
        self.firewall.remove("sandbox-2-abcdefghijk")
        self.assert_reach(self.stage.inside[0], shut([*OUTSIDE, *HOST]))
        self.assertEqual((self.firewall.repairs, self.firewall.check()), (2, []))

    def test_equal_beginnings_of_ids_get_chains_of_their_own(self) -> None:
        names = {self.apply(1, CLOSED, id="same-beginning-xx1"), self.apply(2, None, id="same-beginning-xx2")}
        other = self.new("executor-2")
        names.add(other.apply("same-beginning-xx3", Endpoint("02:42:00:00:00:77"), CLOSED))
        self.assertEqual(len(names), 3)
        self.assertTrue(all(len(name) <= 28 for name in names), names)
        self.assert_reach(self.stage.inside[0], shut(OUTSIDE))
        self.assert_reach(self.stage.inside[1], free(OUTSIDE))
        self.again()
        self.assertIn(self.firewall.apply("same-beginning-xx1", self.stage.endpoint(1), CLOSED), names)

    def test_an_id_cannot_become_rules(self) -> None:
        for id in ('x" -j ACCEPT\nCOMMIT\n', "-F", "a b", "é", "x" * 300, ""):
            chain = self.apply(1, CLOSED, id=id)
            self.assert_reach(self.stage.inside[0], {OUTSIDE[0]: set()})
            self.assertIn(chain, self.listed("-S"))
            self.firewall.remove(id)
            self.assertNotIn(chain, self.listed("-S"))

    def test_equal_rules_are_not_written_again(self) -> None:
        chain = self.apply(1, CLOSED)
        self.stage.inside[0].reach([ELSEWHERE[0]])
        before = self.listed("-L", chain, "-n", "-v")
        self.again()
        self.assertEqual(self.apply(1, CLOSED), chain)
        self.assertEqual(self.listed("-L", chain, "-n", "-v"), before, "the counters went on")

    def test_a_start_puts_the_hooks_first_again(self) -> None:
        self.apply(1, CLOSED)
        for chain in ("INPUT", "DOCKER-USER"):
            self.listed("-I", chain, "1", "-j", "ACCEPT")
        self.apply(2, CLOSED)
        for inside in self.stage.inside:
            self.assert_reach(inside, shut([*OUTSIDE, *HOST]))

    def test_a_start_puts_back_hooks_that_alone_are_gone(self) -> None:
        self.apply(1, CLOSED)
        for chain in ("INPUT", "DOCKER-USER"):
            self.listed("-D", chain, "-j", node_chain("executor-1"))
        self.apply(2, CLOSED)
        for inside in self.stage.inside:
            self.assert_reach(inside, shut([*OUTSIDE, *HOST]))
        self.assertEqual((self.firewall.repairs, self.firewall.check()), (1, []))

    def unhook(self) -> None:
        for family in ("iptables", "ip6tables"):
            for chain in ("INPUT", "DOCKER-USER"):
                with contextlib.suppress(RuntimeError):  # it is not there
                    self.listed("-D", chain, "-j", node_chain("executor-1"), family=family)

    def test_equal_rules_are_asked_for_all_the_same(self) -> None:
        """A warm container is claimed, or one starts anew at the same place."""
        self.apply(1, CLOSED)
        self.firewall.protect("function-2", self.stage.endpoint(2))
        self.unhook()
        self.apply(1, CLOSED)
        self.assert_reach(self.stage.inside[0], shut([*OUTSIDE, *HOST]))
        self.assertEqual(self.firewall.check(), [])
        self.unhook()
        self.firewall.protect("function-2", self.stage.endpoint(2))
        self.assertEqual(self.firewall.check(), [])

    def test_what_others_write_between_the_look_and_the_change_is_seen(self) -> None:
        left = [3]

        def looked() -> None:
            left[0] -= 1
            if left[0] >= 0:
                self.unhook()

        self.apply(1, CLOSED)
        tables = self.firewall._tables
        self.firewall._tables = cast(Tables, Meanwhile(tables, looked=looked))
        self.firewall._written = None  # as after a change that has failed
        try:
            self.apply(2, CLOSED)
        except FirewallError:
            self.assertEqual(self.kind, "legacy", "refused by the kernel, and then not started")
            self.firewall._tables = tables
            self.apply(2, CLOSED)
        for inside in self.stage.inside:
            self.assert_reach(inside, shut([*OUTSIDE, *HOST]))
        self.firewall._tables = tables
        self.assertEqual(self.firewall.check(), [])

    def test_it_is_refused_where_others_never_stop(self) -> None:
        if self.kind == "legacy":
            raise unittest.SkipTest("legacy iptables cannot be asked")
        tables = self.firewall._tables
        self.firewall._tables = cast(Tables, Meanwhile(tables, looked=lambda: None, wrote=self.unhook))
        with self.assertRaisesRegex(FirewallError, "does not stay first"):
            self.apply(1, CLOSED)
        self.firewall._tables = tables
        self.apply(1, CLOSED)
        self.assert_reach(self.stage.inside[0], shut([*OUTSIDE, *HOST]))

    def test_where_the_kernel_does_not_answer_nothing_starts(self) -> None:
        if self.kind == "legacy":
            raise unittest.SkipTest("legacy iptables cannot be asked")
        self.patch(Hooks, "lead", refuse)
        with self.assertRaisesRegex(FirewallError, "cannot be read"):
            self.apply(1, CLOSED)
        with self.assertRaisesRegex(FirewallError, "cannot be read"):
            self.apply(1, CLOSED)

    def test_a_node_that_may_not_ask_puts_its_hooks_first_with_each_change(self) -> None:
        self.patch(Hooks, "lead", refuse)
        self.again()
        self.apply(1, CLOSED)
        for chain in ("INPUT", "DOCKER-USER"):
            self.listed("-I", chain, "1", "-j", "ACCEPT")
        self.apply(2, CLOSED)
        for inside in self.stage.inside:
            self.assert_reach(inside, shut([*OUTSIDE, *HOST]))

    def test_nothing_is_written_after_the_end(self) -> None:
        self.apply(1, CLOSED)
        self.firewall.close()
        for change in (
            lambda: self.apply(2, CLOSED), lambda: self.apply(1, CLOSED), lambda: self.apply(1, None),
            lambda: self.firewall.remove("sandbox-1-abcdefghijk"),
        ):  # fmt: skip
            with self.assertRaisesRegex(FirewallError, "closed"):
                change()

    def test_rules_of_nobody_in_the_node_s_chains_are_found(self) -> None:
        self.apply(1, CLOSED)
        self.assertEqual(self.firewall.check(), [])
        self.listed("-I", node_chain("executor-1"), "1", "-j", "RETURN")
        self.assertTrue(self.firewall.check())
        self.assertEqual(self.firewall.check(), [])
        self.assert_reach(self.stage.inside[0], shut([*OUTSIDE, *HOST]))

    def test_a_flush_of_one_family_while_the_node_is_away_takes_no_chain_of_a_sandbox_that_lives(self) -> None:
        self.apply(1, CLOSED)
        self.kill(self.firewall)
        self.listed("-F")
        self.firewall = self.new()
        self.assertEqual(self.firewall.sweep(lambda: ["sandbox-1-abcdefghijk"]), [])
        self.apply(1, CLOSED)
        self.assert_reach(self.stage.inside[0], shut([*OUTSIDE, *HOST]))

    def test_what_fails_in_one_family_is_put_right_by_whatever_comes_next(self) -> None:
        self.apply(1, CLOSED)
        tables = self.firewall._tables
        self.addCleanup(setattr, self.firewall, "_tables", tables)
        changes = {
            "claim": lambda: self.apply(1, NetworkPolicy(False, ("192.0.2.0/24",))),
            "removal": lambda: self.firewall.remove("sandbox-1-abcdefghijk"),
            "protection": lambda: self.firewall.protect("function", FAR),
        }
        for number, (name, change) in enumerate(changes.items()):
            for flushed in (False, True):
                self.firewall._tables = cast(Tables, FailsInOneFamily(tables))
                self.assertRaises(FirewallError, change)
                self.firewall._tables = tables
                if flushed:
                    for family in ("iptables", "ip6tables"):
                        self.listed("-F", family=family)
                        self.listed("-X", family=family)
                another = NetworkPolicy(False, (f"192.0.2.{2 * number + flushed}/32",))
                self.apply(2, another)
                self.apply(1, CLOSED)
                for inside in self.stage.inside:
                    self.assert_reach(inside, shut([*OUTSIDE, *HOST]))
                self.assertEqual(self.firewall.check(), [], name)
        self.firewall.protect("function", FAR)
        self.assertIn("function", self.dump("iptables").entries("executor-1"))

    def test_the_counters_of_others_go_on_when_a_sandbox_comes_and_goes(self) -> None:
        self.apply(1, CLOSED)
        self.stage.inside[0].reach([ELSEWHERE[0]])
        before = self.listed("-L", node_chain("executor-1"), "-n", "-v", "-x")
        self.apply(2, CLOSED)
        self.firewall.remove("sandbox-2-abcdefghijk")
        self.assertEqual(self.listed("-L", node_chain("executor-1"), "-n", "-v", "-x"), before)

    def test_many_changes_leave_what_is_left_when_all_is_written_anew(self) -> None:
        """Names and addresses are given again, rules change, a change is refused in between."""
        dice = random.Random(7)
        ends = [Endpoint(f"02:42:00:00:01:{n:02x}", {Family.IPV4: f"10.77.0.{100 + n}", Family.IPV6: f"fd77::1:{n}"})
                for n in range(5)]  # fmt: skip
        policies = [None, CLOSED, NetworkPolicy(True, ("203.0.113.0/24",)), NetworkPolicy(False, (), ("10.0.0.0/8",))]
        expected: dict[str, tuple[Endpoint, bool]] = {}
        for step in range(60):
            who, where = f"container-{dice.randrange(7)}", dice.choice(ends)
            if step == 30:
                bad = evolve(where, mac="no mac")
                self.assertRaises(FirewallError, self.firewall.apply, "bad", bad, CLOSED)
                self.firewall.remove("bad")
                continue
            what = dice.choice(("apply", "apply", "protect", "remove"))
            if what == "remove" or (what == "protect") == expected.get(who, (where, what == "protect"))[1]:
                expected.pop(who, None)
                self.firewall.remove(who)
            if what == "remove":
                continue
            for other in [name for name, (taken, _) in expected.items() if taken is where and name != who]:
                del expected[other]
            expected[who] = where, what == "apply"
            if what == "apply":
                self.firewall.apply(who, where, dice.choice(policies))
            else:
                self.firewall.protect(who, where)
        changed = {family: self.dump(family) for family in ("iptables", "ip6tables")}
        self.assertEqual(self.firewall.repairs, 0)
        self.again()
        for family, dump in changed.items():
            anew, mine = self.dump(family), dump.entries("executor-1")
            self.assertEqual(mine, anew.entries("executor-1"))
            self.assertEqual(dump.chains.keys(), anew.chains.keys())
            held = {name: (len(entry.drops), bool(entry.jumps)) for name, entry in mine.items() if entry.drops}
            self.assertEqual(held, {name: (1, sandbox) for name, (_, sandbox) in expected.items()})

    def test_what_others_have_broken_is_repaired(self) -> None:
        def flushed_chain() -> None:
            self.listed("-F", chain)

        def flushed_node() -> None:
            self.listed("-F", node_chain("executor-1"))

        def flushed_all() -> None:
            self.listed("-F")

        def flushed_six() -> None:
            self.listed("-F", family="ip6tables")

        def overtaken() -> None:
            self.listed("-I", "FORWARD", "1", "-j", "ACCEPT", family="ip6tables")

        def loosened() -> None:
            number = len(self.listed("-S", chain).splitlines()) - 1
            self.listed("-R", chain, str(number), "-j", "RETURN")

        def before_docker() -> None:
            self.listed("-I", "FORWARD", "1", "-j", "ACCEPT")

        def unhooked() -> None:
            self.listed("-D", "INPUT", "-j", node_chain("executor-1"))

        chain = self.apply(1, CLOSED)
        self.assertEqual(self.firewall.check(), [])
        for harm in (
            loosened,
            flushed_chain,
            flushed_node,
            flushed_all,
            flushed_six,
            overtaken,
            before_docker,
            unhooked,
        ):
            harm()
            self.assertTrue(self.firewall.check(), harm.__name__)
            self.assertEqual(self.firewall.check(), [], harm.__name__)
            self.assert_reach(self.stage.inside[0], shut([*OUTSIDE, *HOST]))

    def test_a_refusal_of_the_kernel_is_an_error_and_leaves_others_as_they_are(self) -> None:
        self.apply(2, CLOSED)
        bad = Endpoint("no mac", {})
        self.assertRaises(FirewallError, self.firewall.apply, "bad", bad, CLOSED)
        self.assertEqual(self.apply(1, CLOSED), "INDEXIFY-SB-sandbox-1-abcdef")
        self.firewall.remove("bad")
        self.assert_reach(self.stage.inside[0], shut(OUTSIDE))
        self.assert_reach(self.stage.inside[1], shut(OUTSIDE))
        self.assertEqual(self.firewall.stray(), [])

    def test_a_failed_change_keeps_what_was(self) -> None:
        self.apply(1, CLOSED)
        bad = evolve(self.stage.endpoint(1), mac="no mac")
        self.assertRaises(FirewallError, self.firewall.apply, "sandbox-1-abcdefghijk", bad, None)
        self.apply(2, CLOSED)
        self.assert_reach(self.stage.inside[0], shut(OUTSIDE))
        self.apply(1, None)
        self.assert_reach(self.stage.inside[0], free(OUTSIDE))

    def test_an_address_that_is_given_again_belongs_to_the_new_container(self) -> None:
        self.apply(1, CLOSED, id="dead")
        self.apply(1, NetworkPolicy(allow_internet=True), id="new")
        self.assert_reach(self.stage.inside[0], free(OUTSIDE))
        self.firewall.remove("dead")
        self.assert_reach(self.stage.inside[0], {**free(OUTSIDE), **shut(HOST)})

    def test_containers_of_this_node_are_protected(self) -> None:
        self.apply(1, NetworkPolicy(True, self.stage.addresses(2)))
        self.assert_reach(self.stage.inside[0], free(self.stage.addresses(2)))
        self.firewall.protect("function-1", self.stage.endpoint(2))
        self.assert_reach(self.stage.inside[0], shut(self.stage.addresses(2)))
        self.assert_reach(self.stage.inside[1], free(OUTSIDE))
        self.firewall.remove("function-1")
        self.assert_reach(self.stage.inside[0], free(self.stage.addresses(2)))


class NftTests(Rules, TestCase):
    kind = "nft"

    def test_legacy_tables_are_not_made(self) -> None:
        self.assertEqual(find_tables(Namespace(self.stage.host.path)).kind, "nft")
        names = self.stage.host("cat", "/proc/self/net/ip_tables_names")
        self.assertNotIn("filter", names)


class LegacyTests(Rules, TestCase):
    kind = "legacy"

    def test_the_kind_that_docker_uses_is_used(self) -> None:
        self.assertEqual(find_tables(Namespace(self.stage.host.path)).kind, "legacy")


class PlaceTests(TestCase):
    def test_a_bridge_that_is_nowhere_is_named(self) -> None:
        error = self.assertRaises(FirewallError, find_namespace, "ixno0", (None, "/nonexistent"))
        self.assertIn("ixno0", str(error))
        self.assertIn("--network host", str(error))

    def test_another_namespace_is_entered(self) -> None:
        stage = Stage(self)
        self.assertEqual(find_namespace(BRIDGE, (None, stage.host.path)), Namespace(stage.host.path))
        self.assertFalse(Namespace(None).has(BRIDGE))

    def test_a_host_without_docker_s_chains_is_hooked_at_forward(self) -> None:
        stage = Stage(self)
        firewall = Firewall(
            executor_id="e", bridge=BRIDGE, around=Surroundings(SUBNETS),
            locate=lambda bridge: Namespace(stage.host.path),
        )  # fmt: skip
        firewall.open()
        firewall.apply("s", stage.endpoint(1), CLOSED)
        self.assertEqual(stage.inside[0].reach(OUTSIDE), shut(OUTSIDE))
        self.assertIn(f"-A FORWARD -j {node_chain('e')}", stage.host("iptables-nft", "-S"))

    def test_without_the_privilege_the_reason_says_what_is_missing(self) -> None:
        stage = Stage(self)
        code = (
            "from indexify_dataplane.network.firewall import *\n"
            f"f = Firewall(executor_id='e', bridge={BRIDGE!r}, around=Surroundings(),"
            " locate=lambda bridge: Namespace(None))\n"
            "try: f.open()\nexcept FirewallError as e: print(e)\nelse: print('opened')"
        )
        out = stage.host("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--reuid=65534",
                         "--clear-groups", sys.executable, "-c", code)  # fmt: skip
        self.assertIn("NET_ADMIN", out)

    def test_bridged_traffic_must_pass_the_filter(self) -> None:
        stage = Stage(self)
        switch = "net.bridge.bridge-nf-call-iptables"
        stage.host("sysctl", "-q", "-w", f"{switch}=0")
        self.assertEqual(stage.host("sysctl", "-n", switch), "0\n")
        firewall = Firewall(
            executor_id="e", bridge=BRIDGE, around=Surroundings(SUBNETS),
            locate=lambda bridge: Namespace(stage.host.path),
        )  # fmt: skip
        firewall.open()
        self.assertEqual(stage.host("sysctl", "-n", switch), "1\n", "it is switched on")
        self.assertIn(Family.IPV6, find_tables(Namespace(stage.host.path)).programs)
