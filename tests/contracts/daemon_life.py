"""The daemon's own life: command line, token, held start, entrypoint, shutdown, orphans, memory limits."""

from __future__ import annotations

import json
import signal
import time

import grpc

from indexify_dataplane.wireproto import container_daemon_pb2 as pb
from indexify_dataplane.wireproto.container_daemon_pb2_grpc import ContainerDaemonStub

from .daemon import DaemonContract
from .daemon_wire import DEADLINE, Api, RunningDaemon, SocketClosed, WebSocket, eventually

TOKEN = "t0ken-äöü"


def stub(daemon: RunningDaemon) -> ContainerDaemonStub:
    return ContainerDaemonStub(grpc.insecure_channel(":".join(map(str, daemon.grpc))))


class DaemonLife(DaemonContract):
    def test_token(self) -> None:
        daemon = self.place.start(token="secret-token")
        api = Api(daemon.http)
        for headers in ({}, {"x-indexify-sandbox-token": "wrong"}, {"x-indexify-sandbox-token": "secret-token2"}):
            for method, path in (("GET", "/info"), ("POST", "/processes"), ("OPTIONS", "/processes"), ("GET", "/x"),
                                 ("POST", "/health"), ("GET", "/pty/x/ws?token=y")):  # fmt: skip
                answer = api.call(method, path, headers=headers)
                self.assertEqual((answer.status, answer.json["code"]), (401, "UNAUTHORIZED"), (method, path))
        self.assertEqual(api.call("GET", "/health").status, 200)
        allowed = Api(daemon.http, {"X-Indexify-Sandbox-Token": "secret-token"})
        answer = allowed.call("GET", "/info")
        self.assertEqual((answer.status, answer.headers["access-control-allow-origin"]), (200, "*"))
        self.assertNotIn("access-control-allow-credentials", answer.headers)
        calls = stub(daemon)
        self.assertTrue(calls.Health(pb.HealthRequest(), timeout=DEADLINE).healthy)
        with self.assertRaises(grpc.RpcError) as caught:
            calls.SendSignal(pb.SendSignalRequest(), timeout=DEADLINE)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAUTHENTICATED)
        metadata = (("x-indexify-sandbox-token", "secret-token"),)
        answer = calls.SendSignal(pb.SendSignalRequest(), timeout=DEADLINE, metadata=metadata)
        self.assertEqual(answer.error, "No processes spawned")

    def test_children_do_not_see_the_token(self) -> None:
        daemon = self.place.start(
            env={"INDEXIFY_SANDBOX_TOKEN": "from-env", "INDEXIFY_DAEMON_LOG": "debug", "MINE": "1"}
        )
        api = Api(daemon.http, {"x-indexify-sandbox-token": "from-env"})
        lines, _ = api.output("env")
        self.assertIn("MINE=1", lines)
        self.assertFalse([line for line in lines if "from-env" in line or line.startswith("INDEXIFY_DAEMON")])
        self.assertNotIn("from-env", "".join(daemon.logs()))

    def test_held_start(self) -> None:
        marker = self.fresh()
        daemon = self.place.start("--held", "--", "touch", marker, token="held-token")
        self.assertTrue(stub(daemon).Health(pb.HealthRequest(), timeout=DEADLINE).healthy)
        api, control = Api(daemon.http), Api(daemon.grpc)
        with self.assertRaises(ConnectionRefusedError):
            api.call("GET", "/health")
        self.assertEqual(control.call("GET", "/health").status, 200)
        self.assertEqual(control.call("POST", "/go").status, 401)
        self.assertEqual(self.api.read(marker).status, 404)
        allowed = {"x-indexify-sandbox-token": "held-token"}
        for _ in range(2):
            self.assertEqual(control.call("POST", "/go", headers=allowed).status, 204)
            self.assertEqual(api.call("GET", "/health").status, 200)
        eventually(lambda: self.api.read(marker).status == 200, "the entrypoint")
        self.assertEqual(len(Api(daemon.http, allowed).call("GET", "/processes").json["processes"]), 1)
        self.assertEqual(control.call("GET", "/processes", headers=allowed).status, 404)

    def test_a_file_is_removed_before_anything_runs(self) -> None:
        file, other = self.fresh(), self.fresh()
        self.api.output("touch", file, other)
        daemon = self.place.start("--remove", file, "--", "sh", "-c", f"ls {file}; ls {other}; echo end")
        eventually(lambda: "end" in daemon.logs()[0], "the entrypoint's output")
        self.assertEqual(daemon.logs()[0].splitlines(), [other, "end"])
        again = self.place.start(f"--remove={file}")
        self.assertEqual(Api(again.http).call("GET", "/health").status, 200)
        self.assertNotIn("--remove", again.logs()[1])
        refused = self.place.start("--remove=/proc")
        self.assertEqual(Api(refused.http).call("GET", "/health").status, 200)
        self.assertIn("--remove /proc: ", refused.logs()[1])

    def test_held_daemon_ends_without_a_go(self) -> None:
        daemon = self.place.start("--held", "--", "touch", self.fresh())
        stub(daemon).Health(pb.HealthRequest(), timeout=DEADLINE)
        daemon.signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)

    def test_entrypoint(self) -> None:
        script = "echo to-out; echo to-err >&2; printf 'raw\\377'; trap 'echo got-it; exit 9' USR2; echo up; " \
                 "while :; do sleep 0.05; done"  # fmt: skip
        daemon = self.place.start("--", "sh", "-c", script, "--port", "--")
        api = Api(daemon.http)
        (entrypoint,) = api.call("GET", "/processes").json["processes"]
        self.assertEqual(entrypoint["args"], ["-c", script, "--port", "--"])
        self.assertTrue(entrypoint["stdin_writable"])
        other = api.start("sleep", "60")["pid"]
        eventually(lambda: "up" in daemon.logs()[0], "the entrypoint's output")
        self.assertIn("to-out\n", daemon.logs()[0])
        self.assertIn("to-err\n", daemon.logs()[1])
        answer = stub(daemon).SendSignal(pb.SendSignalRequest(signal=12), timeout=DEADLINE)
        self.assertTrue(answer.success)
        self.assertEqual(api.ended(entrypoint["pid"])["exit_code"], 9)
        self.assertEqual(api.get(other)["status"], "running")
        self.assertEqual(api.call("GET", "/health").status, 200)

    def test_entrypoint_that_cannot_start_is_no_end(self) -> None:
        daemon = self.place.start("--", "/no/such/program")
        self.assertEqual(Api(daemon.http).call("GET", "/processes").json["processes"], [])
        self.assertIn("/no/such/program: No such file or directory", daemon.logs()[1])

    def test_image_user(self) -> None:
        """Processes, terminals and new files belong to the image's user; a request may still ask for root."""
        if not self.place.root:
            return
        folder = self.fresh()
        self.api.output("mkdir", "-m", "777", folder)
        daemon = self.place.start("--image-user=12345:23456", "--", "sh", "-c", f"id -u > {folder}/entry; sleep 60")
        api = Api(daemon.http)
        self.assertEqual(api.output("sh", "-c", "id -u; id -g; echo $HOME")[0], ["12345", "23456", "/"])
        self.assertEqual(api.output("id", "-u", user="0")[0], ["0"])
        self.assertEqual(api.call("PUT", f"/files?path={folder}/a/b", raw=b"x").status, 204)
        self.assertEqual(self.api.output("stat", "-c", "%u:%g", folder + "/a", folder + "/a/b")[0], ["12345:23456"] * 2)
        eventually(lambda: self.api.read(folder + "/entry").body == b"12345\n", "the entrypoint's user")
        session = api.call(
            "POST", "/pty", {"command": "sh", "args": ["-c", "id -u > $(tty) && stat -c %u $(tty)"]}
        ).json
        viewer = WebSocket(api, f"/pty/{session['session_id']}/ws?token={session['token']}")
        viewer.send(b"\x02")
        data = b""
        while data.count(b"\r\n") < 2:
            data += viewer.receive()[1:]
        self.assertEqual(data, b"12345\r\n12345\r\n")

    def test_orderly_shutdown(self) -> None:
        daemon = self.place.start()
        api = Api(daemon.http)
        path = self.fresh()
        up = self.fresh()
        script = f"setsid sleep 69 & trap 'echo done > {path}; exit 0' TERM; echo > {up}; while :; do sleep 0.05; done"
        api.start("sh", "-c", script)
        session = api.call("POST", "/pty", {"command": "cat"}).json
        viewer = WebSocket(api, f"/pty/{session['session_id']}/ws?token={session['token']}")
        viewer.send(b"\x02")
        eventually(lambda: self.api.read(up).status == 200, "the trap")
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        with self.assertRaises(SocketClosed) as caught:
            viewer.receive()
        self.assertEqual((caught.exception.code, caught.exception.reason), (1001, "session terminated"))
        self.assertEqual(daemon.wait(), 0)
        self.assertLess(time.monotonic() - began, 5)
        self.assertEqual(self.api.read(path).body, b"done\n")
        self.assertEqual(self.api.output("pgrep", "-f", "^sleep 69")[0], [])

    def test_stubborn_processes_are_killed_in_time(self) -> None:
        daemon = self.place.start("--shutdown-timeout-secs=1")
        api = Api(daemon.http)
        info = api.start("sh", "-c", "trap '' TERM HUP; (trap '' TERM; setsid sleep 68) & while :; do sleep 0.05; done")
        api.call("POST", "/pty", {"command": "sh", "args": ["-c", "trap '' HUP; while :; do sleep 0.05; done"]})
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        eventually(lambda: "shutting down" in daemon.logs()[1], "the shutdown")
        refused = api.call("POST", "/processes", {"command": "true"})
        self.assertEqual((refused.status, refused.json["code"]), (503, "SHUTTING_DOWN"))
        self.assertEqual(api.call("GET", "/health").json, {"healthy": False})
        self.assertEqual(daemon.wait(), 0)
        self.assertLess(time.monotonic() - began, 5)
        self.assert_gone(info["pid"])
        eventually(lambda: not self.api.output("pgrep", "-f", "^sleep 68")[0], "the end of the stray")

    def assert_gone(self, pid: int) -> None:
        self.assertEqual(self.api.output("test", "-d", f"/proc/{pid}")[1]["exit_code"], 1)

    def test_second_signal_kills(self) -> None:
        daemon = self.place.start()
        api = Api(daemon.http)
        up = self.fresh()
        api.start("sh", "-c", f"trap '' TERM; echo > {up}; while :; do sleep 0.05; done")
        eventually(lambda: self.api.read(up).status == 200, "the trap")
        began = time.monotonic()
        daemon.signal(signal.SIGTERM)
        eventually(lambda: "shutting down" in daemon.logs()[1], "the shutdown")
        daemon.signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(), 0)
        self.assertLess(time.monotonic() - began, 5)

    def test_running_streams_end_with_the_daemon(self) -> None:
        daemon = self.place.start()
        api = Api(daemon.http)
        connection = api.connect()
        body = json.dumps({"command": "sh", "args": ["-c", "echo up; sleep 60"]})
        connection.request("POST", "/api/v1/processes/run", body, {"content-type": "application/json"})
        response = connection.getresponse()
        while b'"up"' not in response.readline():
            pass
        daemon.signal(signal.SIGTERM)
        self.assertIn(b'"signal":15', response.read())
        self.assertEqual(daemon.wait(), 0)
        connection.close()

    def test_unwritable_log_directory(self) -> None:
        daemon = self.place.start("--log-dir=/proc/no/such")
        api = Api(daemon.http)
        lines, end = api.output("seq", "100000")
        self.assertEqual((len(lines), end["exit_code"]), (100_000, 0))
        info = api.start("seq", "1000000")
        api.ended(info["pid"])
        answer = api.call("GET", f"/processes/{info['pid']}/stdout").json
        self.assertEqual(answer["lines"][-1], "1000000")
        self.assertEqual(answer["lost_lines"] + answer["line_count"], 1_000_000)
        self.assertIn("cannot be written", daemon.logs()[1])

    def test_tampered_history_is_lost_and_nothing_else(self) -> None:
        folder = self.fresh()
        daemon = self.place.start(f"--log-dir={folder}")
        api = Api(daemon.http)
        pid = api.start("seq", "100000")["pid"]
        api.ended(pid)
        self.assertEqual(api.lines(pid), [str(number) for number in range(1, 100_001)])
        self.api.output("sh", "-c", f"for f in {folder}/*/*; do head -c 100000 /dev/urandom > $f; done")
        lines = api.lines(pid)
        self.assertEqual(lines[-1], "100000")
        self.assertTrue(all(line.isdigit() for line in lines))
        self.api.output("rm", "-rf", folder)
        self.assertEqual(api.lines(pid)[-1], "100000")
        self.assertEqual(api.output("echo", "fine")[0], ["fine"])
