"""What goes of a dead node and what stays, as one family's table tells it; and how ``iptables-save`` is read."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.network.chains import Dump, containers_chain, fingerprint, line, node_chain
from indexify_dataplane.network.graves import addresses, holding, nodes, transaction, without

NODE, OTHER = node_chain("dead"), node_chain("other")


def jump(node: str, who: str, chain: str) -> str:
    return f'-A {node} -s 10.0.0.2/32 -m comment --comment "{who} 0123" -j INDEXIFY-SB-{chain}'


def drop(node: str, who: str, address: str = "10.0.0.2/32") -> str:
    return f'-A {node}-C -d {address} -m comment --comment "{who} 0123" -j DROP'


def table(*rules: str, chains: tuple[str, ...] = (NODE,), sandboxes: tuple[str, ...] = ("a", "b")) -> Dump:
    return Dump.parse(
        "\n".join(
            [
                ":INPUT ACCEPT [1:2]",
                ":DOCKER-USER - [0:0]",
                *(f":{name} - [0:0]" for each in chains for name in (each, f"{each}-C")),
                *(f":INDEXIFY-SB-{each} - [0:0]" for each in sandboxes),
                *(f"-A {hook} -j {each}" for each in chains for hook in ("INPUT", "DOCKER-USER")),
                "-A DOCKER-USER -j RETURN",
                *(f"-A INDEXIFY-SB-{each} -j {chains[0]}-C" for each in sandboxes),
                *rules,
            ]
        )
    )


class Tests(SynchronousTestCase):
    def test_the_last_rule_takes_all_with_it(self) -> None:
        before = table(jump(NODE, "one", "a"), drop(NODE, "one"), jump(NODE, "two", "b"), drop(NODE, "two"))
        self.assertEqual(holding(before, NODE), {"one", "two"})
        left = without(before, [NODE], {"one", "two"})
        self.assertEqual(left.chains, {"INPUT": (), "DOCKER-USER": (("-j", "RETURN"),)})
        self.assertEqual(nodes(left), set())
        text = transaction(before, left)
        assert text is not None
        for expected in (f"-D INPUT -j {NODE}", f"-D DOCKER-USER -j {NODE}", f"-X {NODE}", f"-X {NODE}-C"):
            self.assertIn(f"{expected}\n", text)
        self.assertNotIn("RETURN", text)

    def test_a_rule_that_stays_keeps_its_chains(self) -> None:
        before = table(jump(NODE, "one", "a"), drop(NODE, "one"), jump(NODE, "two", "b"), drop(NODE, "two"))
        left = without(before, [NODE], {"one"})
        self.assertEqual(holding(left, NODE), {"two"})
        self.assertEqual(left.chains["INPUT"], (("-j", NODE),))
        self.assertNotIn("INDEXIFY-SB-a", left.chains)
        self.assertIn("INDEXIFY-SB-b", left.chains)
        self.assertIsNone(transaction(before, without(before, [NODE], ())))

    def test_a_rule_of_nobody_stays(self) -> None:
        before = table(f"-A {NODE} -j LOG", sandboxes=())
        self.assertEqual(without(before, [NODE], ()), before)

    def test_what_is_used_elsewhere_stays(self) -> None:
        before = table(jump(NODE, "one", "a"), jump(OTHER, "x", "a"), chains=(NODE, OTHER), sandboxes=("a",))
        self.assertEqual(without(before, [NODE], {"one"}).chains, before.chains, "the kernel would refuse it")

    def test_others_are_not_touched(self) -> None:
        before = table(drop(NODE, "one"), drop(OTHER, "one", "10.9.0.1/32"), chains=(NODE, OTHER), sandboxes=())
        left = without(before, [NODE], {"one"})
        self.assertEqual(nodes(left), {OTHER})
        self.assertEqual(list(addresses(left, OTHER)), [("one", "10.9.0.1/32")])
        self.assertEqual(containers_chain("other"), f"{OTHER}-C")


class Reading(SynchronousTestCase):
    def test_words_are_read_and_written_alike(self) -> None:
        for text in ("it's", 'say "no"', "back\\slash", "two words", "", "plain"):
            written = line("-A", "INPUT", ("-m", "comment", "--comment", text, "-j", "DROP"))
            if text:
                self.assertEqual(Dump.parse(written).chains["INPUT"][0][3], text)

    def test_counters_and_dates_make_no_difference(self) -> None:
        one = "# Generated on Monday\n*filter\n:INPUT ACCEPT [1:2]\n-A INPUT -j X\nCOMMIT\n"
        two = one.replace("Monday", "Tuesday").replace("[1:2]", "[3:4]")
        self.assertEqual(fingerprint(one), fingerprint(two))
        self.assertNotEqual(fingerprint(one), fingerprint(one.replace("-j X", "-j Y")))
        self.assertNotEqual(fingerprint(one), fingerprint(one.replace("ACCEPT", "DROP")))
