"""The console script, as a function and as a process."""

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer

import yaml
from twisted.python.usage import Options, UsageError
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane import __version__
from indexify_dataplane.cli import NodeOptions, _parser, main
from indexify_dataplane.config import ConfigError, load
from indexify_dataplane.devserver.__main__ import options as devserver_options


class CommandLineCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)

    def file(self, text: str, name: str = "node.yaml") -> str:
        path = os.path.join(self.directory, name)
        with open(path, "w") as file:
            file.write(text)
        return path

    def run_main(self, *argv: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(list(argv))
            except SystemExit as exit:
                code = int(exit.code or 0)
        return code, out.getvalue(), err.getvalue()


class Usage(CommandLineCase):
    def test_version_and_help(self) -> None:
        for flag in ("-V", "--version"):
            self.assertEqual(self.run_main(flag), (0, f"indexify-dataplane {__version__}\n", ""))
        code, out, err = self.run_main("-h")
        self.assertEqual((code, err), (0, ""))
        for words in ("--config FILE", "--function URI", "--version"):
            self.assertIn(words, out)

    def test_usage_errors_exit_with_2(self) -> None:
        bad: Sequence[Sequence[str]] = (
            ["--nope"], ["-c"], ["--function"], ["-c", "a", "-c", "b"], ["-c", "a", "run", "-c", "b"], ["fly"],
            ["config"], ["config", "fly"], ["ctl"], ["--conf", "x"], ["dev", "--http-port", "x"],
            ["dev", "--grpc-port", "65536"], ["ctl", "state", "--timeout", "0"], ["-c", "\udcff"], ["run", "extra"],
            ["dev", "--queue-size", "0"], ["dev", "--queue-size", "-1"], ["dev", "--queue-size", "1.5"],
            ["dev", "--queue-size", "two"], ["dev", "--queue-size", ""], ["dev", "--queue-size", "9" * 5000],
        )  # fmt: skip
        for argv in bad:
            code, out, err = self.run_main(*argv)
            self.assertEqual((code, out), (2, ""), argv)
            self.assertIn("usage: indexify-dataplane", err, argv)

    def test_the_port_for_clients_has_both_names(self) -> None:
        for flag in ("--http-port", "--rest-port"):
            self.assertEqual(devserver_options([flag, "18900"]).rest_port, 18900)
            self.assertEqual(_parser().parse_args(["dev", flag, "18900"]).http_port, 18900)

    def test_runs_per_slot_are_one_unless_told(self) -> None:
        cases: Sequence[tuple[Sequence[str], int]] = (((), 1), (("--queue-size", "3"), 3))
        for flags, wanted in cases:
            self.assertEqual(devserver_options([*flags]).queue_size, wanted)
            self.assertEqual(_parser().parse_args(["dev", *flags]).queue_size, wanted)
        with contextlib.redirect_stderr(io.StringIO()) as err:
            self.assertRaises(SystemExit, devserver_options, ["--queue-size", "0"])
        self.assertIn("argument --queue-size: '0' is no whole number from 1 to 100", err.getvalue())

    def test_a_broken_configuration_exits_with_1_and_lists_everything(self) -> None:
        path = self.file("http_proxy: {port: x}\nenv: ''")
        for argv in (["-c", path], ["--config=" + path, "run"], ["run", "-c", path], ["dev", "-c", path]):
            code, out, err = self.run_main(*argv)
            self.assertEqual((code, out), (1, ""))
            self.assertEqual(len(err.splitlines()), 2)
            self.assertIn(
                f"Error: http_proxy.port: not a whole number (got 'x'; allowed an integer 0..65535) at {path}:1:20", err
            )
        code, _, err = self.run_main("-c", "/nowhere.yaml")
        self.assertEqual(
            (code, err), (1, "Error: cannot read the configuration file: No such file or directory at /nowhere.yaml\n")
        )
        self.assertEqual(self.run_main("-f", "oops")[0], 1)


class Configuration(CommandLineCase):
    def test_check(self) -> None:
        path = self.file("http_proxy: {prot: 1}")
        code, out, err = self.run_main("config", "check", "-c", path)
        self.assertEqual((code, out), (0, f"{path}: valid\n"))
        self.assertIn("Warning: http_proxy.prot: unknown key, ignored (did you mean http_proxy.port?)", err)
        self.assertEqual(self.run_main("config", "check", "-c", self.file("env: []"))[:2], (1, ""))
        self.assertEqual(self.run_main("config", "check")[1], "the built-in defaults: valid\n")

    def test_flags_before_and_after_the_command(self) -> None:
        path = self.file("env: local")
        code, out, _ = self.run_main("-c", path, "-f", "a:b:c", "config", "show", "-f", "a:b:d:v1")
        self.assertEqual(code, 0)
        self.assertEqual(yaml.safe_load(out)["function_allowlist"], ["a:b:c", "a:b:d:v1"])
        self.assertIn("# --function", out)

    def test_show_can_be_loaded(self) -> None:
        out = self.run_main("config", "show", "-c", self.file("labels: {a: 1.10}"))[1]
        self.assertEqual(load(self.file(out, "shown.yaml"), {}).config.labels, {"a": "1.10"})

    def test_schema(self) -> None:
        code, out, _ = self.run_main("config", "schema")
        self.assertEqual(code, 0)
        self.assertIn("http_proxy", json.loads(out)["properties"])


class _Node(BaseHTTPRequestHandler):
    seen: list[str] = []

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/state" else 404, b'{"containers": []}')

    def do_POST(self) -> None:
        self._answer(
            409 if os.path.exists(f"{os.path.dirname(str(self.server.server_address))}/busy") else 202, b"draining\n"
        )

    def _answer(self, status: int, body: bytes) -> None:
        self.seen.append(self.requestline)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: object) -> None:
        """Tests stay quiet."""


class _UnixServer(HTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "unix", 0


class Control(CommandLineCase):
    def serve(self, path: str) -> None:
        server = _UnixServer(path, _Node)  # type: ignore[arg-type]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        _Node.seen.clear()
        self.addCleanup(server.server_close)
        self.addCleanup(thread.join)
        self.addCleanup(server.shutdown)

    def test_state_and_drain_by_the_state_directory(self) -> None:
        self.serve(os.path.join(self.directory, "ctl.sock"))
        path = self.file(f"state_dir: {self.directory}")
        self.assertEqual(self.run_main("ctl", "state", "-c", path), (0, '{"containers": []}\n', ""))
        self.assertEqual(self.run_main("-c", path, "ctl", "drain"), (0, "draining\n", ""))
        self.assertEqual(_Node.seen, ["GET /state HTTP/1.1", "POST /drain HTTP/1.1"])
        self.file("", "busy")
        self.assertEqual(self.run_main("-c", path, "ctl", "drain"), (1, "", "Error: the node answered 409: draining\n"))

    def test_a_directory_too_deep_for_a_socket_address(self) -> None:
        deep = os.path.join(self.directory, "d" * 120)
        os.mkdir(deep)
        before = os.getcwd()
        os.chdir(deep)
        try:
            self.serve("ctl.sock")
        finally:
            os.chdir(before)
        self.assertEqual(self.run_main("ctl", "state", "--socket", f"{deep}/ctl.sock")[0], 0)

    def test_no_node(self) -> None:
        path = os.path.join(self.directory, "ctl.sock")
        code, out, err = self.run_main("ctl", "state", "--socket", path)
        self.assertEqual((code, out), (1, ""))
        self.assertIn(f"no node runs with the control socket {path}", err)
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(path)
        dead.close()
        self.assertIn("Connection refused", self.run_main("ctl", "state", "--socket", path)[2])

    def test_a_node_that_does_not_answer(self) -> None:
        path = os.path.join(self.directory, "ctl.sock")
        deaf = socket.socket(socket.AF_UNIX)
        self.addCleanup(deaf.close)
        deaf.bind(path)
        deaf.listen()
        code, _, err = self.run_main("ctl", "state", "--socket", path, "--timeout", "0.05")
        self.assertEqual((code, err), (1, f"Error: the node behind {path} did not answer within 0.05 s\n"))


class TwistedOptions(CommandLineCase):
    def test_the_same_flags(self) -> None:
        class Flags(NodeOptions, Options):
            pass

        flags = Flags()
        flags.parseOptions(["-c", self.file("env: local"), "-f", "a:b:c", "--function", "a:b:d"])
        self.assertEqual(flags.load({}).config.function_allowlist, ("a:b:c", "a:b:d"))
        self.assertRaises(UsageError, Flags().parseOptions, ["-c", "a", "--config", "b"])
        self.assertRaises(UsageError, Flags().parseOptions, ["extra"])
        flags = Flags()
        flags.parseOptions(["--function", "oops"])
        self.assertRaises(ConfigError, flags.load, {})
        self.assertIn("--config=", str(Flags()))


class Process(SynchronousTestCase):
    def test_asking_for_the_version_imports_nothing_heavy(self) -> None:
        script = (
            "import sys\nfrom indexify_dataplane.cli import main\n"
            "try: main(['--version'])\nexcept SystemExit: pass\n"
            "heavy = ('twisted', 'yaml', 'attr', 'grpc', 'asyncio', 'http', 'json')\n"
            "print(*(name for name in heavy if name in sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
        self.assertEqual(done.stdout, f"indexify-dataplane {__version__}\n\n")

    def test_reading_a_configuration_imports_neither_twisted_nor_grpc(self) -> None:
        script = (
            "import sys\nfrom indexify_dataplane.cli import main\nmain(['config', 'check'])\n"
            "print(*(name for name in ('twisted', 'grpc', 'docker', 'ssl') if name in sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
        self.assertEqual(done.stdout.splitlines()[1:], [""])

    def test_a_reader_that_has_gone_is_no_traceback(self) -> None:
        script = "import sys; from indexify_dataplane.cli import main; sys.exit(main(['config', 'schema']))"
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=30
        )
        os.close(writer)
        self.assertEqual((done.returncode, done.stderr), (1, ""))
