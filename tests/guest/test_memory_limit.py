"""A kill for want of memory is told from any other SIGKILL, in a real cgroup."""

import os
import uuid

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from indexify_dataplane.guest.oom import counter_path
from tests.contracts.daemon_child import ChildDaemons
from tests.contracts.daemon_wire import Api

LIMIT = 96 << 20
HOG = "import time\nx = bytearray(512 << 20)\ntime.sleep(60)"


def memory_cgroup() -> str:
    """A new cgroup below this process's own, limited; raises SkipTest where none can be made."""
    counter = counter_path()
    if counter is None:
        raise SkipTest("this machine counts no memory kills")
    folder = os.path.join(os.path.dirname(counter), f"test-{uuid.uuid4().hex[:12]}")
    name = "memory.max" if counter.endswith("memory.events") else "memory.limit_in_bytes"
    try:
        os.mkdir(folder)
    except OSError as error:
        raise SkipTest(f"no cgroup can be made: {error}") from error
    try:
        with open(os.path.join(folder, name), "w") as file:
            file.write(str(LIMIT))
    except OSError as error:
        os.rmdir(folder)
        raise SkipTest(f"no memory limit can be set: {error}") from error
    return folder


class MemoryLimit(SynchronousTestCase):
    def setUp(self) -> None:
        folder = memory_cgroup()
        self.addCleanup(os.rmdir, folder)
        self.place = ChildDaemons()
        self.addCleanup(self.place.stop_all)
        self.place.wrapper = ("sh", "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', "sh")
        self.api = Api(self.place.start().http)

    def test_kills_are_told_apart(self) -> None:
        _, end = self.api.output("python3", "-c", HOG)
        self.assertEqual(end, {"signal": 9, "oom_killed": True, "reason": "oom_killed"})
        pid = self.api.start("python3", "-c", HOG)["pid"]
        info = self.api.ended(pid)
        self.assertEqual((info["status"], info["signal"], info["oom_killed"]), ("oom_killed", 9, True))
        _, end = self.api.output("sh", "-c", "kill -9 $$")
        self.assertEqual(end, {"signal": 9, "oom_killed": False, "reason": "signaled"})
        _, end = self.api.output("sh", "-c", "python3 -c 'x = bytearray(512 << 20)'; exit $?")
        self.assertEqual(end, {"exit_code": 137, "oom_killed": True, "reason": "oom_killed"})
        _, end = self.api.output("sh", "-c", "exit 137")
        self.assertEqual(end, {"exit_code": 137, "oom_killed": False, "reason": "exited"})
