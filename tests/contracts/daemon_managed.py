"""Managed processes: names, restarts with back-off, health checks, a gentle stop."""

from __future__ import annotations

import socket
from itertools import pairwise
from typing import Any
from urllib.parse import quote

from .daemon import DaemonContract
from .daemon_wire import EventStream, eventually

FAST = {"initial_backoff_ms": 10, "max_backoff_ms": 50}


class DaemonManaged(DaemonContract):
    def managed(self, reference: object) -> dict[str, Any]:
        return self.api.get(reference)["managed"]

    def until(self, reference: object, **wanted: object) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            managed = self.managed(reference)
            return managed if all(managed[name] == value for name, value in wanted.items()) else None

        return eventually(look, f"{reference} with {wanted}")

    def test_address_by_name_with_odd_characters(self) -> None:
        name = "web 1 +%?ü"
        info = self.api.start("sleep", "60", name=name)
        self.assertEqual(info["managed"]["name"], name)
        self.assertEqual(info["managed"]["restart"]["policy"], "on_failure")
        reference = quote(name, safe="")
        self.assertEqual(self.api.get(reference)["pid"], info["pid"])
        answer = self.api.call("POST", "/processes", {"command": "true", "name": name})
        self.assertEqual((answer.status, answer.json["code"]), (409, "NAME_IN_USE"))
        self.assertEqual(self.api.call("DELETE", f"/processes/{reference}").status, 204)
        self.assertEqual(self.until(reference, status="stopped")["last_exit"]["signal"], 15)
        again = self.api.start("sleep", "60", name=name)
        self.assertNotEqual(again["pid"], info["pid"])
        self.api.call("DELETE", f"/processes/{reference}")

    def test_names_and_grace_times_that_are_refused(self) -> None:
        for fields, named in (
            *(({"name": name}, "name") for name in ("", "12", "a/b", "run", ".", "..", "n" * 256)),
            *(({"stop_grace_ms": value}, "stop_grace_ms") for value in (-1, "x", 1.5, 10**30)),
        ):
            answer = self.api.call("POST", "/processes", {"command": "true", **fields})
            self.assertEqual((answer.status, answer.json["code"]), (422, "UNPROCESSABLE"), fields)
            self.assertIn(named, answer.json["error"])

    def test_restarts_on_failure_up_to_the_limit(self) -> None:
        path = self.fresh()
        restart = {**FAST, "max_restarts": 3}
        info = self.sh(f"echo run >> {path}; echo $$; exit 4", restart=restart)
        managed = self.until(info["managed"]["id"], status="stopped")
        self.assertEqual((managed["restart_count"], managed["last_exit"]["exit_code"]), (3, 4))
        self.assertIn("limit", managed["last_error"])
        self.assertEqual(self.api.read(path).body, b"run\n" * 4)
        lines = self.api.lines(info["managed"]["id"])
        self.assertEqual(len(set(lines)), 4, "one history over all restarts")
        self.assertEqual(self.api.get(info["pid"])["handle"], info["handle"])

    def test_back_off_doubles_up_to_its_maximum(self) -> None:
        restart = {"initial_backoff_ms": 100, "max_backoff_ms": 300, "max_restarts": 4}
        info = self.sh("echo up; exit 1", restart=restart)
        events = list(EventStream(self.api, "GET", f"/processes/{info['pid']}/stdout/follow"))
        times = [event.data["timestamp"] for event in events[:-1]]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        for gap, least in zip(gaps, (100, 200, 300, 300), strict=True):
            self.assertGreaterEqual(gap, least - 2)

    def test_success_and_policies(self) -> None:
        for policy, code, restarts in (("on_failure", 0, False), ("never", 1, False), ("always", 0, True)):
            info = self.sh(f"exit {code}", restart={**FAST, "policy": policy, "max_restarts": 1})
            managed = self.until(info["managed"]["id"], status="stopped")
            self.assertEqual(managed["restart_count"], 1 if restarts else 0, policy)

    def test_crash_by_signal_restarts(self) -> None:
        info = self.api.start("sleep", "60", name="crash", restart=FAST)
        self.api.call("POST", f"/processes/{info['pid']}/signal", {"signal": 9})
        managed = self.until("crash", restart_count=1, status="running")
        self.assertEqual(managed["last_exit"]["signal"], 9)
        self.assertNotEqual(self.api.get("crash")["pid"], info["pid"])
        self.api.call("DELETE", "/processes/crash")

    def test_back_off_is_shown_and_cut_short(self) -> None:
        restart = {"initial_backoff_ms": 600_000, "max_backoff_ms": 600_000}
        self.sh("exit 1", name="patient", restart=restart)
        managed = self.until("patient", status="backing_off")
        self.assertIsInstance(managed["next_restart_at"], int)
        answer = self.api.call("POST", "/processes/patient/restart")
        self.assertEqual((answer.status, answer.json["managed"]["restart_count"]), (200, 1))
        self.until("patient", status="backing_off")
        self.api.call("DELETE", "/processes/patient")
        self.until("patient", status="stopped", next_restart_at=None)

    def test_restart_by_hand(self) -> None:
        first = self.api.start("sleep", "60", name="hand")
        answer = self.api.call("POST", "/processes/hand/restart")
        self.assertEqual(answer.status, 200)
        second = answer.json
        self.assertEqual((second["status"], second["managed"]["status"]), ("running", "running"))
        self.assertNotEqual(first["pid"], second["pid"])
        self.api.call("DELETE", "/processes/hand")
        self.until("hand", status="stopped")
        third = self.api.call("POST", "/processes/hand/restart").json
        self.assertEqual(third["managed"]["status"], "running")
        self.api.call("DELETE", "/processes/hand")
        self.until("hand", status="stopped")
        self.assertEqual(self.api.call("DELETE", "/processes/hand").status, 500)

    def test_stop_is_gentle_then_firm(self) -> None:
        gentle = self.sh("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.02; done", name="gentle")
        stream = EventStream(self.api, "GET", f"/processes/{gentle['pid']}/stdout/follow")
        stream.next()
        self.api.call("DELETE", "/processes/gentle")
        self.assertEqual([event.data.get("line") for event in stream], ["bye", None])
        firm = self.sh("trap '' TERM; echo up; while :; do sleep 0.02; done", name="firm", stop_grace_ms=100)
        stream = EventStream(self.api, "GET", f"/processes/{firm['pid']}/stdout/follow")
        stream.next()
        self.api.call("DELETE", "/processes/firm")
        self.assertEqual(self.until("firm", status="stopped")["last_exit"]["signal"], 9)
        stream.close()

    def test_group_goes_before_a_restart(self) -> None:
        info = self.sh("sleep 67 & echo $!; exit 1", name="family", restart={**FAST, "max_restarts": 0})
        self.until("family", status="stopped")
        child = self.api.lines(info["pid"])[0]
        script = f"[ -d /proc/{child} ] && ! grep -q '^State:.Z' /proc/{child}/status"
        eventually(lambda: self.api.output("sh", "-c", script)[1]["exit_code"] == 1, "the end of the child")

    def test_failed_first_start_leaves_no_name(self) -> None:
        for _ in range(2):
            answer = self.api.call("POST", "/processes", {"command": "no-such-program", "name": "ghost"})
            self.assertEqual((answer.status, answer.json["code"]), (500, "SPAWN_FAILED"))
        self.assertEqual(self.api.call("GET", "/processes/ghost").status, 404)

    def test_program_that_vanishes_is_tried_again(self) -> None:
        path = self.fresh()
        self.api.put(path, b"#!/bin/sh\nexit 1\n")
        self.api.output("chmod", "+x", path)
        self.api.start(path, name="vanishing", restart={**FAST, "max_restarts": 4})
        self.api.call("DELETE", f"/files?path={path}")
        managed = self.until("vanishing", status="stopped")
        self.assertIn(managed["restart_count"], (4,))

    def test_health_checks(self) -> None:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.close()
        check = {"type": "tcp", "port": port, "initial_delay_ms": 0, "interval_ms": 20, "failure_threshold": 2}
        info = self.api.start("sleep", "60", name="checked", health_check=check, restart=FAST)
        self.assertEqual(info["managed"]["health_status"], "starting")
        managed = eventually(
            lambda: m if (m := self.managed("checked"))["restart_count"] >= 2 else None, "restarts by the check"
        )
        self.assertEqual(managed["last_error"], "the health check failed")
        self.api.call("DELETE", "/processes/checked")

    def test_http_health_check_of_a_healthy_server(self) -> None:
        check = {"type": "http", "port": self.daemon.http[1], "path": "/api/v1/health", "initial_delay_ms": 0}
        self.api.start("sleep", "60", name="well", health_check={**check, "interval_ms": 20})
        self.until("well", health_status="healthy", consecutive_health_failures=0)
        self.api.call("DELETE", "/processes/well")
        self.api.start("sleep", "60", name="ill", restart={"policy": "never"},
                       health_check={**check, "path": "/nothing", "interval_ms": 20})  # fmt: skip
        managed = self.until("ill", health_status="unhealthy")
        self.assertEqual((managed["status"], managed["consecutive_health_failures"]), ("running", 3))
        self.api.call("DELETE", "/processes/ill")
