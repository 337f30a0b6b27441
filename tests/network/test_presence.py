"""Names of nodes: one holder each, gone with the process, borrowed from the dead."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid

from twisted.trial.unittest import TestCase

from indexify_dataplane.network import presence
from indexify_dataplane.network.chains import node_chain
from indexify_dataplane.network.tables import FirewallError, Namespace

HERE = Namespace()


class Tests(TestCase):
    def setUp(self) -> None:
        self.name = node_chain(uuid.uuid4().hex)

    def test_one_holder_at_a_time(self) -> None:
        held = presence.hold(HERE, self.name)
        assert held is not None
        with held:
            self.assertIsNone(presence.hold(HERE, self.name))
            self.assertEqual(presence.present(HERE, [self.name, "INDEXIFY-0"]), {self.name})
            with presence.borrowed(HERE, [self.name]) as dead:
                self.assertEqual(dead, set())
        self.assertEqual(presence.present(HERE, [self.name]), set())

    def test_a_killed_process_leaves_no_name(self) -> None:
        code = (
            "from indexify_dataplane.network.presence import *\n"
            f"held = hold(Namespace(), {self.name!r})\nprint(held is not None, flush=True)\ninput()"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline(), b"True\n")
        self.assertIsNone(presence.hold(HERE, self.name))
        process.kill()
        process.communicate()
        again = presence.hold(HERE, self.name)
        assert again is not None
        again.close()

    def test_a_start_waits_for_who_cleans_up(self) -> None:
        borrowed, finish, order = threading.Event(), threading.Event(), []

        def clean() -> None:
            with presence.borrowed(HERE, [self.name]) as dead:
                borrowed.set()
                finish.wait(30)
                order.append(f"cleaned {len(dead)}")

        def start() -> None:
            with presence.take(HERE, self.name, "e"):
                order.append("started")

        threads = [threading.Thread(target=clean), threading.Thread(target=start)]
        threads[0].start()
        self.assertTrue(borrowed.wait(30))
        threads[1].start()
        self.assertIsNone(presence.hold(HERE, self.name))
        finish.set()
        for thread in threads:
            thread.join(30)
        self.assertEqual(order, ["cleaned 1", "started"])

    def test_a_namespace_that_cannot_be_entered_is_named(self) -> None:
        error = self.assertRaises(FirewallError, presence.hold, Namespace("/nonexistent/net"), self.name)
        self.assertIn("/nonexistent/net", str(error))
        error = self.assertRaises(FirewallError, presence.hold, Namespace("/dev/null"), self.name)
        self.assertIn("/dev/null cannot be entered", str(error))
