"""The documented log events, their levels and their fields; and what must never be in a log."""

from __future__ import annotations

import io
import json
from typing import Any

from twisted.logger import globalLogPublisher

from indexify_dataplane import logs
from indexify_dataplane.http_proxy.routes import NotRunning

from .support import EdgeCase, echo, get, in_loop


class Events(EdgeCase):
    def setUp(self) -> None:
        super().setUp()
        self.stream = io.StringIO()
        before = logs.Logger.threshold
        pipe = logs.create("production", {"RUST_LOG": "indexify_dataplane::http_proxy=debug"}, self.stream)
        globalLogPublisher.addObserver(pipe)
        self.addCleanup(globalLogPublisher.removeObserver, pipe)
        self.addCleanup(setattr, logs.Logger, "threshold", before)
        self.log = pipe.request_log(self.clock)
        self.addCleanup(self.log.stop)

    def events(self) -> list[dict[str, Any]]:
        self.clock.advance(1)
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    @in_loop
    async def test_events(self) -> None:
        server = await self.start_server(echo)
        await self.start_edge()
        self.table.sandboxes["early"] = NotRunning("pending")
        client = await self.connect()
        address = "{}:{}".format(*server.address)
        for _ in range(2):
            await client.ask(get("/a?token=secret", b"Authorization: Bearer hidden\r\n"))
        await client.ask(get("/b", sandbox=b""))
        await client.ask(get("/c", sandbox=b"Tensorlake-Sandbox-Id: no\r\n"))
        await client.ask(get("/d", sandbox=b"Tensorlake-Sandbox-Id: early\r\n"))
        await server.stop()
        self.edge.forget("c-sb-1")
        await client.ask(get("/e"))
        client = await self.connect()
        await client.ask(b"nonsense\r\n\r\n")
        told = self.events()
        self.assertEqual({event["target"] for event in told}, {"indexify_dataplane::http_proxy"})
        self.assertEqual(
            [(event["level"], event["fields"]["message"]) for event in told],
            [
                ("DEBUG", "Routing request to container"), ("INFO", "Request completed"),
                ("DEBUG", "Routing request to container"), ("INFO", "Request completed"),
                ("WARN", "Missing Tensorlake-Sandbox-Id header"), ("WARN", "Sandbox not found"),
                ("WARN", "Sandbox not running"), ("ERROR", "Failed to connect to container"),
                ("WARN", "Malformed request"),
            ],
        )  # fmt: skip
        routed = {"sandbox_id": "sb-1", "port": 9501, "method": "GET", "path": "/a"}
        for event in told[:4]:
            self.assertEqual((event["span"], event["fields"]["container_addr"]), (routed, address))
        self.assertEqual(told[1]["fields"]["status_code"], 200)
        self.assertIn("duration_ms", told[1]["fields"])
        self.assertEqual((told[6]["span"]["sandbox_id"], told[6]["fields"]["state"]), ("early", "pending"))
        self.assertEqual(told[7]["span"]["path"], "/e")
        self.assertEqual(told[7]["fields"]["peer_addr"], address)
        self.assertNotIn("secret", self.stream.getvalue())
        self.assertNotIn("hidden", self.stream.getvalue())
