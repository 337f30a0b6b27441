"""Terminals: many viewers, replay, resize, exit codes, limits; and tunnels."""

from __future__ import annotations

import socket
import struct
import threading
from typing import Any

from .daemon import DaemonContract
from .daemon_wire import SocketClosed, WebSocket, eventually

READY = b"\x02"


class DaemonPty(DaemonContract):
    def create(self, *command: str, **options: Any) -> dict[str, Any]:
        answer = self.api.call("POST", "/pty", {"command": command[0], "args": list(command[1:]), **options})
        self.assertEqual(answer.status, 201, answer)
        return answer.json

    def attach(self, session: dict[str, Any], ready: bool = True) -> WebSocket:
        viewer = WebSocket(self.api, f"/pty/{session['session_id']}/ws?token={session['token']}")
        self.assertEqual(viewer.status, 101)
        self.addCleanup(viewer.drop)
        if ready:
            viewer.send(READY)
        return viewer

    def until(self, viewer: WebSocket, wanted: bytes) -> bytes:
        seen = b""
        while wanted not in seen:
            message = viewer.receive()
            self.assertEqual(message[0], 0)
            seen += message[1:]
        return seen

    def to_end(self, viewer: WebSocket) -> tuple[bytes, int | None, SocketClosed]:
        """(all data, exit code of opcode 3, close frame)."""
        data, code = [], None
        while True:
            try:
                message = viewer.receive()
            except SocketClosed as closed:
                return b"".join(data), code, closed
            if message[0] == 0:
                data.append(message[1:])
            else:
                self.assertEqual(message[0], 3)
                code = struct.unpack(">i", message[1:])[0]

    def info(self, session: dict[str, Any]) -> dict[str, Any]:
        return self.api.call("GET", f"/pty/{session['session_id']}").json

    def test_output_and_exit_code(self) -> None:
        session = self.create("sh", "-c", "tty >/dev/null && echo terminal; exit 5")
        self.assertRegex(session["session_id"], r"^[A-Za-z0-9_-]{21}$")
        self.assertRegex(session["token"], r"^[0-9a-f]{64}$")
        data, code, closed = self.to_end(self.attach(session))
        self.assertEqual((data, code), (b"terminal\r\n", 5))
        self.assertEqual((closed.code, closed.reason), (1000, "exit:5"))
        again = self.to_end(self.attach(session))
        self.assertEqual((again[0], again[1]), (b"terminal\r\n", 5))
        answer = self.api.call("POST", f"/pty/{session['session_id']}/resize", {"rows": 9, "cols": 9})
        self.assertEqual((answer.status, answer.json["code"]), (500, "RESIZE_FAILED"))
        info = self.info(session)
        self.assertEqual((info["is_alive"], info["status"], info["exit_code"]), (False, "exited", 5))
        self.assertNotIn("token", info)

    def test_death_by_signal(self) -> None:
        session = self.create("sh", "-c", "kill -9 $$")
        _, code, closed = self.to_end(self.attach(session))
        self.assertEqual((code, closed.reason), (137, "exit:137"))

    def test_all_output_comes_before_the_exit(self) -> None:
        for _ in range(10):
            data, code, _ = self.to_end(self.attach(self.create("seq", "2000")))
            self.assertEqual(data.decode().split("\r\n")[:-1], [str(number) for number in range(1, 2001)])
            self.assertEqual(code, 0)

    def test_typing_resize_and_job_control(self) -> None:
        session = self.create("sh", rows=30, cols=100, env={"PS1": "$ ", "TERM": "vt100"})
        viewer = self.attach(session)
        viewer.send(b"\0stty size; echo $TERM\n")
        self.assertIn(b"30 100\r\nvt100\r\n", self.until(viewer, b"vt100\r\n"))
        viewer.send(b"\x01" + struct.pack(">HH", 120, 40))
        viewer.send(b"\0stty size\n")
        self.until(viewer, b"40 120\r\n")
        answer = self.api.call("POST", f"/pty/{session['session_id']}/resize", {"rows": 9999, "cols": 0})
        self.assertEqual(answer.status, 204)
        viewer.send(b"\0stty size\n")
        self.until(viewer, b"500 1\r\n")
        self.assertEqual((self.info(session)["rows"], self.info(session)["cols"]), (500, 1))
        viewer.send(b"\0sh -c 'echo started; exec sleep 60'\n")
        self.until(viewer, b"started\r\n")
        viewer.send(b"\0\x03")
        viewer.send(b"\0echo after-$?\n")
        self.until(viewer, b"after-130")
        viewer.send(b"\0exit 3\n")
        self.assertEqual(self.to_end(viewer)[1], 3)

    def test_viewers_share_and_reconnect(self) -> None:
        session = self.create("cat")
        first, second = self.attach(session), self.attach(session)
        eventually(lambda: self.info(session)["client_count"] == 2, "both viewers")
        first.send(b"\0from first\n")
        for viewer in (first, second):
            self.assertEqual(self.until(viewer, b"first\r\nfrom first\r\n"), b"from first\r\nfrom first\r\n")
        first.drop()
        second.send(b"\0from second\n")
        self.until(second, b"second\r\nfrom second\r\n")
        third = self.attach(session, ready=False)
        third.send(READY)
        self.assertEqual(
            self.until(third, b"second\r\nfrom second\r\n"), b"from first\r\n" * 2 + b"from second\r\n" * 2
        )
        self.assertEqual(self.api.call("DELETE", f"/pty/{session['session_id']}").status, 204)
        for viewer in (second, third):
            _, _, closed = self.to_end(viewer)
            self.assertEqual((closed.code, closed.reason), (1001, "session terminated"))
        eventually(lambda: "error" in self.info(session), "the session to be forgotten")

    def test_ignored_messages(self) -> None:
        viewer = self.attach(self.create("cat"), ready=False)
        for message in (b"", b"\x07junk", b"\x01\x00", b"\x01"):
            viewer.send(message)
        viewer.send_text("text")
        viewer.send(b"\0before ready\n")
        viewer.send(READY)
        self.until(viewer, b"before ready\r\n")

    def test_tokens(self) -> None:
        session = self.create("cat")
        path = f"/pty/{session['session_id']}/ws"
        self.assertEqual(WebSocket(self.api, path, {"x-pty-token": session["token"]}).status, 101)
        self.assertEqual(WebSocket(self.api, path + "?token=bad", {"x-pty-token": session["token"]}).status, 101)
        self.assertEqual(WebSocket(self.api, path + f"?token={session['token']}", {"x-pty-token": "bad"}).status, 403)
        self.assertEqual(WebSocket(self.api, path + "?token=" + "0" * 64).status, 403)
        self.assertEqual(WebSocket(self.api, "/pty/unknown/ws?token=" + "0" * 64).status, 403)
        self.assertEqual(WebSocket(self.api, path).status, 400)
        for header in ({"sec-websocket-version": "12"}, {"sec-websocket-key": "short"}, {"upgrade": "h2c"}):
            self.assertEqual(WebSocket(self.api, path + f"?token={session['token']}", header).status, 400, header)
        self.api.call("DELETE", f"/pty/{session['session_id']}")

    def test_unknown_sessions_and_bad_orders(self) -> None:
        for method, path, body in (
            ("GET", "/pty/x", None),
            ("DELETE", "/pty/x", None),
            ("POST", "/pty/x/resize", {"rows": 1, "cols": 1}),
        ):
            answer = self.api.call(method, path, body)
            self.assertEqual((answer.status, answer.json["code"]), (404, "NOT_FOUND"))
            self.assertEqual(answer.json["error"], "PTY session x not found")
        self.assertEqual(self.api.call("POST", "/pty", {"command": "no-such-program"}).status, 500)
        self.assertEqual(self.api.call("POST", "/pty", {"command": "sh", "rows": -1}).status, 422)
        null = {"command": "true", "args": None, "env": None, "rows": None, "cols": None, "working_dir": None}
        self.assertEqual(self.api.call("POST", "/pty", null).status, 201)

    def test_input_limits(self) -> None:
        session = self.create("cat")
        viewer = self.attach(session)
        viewer.send(b"\0" + bytes(65_536))
        self.assertEqual(self.to_end(viewer)[2].code, 1009)
        viewer = self.attach(self.create("sh", "-c", "stty raw -echo; exec cat >/dev/null"))
        with self.assertRaises((SocketClosed, OSError)) as caught:
            for _ in range(40):
                viewer.send(b"\0" + bytes(60_000))
            self.to_end_or_raise(viewer)
        if isinstance(caught.exception, SocketClosed):
            self.assertEqual((caught.exception.code, caught.exception.reason), (1008, "input rate limit exceeded"))

    def to_end_or_raise(self, viewer: WebSocket) -> None:
        while True:
            viewer.receive()

    def test_silent_viewer_does_not_freeze_the_others(self) -> None:
        """One that reads nothing holds the program back for ten seconds, then it is cut."""
        session = self.create("sh", "-c", "read go; seq 3000000; echo THE-END")
        stuck, reading = self.attach(session), self.attach(session)
        reading.send(b"\0go\n")
        data, code, _ = self.to_end(reading)
        self.assertEqual(code, 0)
        lines = data.decode().split("\r\n")
        self.assertEqual(lines[-2], "THE-END")
        self.assertEqual(lines[1:-2], [str(number) for number in range(1, 3_000_001)])
        _, _, closed = self.to_end(stuck)
        self.assertIn((closed.code, closed.reason[:16]), [(1008, "output lagged by"), (None, "")])

    def test_limit_is_checked_before_the_spawn(self) -> None:
        sessions = [
            self.create("sh", "-c", "stty -echo; echo up; while read x; do echo got $x; done")
            for _ in range(self.free())
        ]
        marker = self.fresh()
        answer = self.api.call("POST", "/pty", {"command": "touch", "args": [marker]})
        self.assertEqual((answer.status, answer.json["code"]), (429, "TOO_MANY_SESSIONS"))
        self.assertEqual(answer.json["error"], "Maximum number of concurrent PTY sessions (64) reached")
        viewers = [self.attach(session) for session in sessions]
        threads = [threading.Thread(target=self.echo_thousand, args=(viewer,)) for viewer in viewers]
        self.problems: list[BaseException] = []
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        self.assertEqual(self.problems, [])
        self.assertEqual(self.api.read(marker).status, 404)
        for session in sessions:
            self.api.call("DELETE", f"/pty/{session['session_id']}")
        eventually(lambda: self.live() == 0, "the end of all sessions")

    def live(self) -> int:
        return sum(session["is_alive"] for session in self.api.call("GET", "/pty").json["sessions"])

    def free(self) -> int:
        """Ends what other tests left, so that all 64 places are free."""
        for session in self.api.call("GET", "/pty").json["sessions"]:
            self.api.call("DELETE", f"/pty/{session['session_id']}")
        eventually(lambda: self.live() == 0, "the end of older sessions")
        return 64

    def echo_thousand(self, viewer: WebSocket) -> None:
        try:
            self.until(viewer, b"up\r\n")
            for start in range(0, 1000, 100):
                viewer.send(b"\0" + b"".join(b"%d\n" % number for number in range(start, start + 100)))
            data = self.until(viewer, b"got 999\r\n")
            got = [line for line in data.decode().split("\r\n") if line.startswith("got ")]
            assert got == [f"got {number}" for number in range(1000)], got[:5]
        except BaseException as problem:
            self.problems.append(problem)


class DaemonTunnels(DaemonContract):
    def server(self, program: str) -> int:
        """The port of a server in the sandbox: busybox or Python, whatever the place has."""
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.close()
        self.api.start("python3", "-c", program, str(port))
        eventually(lambda: self.listening(port), "the server")
        return port

    def listening(self, port: int) -> bool:
        return any(f":{port:04X} 00000000:0000 0A" in line for line in self.api.output("cat", "/proc/net/tcp")[0])

    ECHO = (
        "import socket,sys\ns=socket.create_server(('127.0.0.1',int(sys.argv[1])))\n"
        "while 1:\n c,_=s.accept()\n total=b''\n while 1:\n  d=c.recv(65536)\n  if not d: break\n  total+=d\n"
        " c.sendall(total+b'|bye')\n c.close()"
    )

    def test_bytes_both_ways_and_leftovers_after_the_close(self) -> None:
        port = self.server(self.ECHO)
        for size in (0, 5, 3 << 20):
            tunnel = WebSocket(self.api, f"/tunnels/tcp?port={port}")
            self.assertEqual(tunnel.status, 101)
            data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
            for start in range(0, size, 16_384):
                tunnel.send(data[start : start + 16_384])
            tunnel.close()
            seen = b""
            with self.assertRaises(SocketClosed) as caught:
                while True:
                    seen += tunnel.receive()
            self.assertEqual(seen, data + b"|bye")
            self.assertEqual(caught.exception.code, 1000)
            tunnel.drop()

    def test_end_of_the_server_closes(self) -> None:
        port = self.server(
            "import socket,sys\ns=socket.create_server(('127.0.0.1',int(sys.argv[1])))\n"
            "while 1:\n c,_=s.accept()\n c.sendall(b'hello')\n c.close()"
        )
        tunnel = WebSocket(self.api, f"/tunnels/tcp?port={port}")
        self.assertEqual(tunnel.receive(), b"hello")
        with self.assertRaises(SocketClosed) as caught:
            tunnel.receive()
        self.assertEqual(caught.exception.code, 1000)

    def test_text_is_refused(self) -> None:
        tunnel = WebSocket(self.api, f"/tunnels/tcp?port={self.server(self.ECHO)}")
        tunnel.send_text("no")
        with self.assertRaises(SocketClosed) as caught:
            tunnel.receive()
        self.assertEqual(caught.exception.code, 1003)

    def test_refusals(self) -> None:
        own = [str(port) for port in (9500, 9501, self.daemon.http[1], self.daemon.grpc[1])]
        refused = {"1": 502, "0": 400, "65536": 400, "x": 400, "": 400, **dict.fromkeys(own, 403)}
        for port, status in refused.items():
            self.assertEqual(WebSocket(self.api, f"/tunnels/tcp?port={port}").status, status, port)
        self.assertEqual(self.api.call("GET", "/tunnels/tcp?port=80").status, 400)
