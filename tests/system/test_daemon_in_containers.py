"""The daemon's contract in containers: every kind of image, user and root file system, and both runtimes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.contracts.daemon_container import ContainerDaemons
from tests.contracts.daemon_files import DaemonFiles
from tests.contracts.daemon_output import DaemonOutput
from tests.contracts.daemon_processes import DaemonProcesses
from tests.contracts.daemon_pty import DaemonPty, DaemonTunnels
from tests.contracts.daemon_wire import Api, eventually
from tests.engine import require
from tests.guestbundle.sources import real_daemon

SUITES = (DaemonProcesses, DaemonOutput, DaemonFiles, DaemonPty, DaemonTunnels)
PLACES: dict[str, dict[str, Any]] = {
    "Scratch": {"image": "busybox"},  # nothing but one static program
    "Musl": {"image": "musl"},
    "Debian": {"image": "debian"},
    "OtherUser": {"image": "debian", "user": "1234:1234"},
    "ReadOnlyRoot": {"image": "busybox", "read_only": True},
    "Gvisor": {"image": "busybox", "runtime": "runsc"},
}


def place(**options: Any) -> Callable[[], ContainerDaemons]:
    return lambda: ContainerDaemons(require(SynchronousTestCase()), real_daemon(), **options)


# Of busybox, not of the daemon: its shell redraws a line in a terminal of one column, and its seq writes line by line.
NOT_WITH_BUSYBOX = ("test_typing_resize_and_job_control", "test_silent_viewer_does_not_freeze_the_others")

# The test asks the kernel for the function that a process sleeps in; gVisor does not tell.
NOT_WITH_GVISOR = ("test_run_loses_nothing_to_a_slow_client",)

for _name, _options in PLACES.items():
    for _suite in SUITES:
        _members: dict[str, Any] = {"place_type": staticmethod(place(**_options)), "__module__": __name__}
        _left_out = NOT_WITH_BUSYBOX if _options["image"] != "debian" else ()
        _left_out += NOT_WITH_GVISOR if "runtime" in _options else ()
        _members |= {name: None for name in _left_out if hasattr(_suite, name)}
        _class = type(_name + _suite.__name__, (_suite, SynchronousTestCase), _members)
        globals()[_class.__name__] = _class


_SMALL = "import time; x = bytearray(6 << 20); time.sleep(60)"


class MemoryLimit(SynchronousTestCase):
    """The container's own limit, as the daemon sees it from inside."""

    def test_kills_for_want_of_memory_are_told_apart(self) -> None:
        place = ContainerDaemons(require(self), real_daemon(), "busybox", mem_limit="96m", memswap_limit="96m")
        self.addCleanup(place.stop_all)
        api = Api(place.start().http)
        for _ in range(2):
            _, end = api.output("python3", "-c", "x = bytearray(512 << 20)")
            self.assertEqual(end, {"signal": 9, "oom_killed": True, "reason": "oom_killed"})
        _, end = api.output("sh", "-c", "kill -9 $$")
        self.assertEqual(end, {"signal": 9, "oom_killed": False, "reason": "signaled"})
        self.assertEqual(api.output("echo", "still here")[0], ["still here"])

    def test_the_daemon_outlives_many_small_processes_that_use_all_memory(self) -> None:
        """Each of them is smaller than the daemon, which the kernel would otherwise take."""
        place = ContainerDaemons(require(self), real_daemon(), "busybox", mem_limit="96m", memswap_limit="96m")
        self.addCleanup(place.stop_all)
        api = Api(place.start().http)
        pids = [api.start("python3", "-c", _SMALL)["pid"] for _ in range(20)]
        eventually(lambda: any(api.get(pid)["status"] == "oom_killed" for pid in pids), "one of them to be killed")
        for pid in pids:
            api.call("DELETE", f"/processes/{pid}")
        self.assertEqual(api.output("echo", "still here")[0], ["still here"])
