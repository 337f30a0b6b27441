"""The HTTP server itself: rejections, framing, limits, connections that misbehave; health, info and the document."""

from __future__ import annotations

import select
import socket
import threading
import time

from .daemon import DaemonContract
from .daemon_wire import DEADLINE, EventStream, eventually, file_path


class DaemonHttp(DaemonContract):
    def raw(self, data: bytes, *, shut: bool = False) -> bytes:
        """Everything the daemon says until it closes."""
        with socket.create_connection(self.api.address, timeout=DEADLINE) as connection:
            connection.sendall(data)
            if shut:
                connection.shutdown(socket.SHUT_WR)
            seen = b""
            while chunk := connection.recv(65536):
                seen += chunk
            return seen

    def status(self, data: bytes) -> int:
        return int(self.raw(data).split(b" ")[1])

    def test_health_and_info(self) -> None:
        self.assertEqual(self.api.call("GET", "/health").json, {"healthy": True})
        info = self.api.call("GET", "/info").json
        self.assertEqual(set(info), {"version", "uptime_secs", "running_processes", "total_processes"})
        before = info["total_processes"]
        pid = self.api.start("sleep", "60")["pid"]
        after = self.api.call("GET", "/info").json
        self.assertEqual(after["total_processes"], before + 1)
        self.assertGreaterEqual(after["running_processes"], 1)
        self.api.call("DELETE", f"/processes/{pid}")

    def test_rejections_are_json(self) -> None:
        json = {"content-type": "application/json"}
        for method, path, headers, raw, status, code in (
            ("GET", "/nothing", {}, None, 404, "NOT_FOUND"),
            ("GET", "/health/", {}, None, 404, "NOT_FOUND"),
            ("GET", "/processes/1/2/3/4", {}, None, 404, "NOT_FOUND"),
            ("PATCH", "/processes", {}, None, 405, "METHOD_NOT_ALLOWED"),
            ("DELETE", "/health", {}, None, 405, "METHOD_NOT_ALLOWED"),
            ("POST", "/processes", {}, b"{}", 415, "UNSUPPORTED_MEDIA_TYPE"),
            ("POST", "/processes", {"content-type": "text/plain"}, b"{}", 415, "UNSUPPORTED_MEDIA_TYPE"),
            ("POST", "/processes", json, b"{", 400, "BAD_REQUEST"),
            ("POST", "/processes", json, b"\xff", 400, "BAD_REQUEST"),
            ("POST", "/processes", json, b"[" * 100_000, 400, "BAD_REQUEST"),
            ("POST", "/processes", json, b"1" * 5000, 400, "BAD_REQUEST"),
            ("POST", "/processes", json, b"[]", 422, "UNPROCESSABLE"),
            ("POST", "/processes", json, b"{}", 422, "UNPROCESSABLE"),
            ("POST", "/processes", json, b'{"command":""}', 422, "UNPROCESSABLE"),
            ("POST", "/processes", json, b'{"command":"a\\u0000b"}', 422, "UNPROCESSABLE"),
            ("POST", "/processes", json, b'{"command":"\\ud800"}', 422, "UNPROCESSABLE"),
            ("POST", "/processes", json, b'{"command":"x","args":null}', 422, "UNPROCESSABLE"),
            ("POST", "/processes", json, b'{"command":"x","args":[1]}', 422, "UNPROCESSABLE"),
            ("POST", "/processes", json, b'{"command":"x","env":{"a=b":"c"}}', 422, "UNPROCESSABLE"),
            ("POST", "/processes", json, b'{"command":"x","env":{"a":1}}', 422, "UNPROCESSABLE"),
            ("POST", "/processes", json, b'{"command":"x","stdin_mode":"open"}', 422, "UNPROCESSABLE"),
            ("POST", "/processes", json, b'{"command":"x","name":"17"}', 422, "UNPROCESSABLE"),
            ("POST", "/processes", json, b'{"command":"x","name":"a/b"}', 422, "UNPROCESSABLE"),
            ("POST", "/processes", json, b'{"command":"x","health_check":{}}', 422, "UNPROCESSABLE"),
            ("POST", "/processes", json, bytes(2_097_153), 413, "PAYLOAD_TOO_LARGE"),
        ):
            answer = self.api.call(method, path, headers=headers, raw=raw)
            self.assertEqual((answer.status, answer.json["code"]), (status, code), (method, path, (raw or b"")[:60]))
            self.assertEqual(answer.headers["content-type"], "application/json")
        self.assertEqual(self.api.call("PATCH", "/processes").headers["allow"], "GET, HEAD, POST")

    def test_content_types_and_unknown_fields(self) -> None:
        for kind in ("application/json; charset=utf-8", "application/vnd.x+json", "APPLICATION/JSON"):
            answer = self.api.call("POST", "/processes", {"command": "true", "x": 1}, headers={"content-type": kind})
            self.assertEqual(answer.status, 201, kind)

    def test_head_and_options(self) -> None:
        answer = self.api.call("HEAD", "/info")
        self.assertEqual((answer.status, answer.body), (200, b""))
        self.assertGreater(int(answer.headers["content-length"]), 10)
        self.assertEqual(self.api.call("OPTIONS", "/processes").status, 200)

    def test_without_a_token_no_cross_origin_answers(self) -> None:
        for method in ("GET", "OPTIONS"):
            answer = self.api.call(method, "/processes", headers={"origin": "http://evil.example"})
            self.assertFalse([name for name in answer.headers if name.startswith("access-control")])

    def test_keep_alive_and_pipelining(self) -> None:
        one = b"GET /api/v1/health HTTP/1.1\r\nhost: x\r\n\r\n"
        last = b"GET /api/v1/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        body = b"POST /api/v1/processes/1/stdin HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n12345"
        seen = self.raw(one + body + one + last)
        self.assertEqual(seen.count(b'{"healthy":true}'), 3)
        self.assertEqual(seen.count(b"404 Not Found"), 1)

    def test_split_anywhere(self) -> None:
        request = (
            b"POST /api/v1/processes/run HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            b'10\r\n{"command":"echo\r\n10;x=y\r\n","args":["ok"]}\r\n0\r\nTrailer: t\r\n\r\n'
        )
        with socket.create_connection(self.api.address, timeout=DEADLINE) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for place in range(len(request)):
                connection.sendall(request[place : place + 1])
            seen = b""
            while chunk := connection.recv(65536):
                seen += chunk
        self.assertIn(b'"line":"ok"', seen)
        self.assertTrue(seen.endswith(b"0\r\n\r\n"))

    def test_http_1_0(self) -> None:
        seen = self.raw(b"GET /api/v1/health HTTP/1.0\r\n\r\n")
        self.assertIn(b"connection: close", seen)
        pid = self.api.start("echo", "old")["pid"]
        seen = self.raw(b"GET /api/v1/processes/%d/stdout HTTP/1.0\r\n\r\n" % pid)
        self.assertNotIn(b"chunked", seen)
        self.assertTrue(seen.endswith(b"}"))

    def test_framing_that_is_not_clear_is_refused(self) -> None:
        post = b"POST /api/v1/processes HTTP/1.1\r\nhost: x\r\n"
        for head, status in (
            (post + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n", 400),
            (post + b"content-length: 0\r\ntransfer-encoding: chunked\r\n\r\n", 400),
            (post + b"content-length: 5\r\ncontent-length: 6\r\n\r\n", 400),
            (post + b"content-length: -5\r\n\r\n", 400),
            (post + b"content-length: 0x5\r\n\r\n", 400),
            (post + b"transfer-encoding: gzip\r\n\r\n", 501),
            (post + b"transfer-encoding: chunked, chunked\r\n\r\n", 501),
            (post + b"bad header\r\n\r\n", 400),
            (post + b"bad : header\r\n\r\n", 400),
            (b"POST /api/v1/processes HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n", 400),
            (b"GET /api/v1/health HTTP/1.1\r\n\r\n", 400),
            (b"GET /api/v1/health HTTP/2.0\r\nhost: x\r\n\r\n", 505),
            (b"GET  /api/v1/health HTTP/1.1\r\nhost: x\r\n\r\n", 400),
            (b"GET /%zz HTTP/1.1\r\nhost: x\r\n\r\n", 400),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 40 + b"\r\n\r\n", 400),
            (b"GET /api/v1/health HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 70_000, 431),
        ):
            self.assertEqual(self.status(head), status, head[:120])
        chunks = post + b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
        self.assertEqual(self.status(chunks), 400)

    def test_refusal_reaches_a_client_that_is_still_sending(self) -> None:
        """A close with unread bytes would reset the connection and lose the answer."""
        head = (
            b"POST /api/v1/processes HTTP/1.1\r\nhost: x\r\n"
            b"content-type: application/json\r\ncontent-length: 50000000\r\n\r\n"
        )
        with socket.create_connection(self.api.address, timeout=DEADLINE) as connection:
            connection.sendall(head + bytes(100_000))
            select.select([connection], [], [], DEADLINE)
            for _ in range(20):
                connection.sendall(bytes(100_000))
            self.assertTrue(connection.recv(100).startswith(b"HTTP/1.1 413 "))

    def test_expect_continue(self) -> None:
        path = self.fresh()
        head = f"PUT /api/v1{file_path(path)} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n"
        with socket.create_connection(self.api.address, timeout=DEADLINE) as connection:
            connection.sendall(head.encode())
            self.assertEqual(connection.recv(100), b"HTTP/1.1 100 Continue\r\n\r\n")
            connection.sendall(b"data")
            self.assertTrue(connection.recv(1000).startswith(b"HTTP/1.1 204 "))
        refused = (
            f"PUT /api/v1{file_path('..')} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n"
        )
        seen = self.raw(refused.encode())
        self.assertTrue(seen.startswith(b"HTTP/1.1 403 "))
        self.assertIn(b"connection: close", seen)

    def test_half_closed_client_gets_its_answer(self) -> None:
        self.assertIn(b'{"healthy":true}', self.raw(b"GET /api/v1/health HTTP/1.1\r\nhost: x\r\n\r\n", shut=True))

    def test_answers_in_pieces_do_not_wait_for_acknowledgements(self) -> None:
        """With Nagle's algorithm every second piece waits 40 ms for the client's delayed acknowledgement."""
        connection = self.api.connect()
        times = []
        for _ in range(21):
            began = time.monotonic()
            answer = self.api.call_on(connection, "GET", "/processes/4194303/output/follow")
            self.assertTrue(answer.body.startswith(b"event: eof"))
            times.append(time.monotonic() - began)
        connection.close()
        self.assertLess(sorted(times)[10], 0.03)

    def test_many_connections(self) -> None:
        """Beyond the limit of 1,024 the oldest idle ones make room; a request in progress never does."""
        pid = self.sh("read x; echo $x", stdin_mode="pipe")["pid"]
        stream = EventStream(self.api, "GET", f"/processes/{pid}/stdout/follow")
        open_ones: list[socket.socket] = []
        try:
            open_ones += [socket.create_connection(self.api.address, timeout=DEADLINE) for _ in range(1100)]
            self.assertEqual(self.api.call("GET", "/health").status, 200)
            self.assertEqual(open_ones[0].recv(1), b"")
            self.api.call("POST", f"/processes/{pid}/stdin", raw=b"still here\n")
            self.assertEqual(stream.next().data["line"], "still here")
        finally:
            stream.close()
            for connection in open_ones:
                connection.close()

    def test_runs_side_by_side(self) -> None:
        failures: list[object] = []

        def work(number: int) -> None:
            for turn in range(10):
                lines, end = self.api.output("sh", "-c", f"echo {number}-{turn}; exit {turn}")
                if (lines, end["exit_code"]) != ([f"{number}-{turn}"], turn):
                    failures.append((number, turn, lines, end))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])

    def test_health_while_busy(self) -> None:
        """A flood of output may not hold up the rest."""
        pid = self.sh("yes")["pid"]
        slowest = 0.0
        for _ in range(50):
            began = time.monotonic()
            self.api.call("GET", "/health")
            slowest = max(slowest, time.monotonic() - began)
        self.api.call("DELETE", f"/processes/{pid}")
        eventually(lambda: self.api.get(pid)["status"] == "signaled", "the end of yes")
        self.assertLess(slowest, 1.0)

    def test_document_names_every_route(self) -> None:
        document = self.api.call("GET", "/openapi.json").json
        self.assertEqual(document["openapi"], "3.1.0")
        for path, operations in document["paths"].items():
            for method in operations:
                concrete = path.replace("{process}", "4194303").replace("{session}", "x").removeprefix("/api/v1")
                answer = self.api.call(method.upper(), concrete)
                self.assertNotEqual(answer.status, 405, (method, path))
                self.assertNotIn("No such route", answer.body.decode(errors="replace"), (method, path))
