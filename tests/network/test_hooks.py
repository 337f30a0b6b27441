"""What nftables itself says of a chain's first rules, in a namespace that the tests make."""

from __future__ import annotations

import errno
import socket
import threading
import unittest
from typing import Any, cast
from unittest import TestCase

from indexify_dataplane.network.hooks import Hooks
from indexify_dataplane.network.policy import Family
from indexify_dataplane.network.tables import FirewallError, Namespace

from .stage import Stage

NODE = "INDEXIFY-0123456789"
MADE = f":INPUT - [0:0]\n:FORWARD - [0:0]\n:{NODE} - [0:0]\n:INDEXIFY-9876543210 - [0:0]\n"
DOCKER = f":DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -j {NODE}\n-A DOCKER-USER -j RETURN\n"


class TheFirstRule(TestCase):
    def setUp(self) -> None:
        self.host = Stage(self, containers=0).host
        self.hooks = Hooks(Namespace(self.host.path))
        self.addCleanup(self.hooks.close)

    def put(self, rules: str, family: str = "iptables") -> None:
        self.host(f"{family}-nft-restore", text=f"*filter\n{MADE}{rules}COMMIT\n")

    def leads(self, *chains: str, family: Family = Family.IPV4) -> bool:
        return self.hooks.lead({family: chains}, NODE)

    def test_it_counts_whatever_comes_after_it(self) -> None:
        self.put(f"-A INPUT -j {NODE}\n-A INPUT -j ACCEPT\n-A INPUT -s 10.0.0.1 -j DROP\n")
        self.assertTrue(self.leads("INPUT"))

    def test_it_counts_after_chains_of_other_nodes(self) -> None:
        self.put(f"-A INPUT -j INDEXIFY-9876543210\n-A INPUT -s 10.0.0.1 -j INDEXIFY-9876543210\n-A INPUT -j {NODE}\n")
        self.assertTrue(self.leads("INPUT"))

    def test_anything_else_before_it_is_seen(self) -> None:
        for first in (
            "-j ACCEPT", "-s 10.0.0.1 -j ACCEPT", "-p tcp --dport 22 -j RETURN", "-j LOG", "-s 10.0.0.1",
            "-m comment --comment INDEXIFY-x -j ACCEPT", "-j MARK --set-mark 1",
        ):  # fmt: skip
            self.put(f"-A INPUT {first}\n-A INPUT -j {NODE}\n")
            self.assertFalse(self.leads("INPUT"), first)

    def test_what_is_not_always_so_does_not_count(self) -> None:
        for condition in (
            "-s 10.0.0.1",
            "-i lo",
            "-p udp",
            "-m conntrack --ctstate NEW",
            "-m statistic --mode nth --every 2 --packet 0",
        ):
            self.put(f"-A INPUT {condition} -j {NODE}\n-A INPUT -j ACCEPT\n")
            self.assertFalse(self.leads("INPUT"), condition)
        self.put(f"-A INPUT -g {NODE}\n")
        self.assertFalse(self.leads("INPUT"), "a goto does not come back to other nodes' chains")

    def test_nothing_there(self) -> None:
        self.assertFalse(self.leads("INPUT"), "no table")
        self.put("")
        self.assertFalse(self.leads("INPUT"), "no rule")
        self.assertFalse(self.leads("DOCKER-USER"), "no chain")

    def test_a_chain_that_is_asked_by_nobody_is_no_place(self) -> None:
        self.put(DOCKER)
        self.assertTrue(self.leads("DOCKER-USER"))
        self.host("iptables-nft", "-I", "FORWARD", "1", "-i", "br-guests", "-j", "ACCEPT")
        self.assertFalse(self.leads("DOCKER-USER"))

    def test_families_are_told_apart(self) -> None:
        self.put(f"-A INPUT -j {NODE}\n")
        self.put("-A INPUT -j ACCEPT\n", "ip6tables")
        self.assertTrue(self.leads("INPUT"))
        self.assertFalse(self.leads("INPUT", family=Family.IPV6))
        self.put(f"-A INPUT -j {NODE}\n", "ip6tables")
        self.assertTrue(self.hooks.lead({family: ("INPUT",) for family in Family}, NODE))
        self.put("", "ip6tables")
        self.assertFalse(self.hooks.lead({family: ("INPUT",) for family in Family}, NODE))

    def test_a_long_chain_is_read_to_its_end_and_the_next_question_is_answered(self) -> None:
        many = "".join(f"-A INPUT -s 10.{n >> 8}.{n & 255}.1 -j ACCEPT\n" for n in range(3000))
        self.put(f"-A INPUT -j {NODE}\n{many}")
        for _ in range(3):
            self.assertTrue(self.leads("INPUT"))
        self.put(f"{many}-A INPUT -j {NODE}\n")
        self.assertFalse(self.leads("INPUT"))

    def test_while_others_change_the_rules(self) -> None:
        self.put(f"-A INPUT -j {NODE}\n" + "-A INPUT -j ACCEPT\n" * 300)
        done = threading.Event()
        self.addCleanup(done.set)

        def change() -> None:
            while not done.is_set():
                self.host(
                    "iptables-nft-restore", "--noflush", text="*filter\n-A INPUT -j DROP\n-D INPUT -j DROP\nCOMMIT\n"
                )

        other = threading.Thread(target=change)
        other.start()
        try:
            self.assertEqual([self.leads("INPUT") for _ in range(200)], [True] * 200)
        finally:
            done.set()
            other.join()

    def test_after_a_question_that_failed_the_next_is_answered(self) -> None:
        many = "".join(f"-A INPUT -s 10.{n >> 8}.{n & 255}.1 -j ACCEPT\n" for n in range(4000))
        self.put(f"-A INPUT -j {NODE}\n{many}")
        asked = self.hooks._socket
        assert asked is not None

        class GivesUp:
            """As when the kernel tells more than the socket holds, after the first part of the answer."""

            def __getattr__(self, name: str) -> Any:
                return getattr(asked, name)

            def recv(self, size: int) -> bytes:
                asked.recv(size)
                raise OSError(errno.ENOBUFS, "No buffer space available")

        self.hooks._socket = cast(socket.socket, GivesUp())
        with self.assertRaisesRegex(FirewallError, "INPUT cannot be read from the kernel.*No buffer space"):
            self.leads("INPUT")
        self.assertTrue(self.leads("INPUT"))

    def test_an_answer_that_was_interrupted_is_asked_for_again(self) -> None:
        self.put(f"-A INPUT -j {NODE}\n")
        asked = self.hooks._socket
        assert asked is not None
        left = [2]

        class Interrupted:
            """The kernel says that the rules were changed while it told them."""

            def __getattr__(self, name: str) -> Any:
                return getattr(asked, name)

            def recv(self, size: int) -> bytes:
                data = bytearray(asked.recv(size))
                if left[0]:
                    left[0] -= 1
                    data[6] |= 0x10
                    data[16:] = bytes(len(data) - 16)
                return bytes(data)

        self.hooks._socket = cast(socket.socket, Interrupted())
        self.assertTrue(self.leads("INPUT"))
        left[0] = 1000
        with self.assertRaisesRegex(FirewallError, "others change them all the time"):
            self.leads("INPUT")

    def test_a_closed_one_opens_again(self) -> None:
        self.put(f"-A INPUT -j {NODE}\n")
        self.hooks.close()
        self.hooks.close()
        self.assertTrue(self.leads("INPUT"))


if __name__ == "__main__":
    unittest.main()
