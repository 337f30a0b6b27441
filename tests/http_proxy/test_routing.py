"""Where a request goes, from its fields alone."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.http_proxy.head import parse_request
from indexify_dataplane.http_proxy.routes import NotRunning, Target
from indexify_dataplane.http_proxy.routing import Preflight, Refusal, Route, Router

from .support import Table

SANDBOXES = ("sb-1", "abc", "8080-abc", "x.y", "77")


class Routing(SynchronousTestCase):
    def setUp(self) -> None:
        self.table = Table({name: Target(container_id=f"c-{name}", sandbox_id=name) for name in SANDBOXES})
        self.table.sandboxes["early"] = NotRunning("pending")
        self.router = Router(
            routes=self.table, host_suffixes=(".local", ".localhost", ".sb.example.com"),
            own_names=("node-7.local", "abc.localhost"),
        )  # fmt: skip

    def route(self, *fields: str, host: str = "proxy", method: str = "GET") -> tuple[str, int] | str | None:
        lines = "".join(f"{field}\r\n" for field in fields)
        found = self.router.route(parse_request(f"{method} / HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode()))
        match found:
            case Route():
                return found.target.sandbox_id, found.port
            case Refusal():
                return found.reply.code
            case Preflight():
                return "preflight"

    def test_fields(self) -> None:
        for sandbox in ("Tensorlake-Sandbox-Id", "x-tensorlake-sandbox-id", "X-TENSORLAKE-SANDBOX-ID"):
            for port in ("Tensorlake-Sandbox-Port", "x-tensorlake-sandbox-port"):
                self.assertEqual(self.route(f"{sandbox}: sb-1"), ("sb-1", 9501))
                self.assertEqual(self.route(f"{sandbox}: sb-1", f"{port}: 8080"), ("sb-1", 8080))
                self.assertEqual(self.route(f"{sandbox}: sb-1", f"{port}: 65535"), ("sb-1", 65535))
                for bad in ("0", "00", "65536", "99999", "-1", "+80", "80x", "", "8 0", "0x50", "١٢"):
                    self.assertEqual(self.route(f"{sandbox}: sb-1", f"{port}: {bad}"), "INVALID_SANDBOX_PORT", bad)
                self.assertEqual(self.route(f"{sandbox}: sb-1", f"{port}: 9500"), "PORT_NOT_ALLOWED")

    def test_two_spellings(self) -> None:
        same = ("Tensorlake-Sandbox-Id: abc", "X-Tensorlake-Sandbox-Id: abc")
        self.assertEqual(self.route(*same), ("abc", 9501))
        self.assertEqual(
            self.route("Tensorlake-Sandbox-Id: abc", "X-Tensorlake-Sandbox-Id: sb-1"), "CONFLICTING_SANDBOX_ID"
        )
        self.assertEqual(self.route(*same, "Tensorlake-Sandbox-Port: 80", "X-Tensorlake-Sandbox-Port: 80"), ("abc", 80))
        self.assertEqual(
            self.route(*same, "Tensorlake-Sandbox-Port: 80", "X-Tensorlake-Sandbox-Port: 81"), "INVALID_SANDBOX_PORT"
        )

    def test_answers_of_the_lookup(self) -> None:
        self.assertEqual(self.route(), "MISSING_SANDBOX_ID")
        self.assertEqual(self.route("Tensorlake-Sandbox-Id: nobody"), "SANDBOX_NOT_FOUND")
        self.assertEqual(self.route("Tensorlake-Sandbox-Id:"), "SANDBOX_NOT_FOUND")
        self.assertEqual(self.route("Tensorlake-Sandbox-Id: early"), "SANDBOX_NOT_RUNNING")
        self.assertEqual(self.route("Tensorlake-Sandbox-Id: a b"), "MISSING_SANDBOX_ID")
        self.assertEqual(self.route("Tensorlake-Sandbox-Id: \xe9"), "MISSING_SANDBOX_ID")

    def test_hosts(self) -> None:
        for host, expected in {
            "abc.local": ("abc", 9501),
            "abc.local:8095": ("abc", 9501),
            "abc.LOCAL.": ("abc", 9501),
            "sb-1.localhost": ("sb-1", 9501),
            "sb-1.sb.example.com:443": ("sb-1", 9501),
            "3000-sb-1.sb.example.com": ("sb-1", 3000),
            "3000-abc.local": ("abc", 3000),
            "8080-abc.local": ("8080-abc", 9501),  # an id that looks like a port and an id
            "77.local": ("77", 9501),
            "0-abc.local": "INVALID_SANDBOX_PORT",
            "65536-abc.local": "INVALID_SANDBOX_PORT",
            "9500-abc.local": "PORT_NOT_ALLOWED",
            "nobody.local": "SANDBOX_NOT_FOUND",
            "80-nobody.local": "SANDBOX_NOT_FOUND",
            "early.local": "SANDBOX_NOT_RUNNING",
            "node-7.local": "MISSING_SANDBOX_ID",
            "NODE-7.local:80": "MISSING_SANDBOX_ID",
            "abc.localhost": "MISSING_SANDBOX_ID",
            "x.y.local": "MISSING_SANDBOX_ID",
            "local": "MISSING_SANDBOX_ID",
            ".local": "MISSING_SANDBOX_ID",
            "abc": "MISSING_SANDBOX_ID",
            "abc.example.com": "MISSING_SANDBOX_ID",
            "abc.sandbox.tensorlake.ai": "MISSING_SANDBOX_ID",
            "127.0.0.1:8095": "MISSING_SANDBOX_ID",
            "[::1]:8095": "MISSING_SANDBOX_ID",
            "": "MISSING_SANDBOX_ID",
        }.items():
            self.assertEqual(self.route(host=host), expected, host)

    def test_fields_win_over_the_host(self) -> None:
        self.assertEqual(self.route("Tensorlake-Sandbox-Id: sb-1", host="abc.local"), ("sb-1", 9501))
        self.assertEqual(self.route("Tensorlake-Sandbox-Id: nobody", host="abc.local"), "SANDBOX_NOT_FOUND")
        self.assertEqual(self.route("Tensorlake-Sandbox-Port: 80", host="abc.local"), ("abc", 80))
        self.assertEqual(self.route("Tensorlake-Sandbox-Port: 80", host="80-abc.local"), ("abc", 80))
        self.assertEqual(self.route("Tensorlake-Sandbox-Port: 81", host="80-abc.local"), "INVALID_SANDBOX_PORT")

    def test_preflights(self) -> None:
        ask = ("Origin: https://a.example", "Access-Control-Request-Method: POST")
        self.assertEqual(self.route(*ask, method="OPTIONS"), "preflight")
        self.assertEqual(self.route(*ask, host="abc.local", method="OPTIONS"), "preflight")
        self.assertEqual(self.route(*ask, host="3000-abc.local", method="OPTIONS"), ("abc", 3000))
        self.assertEqual(self.route(*ask, host="abc.local"), ("abc", 9501))
        self.assertEqual(self.route("Origin: https://a.example", host="abc.local", method="OPTIONS"), ("abc", 9501))
        self.assertEqual(self.route(host="abc.local", method="OPTIONS"), ("abc", 9501))

    def test_secret(self) -> None:
        self.router = Router(routes=self.table, host_suffixes=(), own_names=(), secret=b"s3cret")
        sandbox = "Tensorlake-Sandbox-Id: abc"
        self.assertEqual(self.route(sandbox), "UNAUTHORIZED")
        self.assertEqual(self.route(sandbox, "X-Tensorlake-Proxy-Secret: guess"), "UNAUTHORIZED")
        self.assertEqual(self.route(sandbox, "X-Tensorlake-Proxy-Secret: s3cret"), ("abc", 9501))
