"""The daemon as PID 1, from the bundle, in every kind of image and with both runtimes."""

from __future__ import annotations

import signal
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.guestbundle import MOUNT_POINT
from tests.contracts.daemon_container import ContainerDaemons
from tests.contracts.daemon_wire import Api
from tests.engine import Engine, require

from .containers import Guest, guest, until
from .sources import real_daemon
from .test_relocation import HOSTILE

# Forks twice, so that the grandchild loses its parent and ends as a child of PID 1, then ends with a code of its own.
ORPHAN = """
import os, sys
read, write = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.read(read, 1)
        os._exit(9)
    os._exit(8)
os.wait()
os.write(write, b"x")
os._exit(7)
"""
PROCESSES = """
import glob
for path in glob.glob("/proc/[0-9]*/stat"):
    try:
        print(open(path).read().rpartition(")")[2].split()[0], path)
    except OSError:
        print("gone", path)
"""
# As the kernel was given it: the interpreter may set LC_CTYPE for itself.
ENVIRONMENT = "print(open('/proc/self/environ').read().replace(chr(0), chr(10)))"


class Images(SynchronousTestCase):
    def setUp(self) -> None:
        self.engine: Engine = require(self)
        self.bundle = real_daemon()

    def started(self, image: str, *changes: str, **wanted: Any) -> Guest:
        return guest(self, self.engine, self.bundle, self.engine.image(image, *changes), **wanted)

    def assert_works(self, guest: Guest) -> None:
        """Runs a child with a clean environment, reaps what is not its own, and ends with 0 when asked to."""
        info, lines = guest.python(ENVIRONMENT)
        self.assertEqual((info["status"], info["exit_code"]), ("exited", 0), lines)
        foreign = [line for line in lines if line.startswith(("LD_", "LC_", "GLIBC", "INDEXIFY_ORIGINAL_"))]
        self.assertEqual(foreign, [])
        self.assertTrue([line for line in lines if line.startswith("PATH=")])
        for _ in range(3):
            self.assertEqual(guest.python(ORPHAN)[0]["exit_code"], 7)
        until(lambda: not self.zombies(guest), "orphans are reaped")
        self.assertEqual(guest.request("GET", "/api/v1/health")[0], 200)
        self.assertEqual(guest.stop(), 0, guest.logs())

    def zombies(self, guest: Guest) -> list[str]:
        return [line for line in guest.python(PROCESSES)[1] if line.startswith("Z")]

    def test_from_scratch(self) -> None:
        self.assert_works(self.started("empty"))

    def test_from_scratch_on_a_read_only_root_as_another_user(self) -> None:
        self.assert_works(self.started("empty", user="12345:12345", read_only=True))

    def test_user_of_the_image(self) -> None:
        guest = self.started("busybox", "USER 4321")
        self.assertEqual(guest.run("/bin/id", "-u")[1], ["4321"])
        self.assert_works(guest)

    def test_musl(self) -> None:
        guest = self.started("musl", "ENV LD_LIBRARY_PATH=/opt/lib", "ENV PATH=/bin")
        info, lines = guest.run("print-environment")
        self.assertEqual(info["exit_code"], 0, lines)
        self.assertIn("LD_LIBRARY_PATH=/opt/lib", lines)
        self.assertFalse([line for line in lines if line.startswith(("LC_", "INDEXIFY_ORIGINAL_", "PYTHON"))])
        self.assert_works(self.started("musl"))

    def test_debian(self) -> None:
        guest = self.started("debian", read_only=True)
        info, lines = guest.run("/usr/bin/python3", "-c", "import ssl, sys; print(sys.prefix)")
        self.assertEqual((info["exit_code"], lines), (0, ["/usr"]))
        self.assert_works(guest)

    def test_hostile_image(self) -> None:
        changes = [f'ENV {name}="{value}"' for name, value in HOSTILE.items()]
        guest = self.started("busybox", *changes, environment={"SECRET": "a=b c"})
        lines = guest.run("/bin/env")[1]
        found = dict(line.split("=", 1) for line in lines)
        self.assertLessEqual({**HOSTILE, "SECRET": "a=b c"}.items(), found.items())
        self.assertEqual([name for name in found if name.startswith("INDEXIFY_ORIGINAL_")], [])
        self.assertEqual(guest.stop(), 0, guest.logs())

    def test_entrypoint_is_started_without_a_shell(self) -> None:
        entrypoint = ["/bin/sh", "-c", 'echo "$0|$1"; exec sleep 1000', "a b", "*"]
        guest = self.started("busybox", entrypoint=entrypoint)
        (process,) = guest.request("GET", "/api/v1/processes")[1]["processes"]
        self.assertEqual([process["command"], *process["args"]], entrypoint)
        path = f"/api/v1/processes/{process['pid']}/stdout"
        self.assertEqual(until(lambda: guest.request("GET", path)[1]["lines"], "output of the entrypoint"), ["a b|*"])

    def test_gvisor(self) -> None:
        self.assert_works(self.started("empty", runtime="runsc"))

    def test_gvisor_musl(self) -> None:
        guest = self.started("musl", runtime="runsc", read_only=True)
        self.assertEqual(guest.run("/bin/print-environment")[0]["exit_code"], 0)
        self.assert_works(guest)

    def test_from_a_volume_where_the_engine_sees_another_file_system(self) -> None:
        api = self.engine.client.api
        volume = f"ixbundle-{self.bundle.digest[:12]}"
        api.create_volume(volume)
        self.addCleanup(api.remove_volume, volume, force=True)
        loader = api.create_container(
            self.engine.image("empty"), command=["never-started"],
            host_config=api.create_host_config(binds=[f"{volume}:{MOUNT_POINT}"]),
        )  # fmt: skip
        self.addCleanup(api.remove_container, loader, force=True)
        self.assertTrue(api.put_archive(loader, "/", self.bundle.as_tar(MOUNT_POINT)))
        self.assert_works(self.started("empty", bind=volume))

    def test_the_contract_suites_daemons_start_and_stop_in_a_container(self) -> None:
        daemons = ContainerDaemons(self.engine, self.bundle, "busybox", user="1234:1234", read_only=True)
        self.addCleanup(daemons.stop_all)
        daemon = daemons.start("--", "/bin/sleep", "1000", env={"A": "b"}, token="a secret")
        self.assertEqual(Api(daemon.http).call("GET", "/processes").status, 401)
        listed = Api(daemon.http, {"x-indexify-sandbox-token": "a secret"}).call("GET", "/processes")
        self.assertEqual([process["command"] for process in listed.json["processes"]], ["/bin/sleep"])
        daemon.signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)
