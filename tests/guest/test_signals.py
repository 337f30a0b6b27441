"""What the daemon was started with must not reach the programs of the sandbox."""

from __future__ import annotations

import signal
import sys

from twisted.trial.unittest import SynchronousTestCase

from tests.contracts.daemon_child import ChildDaemons
from tests.contracts.daemon_wire import Api

_DEAF = """
import os, signal, sys
for number in map(signal.Signals, (1, 2, 3, 10)):
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR2))
os.execvp(sys.argv[1], sys.argv[1:])
"""


class DeafDaemons(ChildDaemons):
    """Started as nohup or a shell's background job leaves it, and with blocked signals on top."""

    wrapper = (sys.executable, "-c", _DEAF)


class InheritedSignals(SynchronousTestCase):
    def setUp(self) -> None:
        place = DeafDaemons()
        self.addCleanup(place.stop_all)
        self.daemon = place.start()

    def test_children_ignore_and_block_nothing(self) -> None:
        lines, _ = Api(self.daemon.http).output("grep", "^Sig[BI]", "/proc/self/status")
        self.assertEqual([line.split()[1] for line in lines], ["0" * 16] * 2, lines)

    def test_the_daemon_stays_deaf_to_what_was_ignored(self) -> None:
        api = Api(self.daemon.http)
        for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
            self.daemon.signal(number)
        self.assertEqual(api.output("echo", "alive")[0], ["alive"])
        self.daemon.signal(signal.SIGTERM)
        self.assertEqual(self.daemon.wait(), 0)
