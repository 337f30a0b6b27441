"""How the daemon starts and fails to start as a child, and what it costs to have one."""

import os
import pathlib
import socket
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.wireproto import container_daemon_pb2 as pb
from tests.contracts.daemon_child import GUEST, ChildDaemons
from tests.contracts.daemon_life import stub
from tests.contracts.daemon_wire import DEADLINE, Api

ALLOWED_PACKAGES = {"h11", "h2", "hpack", "hyperframe", "wsproto"}
LARGEST_RESIDENT = 24 << 20
"""At rest, in this interpreter with its site directory; 20 MB were measured. The bundle's own figure is a benchmark."""


class Start(SynchronousTestCase):
    def setUp(self) -> None:
        self.place = ChildDaemons()
        self.addCleanup(self.place.stop_all)

    def errors(self, number: int) -> str:
        return pathlib.Path(self.place.scratch, f"err{number}").read_text()

    def test_exit_codes(self) -> None:
        for number, (arguments, code, words) in enumerate(
            (
                (["--nonsense"], 2, "unexpected argument '--nonsense'"),
                (["--image-user=no-such-user"], 1, "Unknown user 'no-such-user'"),
                (["--port-file=/no/such/dir/ports", "--port=0", "--http-port=0"], 1, "/no/such/dir/ports"),
                (["--help"], 0, ""),
            )
        ):
            self.assertEqual(self.place.exit_code(*arguments), code, arguments)
            self.assertIn(words, self.errors(number))
            self.assertLessEqual(self.errors(number).count("\n"), 1, "one line")

    def test_taken_ports(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            for number, flags in enumerate((("--port", "--http-port"), ("--http-port", "--port"))):
                code = self.place.exit_code(f"{flags[0]}={port}", f"{flags[1]}=0", "--address=127.0.0.1", "--", "true")
                self.assertEqual(code, 1)
                self.assertRegex(self.errors(number), rf"^[^\n]*cannot listen on 127.0.0.1:{port} [^\n]*in use\n$")

    def test_as_a_module(self) -> None:
        run = subprocess.run([sys.executable, "-m", "indexify_dataplane.guest", "--help"], capture_output=True)
        self.assertEqual((run.returncode, run.stdout[:31]), (0, b"usage: indexify-container-daemo"))

    def test_the_ports_are_taken_before_what_takes_time_is_imported(self) -> None:
        script = (
            "import sys, types; package = types.ModuleType('indexify_guest')\n"
            f"package.__path__ = [{str(GUEST.parent)!r}]\n"
            "sys.modules['indexify_guest'] = package\n"
            "import indexify_guest.entry\n"
            "print('\\n'.join(sys.modules))"
        )
        run = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
        self.assertIn("indexify_guest.ports", run.stdout.split())
        heavy = {"asyncio", "collections", "dataclasses", "enum", "functools", "re", "socket", "typing"}
        self.assertEqual(set(run.stdout.split()) & heavy, set())

    def test_nothing_heavy_and_nothing_of_ours_is_imported(self) -> None:
        script = (
            "import runpy, sys; sys.argv = ['x', '--help']\n"
            f"try: runpy.run_path({str(GUEST)!r}, run_name='__main__')\n"
            "except SystemExit: pass\n"
            "import indexify_guest.daemon\n"
            "print('\\n'.join(name for name, module in sys.modules.items() if module is not None), file=sys.stderr)"
        )
        run = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
        plain = subprocess.run(
            [sys.executable, "-I", "-c", "import sys; print('\\n'.join(sys.modules))"], capture_output=True, text=True
        )
        names = set(run.stderr.split()) - set(plain.stdout.split())
        packages = {name.partition(".")[0] for name in names}
        foreign = packages - sys.stdlib_module_names - ALLOWED_PACKAGES - {"indexify_guest"}
        self.assertEqual(foreign, set())
        self.assertEqual(
            packages & {"ssl", "_ssl", "_hashlib", "wsproto", "argparse", "http", "email", "urllib"}, set()
        )

    def test_resident_memory_at_rest(self) -> None:
        daemon = self.place.start()
        self.assertTrue(stub(daemon).Health(pb.HealthRequest(), timeout=DEADLINE).healthy)
        self.assertEqual(Api(daemon.http).call("GET", "/health").status, 200)
        pages = int(pathlib.Path(f"/proc/{daemon.pid}/statm").read_text().split()[1])
        self.assertLess(pages * os.sysconf("SC_PAGESIZE"), LARGEST_RESIDENT)
        self.assertEqual(pathlib.Path(f"/proc/{daemon.pid}/comm").read_text(), "indexify-daemon\n")

    def test_a_thousand_ended_processes_are_kept_and_no_more(self) -> None:
        daemon = self.place.start()
        api = Api(daemon.http)
        connection = api.connect()
        first = api.start("true")["pid"]
        for _ in range(1010):
            answer = api.call_on(connection, "POST", "/processes/run", {"command": "true"})
            self.assertIn(b'"exit_code":0', answer.body)
        connection.close()
        self.assertEqual(len(api.call("GET", "/processes").json["processes"]), 1000)
        self.assertEqual(api.call("GET", f"/processes/{first}").status, 404)
        descriptors = os.listdir(f"/proc/{daemon.pid}/fd")
        self.assertLess(len(descriptors), 20, "every pipe of an ended process is closed")
