"""The installed program, a server in another process and real executors: requests as a user sees their ends."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import uuid
from pathlib import Path
from typing import Any, ClassVar

from twisted.trial.unittest import SynchronousTestCase

from tests.executor.support import NEW, OLD, code, environment
from tests.system.harness import Node, Site, until

LOST = "internal_error"
"""What the server's API calls CONTAINER_TERMINATED."""


def form(**parts: bytes) -> tuple[bytes, str]:
    """A multipart form and its content type."""
    boundary = uuid.uuid4().hex
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in parts.items()
    )
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


class Program:
    """What is asked of the whole chain, with every release."""

    release = OLD
    keys: ClassVar[dict[str, Any]] = {}
    environ: ClassVar[dict[str, str]] = {}
    path = ""
    """What the node is started with besides: configuration, environment, and folders (each with a colon) in PATH."""

    def setUp(self: Any) -> None:
        self.site = Site()
        self.addCleanup(self.site.close)
        self.server = self.site.server()
        self.rest = self.server.rest
        self.begin_node().ready()
        until("the node at the server", self.rest.executors)

    def begin_node(self: Any) -> Node:
        """Start the node, for the first time or after its death."""
        binaries = environment(self.release) / "bin"
        executor = {
            "fe_binary_path": str(binaries / "function-executor"),
            "code_cache_path": str(self.site.path / "code"),
        }
        address = f"http://127.0.0.1:{self.server.grpc_port}"
        config = self.site.config(server_addr=address, **{"function_executor": executor, **self.keys})
        env = {"PATH": f"{self.path}{binaries}:{os.environ['PATH']}", **self.environ}
        self.node = self.site.node(config, env=env)
        return self.node

    def kill_node(self: Any) -> None:
        self.node.send_signal(signal.SIGKILL)
        self.node.wait()

    def states(self: Any) -> list[str]:
        return list(self.node.containers().values())

    def attempts(self: Any, request: str) -> list[str]:
        [run] = self.rest.get(request)["function_runs"]
        return [str(each["failure_reason"] or each["outcome"]) for each in run["allocations"]]

    def deploy(self: Any, entrypoint: str, *others: str, **options: Any) -> str:
        resources = {"cpus": 1.0, "memory_mb": 512, "ephemeral_disk_mb": 64, "gpus": []}
        functions = {
            name: {
                "name": name, "description": "", "secret_names": [], "initialization_timeout_sec": 30,
                "timeout_sec": 30, "resources": resources, "parameters": [], "return_type": None,
                "retry_policy": {"max_retries": 0, "initial_delay_sec": 0.1, "max_delay_sec": 1, "delay_multiplier": 1},
                "placement_constraints": {"filter_expressions": []}, "max_concurrency": 1, **options,
            }
            for name in (entrypoint, *others)
        }  # fmt: skip
        manifest = {
            "name": entrypoint, "namespace": "default", "description": "", "version": "1", "tags": {},
            "functions": functions,
            "entrypoint": {
                "function_name": entrypoint, "input_serializer": "json", "inputs_base64": "",
                "output_serializer": "json", "output_type_hints_base64": "",
            },
        }  # fmt: skip
        body, content_type = form(
            application=json.dumps(manifest).encode(), code=code(), code_content_type=b"application/zip"
        )
        path = "/v1/namespaces/default/applications"
        self.rest.ask("POST", path, body, headers={"Content-Type": content_type})
        return f"{path}/{entrypoint}"

    def invoke(self: Any, application: str, value: object) -> str:
        """The path of a new request."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        answer = self.rest.ask("POST", application, json.dumps(value).encode(), headers=headers)
        return f"{application}/requests/{answer['request_id']}"

    def finished(self: Any, request: str) -> dict[str, Any]:
        return until(f"the end of {request}", lambda: (found := self.rest.get(request))["outcome"] and found, 90)

    def output(self: Any, request: str) -> Any:
        found = self.finished(request)
        self.assertEqual(found["outcome"], "success", f"{found}\n{self.node.tail()}")
        return json.loads(self.rest.send("GET", f"{request}/output")[1])


class Ends(Program):
    """What users see of the ends of their functions."""

    def test_functions_that_call_each_other(self: Any) -> None:
        application = self.deploy("fan_out", "double")
        self.assertEqual(self.output(self.invoke(application, 5)), 20)
        tail = self.deploy("tail", "double")
        self.assertEqual(self.output(self.invoke(tail, 4)), 8)
        uploads = [str(path) for path in Path(self.site.path).rglob(".*.upload")]
        self.assertEqual(uploads, [])

    def test_every_end_reaches_the_user_and_the_next_request_runs(self: Any) -> None:
        application = self.deploy("misbehave", timeout_sec=2)
        expected = {"raise": "function_error", "exit": "function_error", "sleep": "function_timeout"}
        for how, reason in expected.items():
            found = self.finished(self.invoke(application, how))
            self.assertEqual(found["outcome"], {"failure": reason}, f"{how}: {found}\n{self.node.tail()}")
            self.assertEqual(self.output(self.invoke(application, "fine")), "fine", how)
        found = self.finished(self.invoke(application, "request error"))
        self.assertEqual(found["request_error"]["message"], "not like this")


class Killed(Program):
    """The node is killed with SIGKILL, phase by phase; a new one with the same store takes its place."""

    def test_while_the_container_starts(self: Any) -> None:
        application = self.deploy("slow_import", initialization_timeout_sec=4)
        request = self.invoke(application, "x")
        # The call comes in a command of its own, which may not have arrived when the container is there. Once it is
        # prepared it is in the store; before that the server sends it again to the next life, and nothing was lost.
        waits = lambda: [each["state"] for each in self.node.state()["allocations"]] == ["waiting"]  # noqa: E731
        here = lambda: "starting" in self.states() and waits()  # noqa: E731
        until("a container that starts, and its call", here)
        self.kill_node()
        self.begin_node().ready()
        found = self.finished(request)
        self.assertEqual(found["outcome"], {"failure": "function_timeout"}, self.node.tail())
        self.assertEqual(self.attempts(request), [LOST, "function_timeout"])

    def test_while_it_runs_again_and_again(self: Any) -> None:
        """Twice for free; the third time the call itself is taken to be the cause."""
        application = self.deploy("misbehave")
        request = self.invoke(application, "sleep")
        for lives in range(1, 4):
            seen = lambda lives=lives: self.begun() and len(self.attempts(request)) == lives  # noqa: E731
            until("an attempt that runs", seen, 90)
            self.kill_node()
            self.begin_node().ready()
        self.assertEqual(self.finished(request)["outcome"], {"failure": "function_error"}, self.node.tail())
        self.assertEqual(self.attempts(request), [LOST, LOST, "function_error"])
        self.assertEqual(self.output(self.invoke(application, "fine")), "fine")

    def test_with_an_outcome_that_the_server_has_not_heard(self: Any) -> None:
        application = self.deploy("misbehave")
        self.assertEqual(self.output(self.invoke(application, "fine")), "fine")
        request = self.invoke(application, "nap")
        until("it runs", self.executing)
        self.server.send_signal(signal.SIGSTOP)
        try:
            until("its end", lambda: not self.executing() and self.node.state()["unacknowledged_reports"])
            self.kill_node()
            self.begin_node()
        finally:
            self.server.send_signal(signal.SIGCONT)
        self.node.ready()
        self.assertEqual(self.output(request), "nap")
        self.assertEqual(self.attempts(request), ["success"])

    def begun(self: Any) -> bool:
        """Its store says that an allocation has begun to run. It runs a moment before; a death then is not counted."""
        [store] = (self.site.path / "node").glob("store*.db")
        database = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
        try:
            rows = [json.loads(row) for (row,) in database.execute("SELECT record FROM allocations")]
        finally:
            database.close()
        return any(row["began"] and row["report"] is None for row in rows)

    def executing(self: Any) -> bool:
        return any(each["state"] == "executing" for each in self.node.state()["allocations"])


class StateProtocol(Ends, SynchronousTestCase):
    release = OLD


class EventLog(Ends, SynchronousTestCase):
    release = NEW


class KilledStateProtocol(Killed, SynchronousTestCase):
    release = OLD


class KilledEventLog(Killed, SynchronousTestCase):
    release = NEW
