"""Function executors in containers of a real engine, the installed program and a server in another process."""

from __future__ import annotations

import os
import unittest
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.engine import require
from tests.executor.image import executor_image
from tests.executor.support import NEW, OLD
from tests.executor.test_program import Ends
from tests.system.harness import Site, until


class InContainers(Ends):
    """What holds for processes holds for containers; blobs go through a bind, and containers outlive their node."""

    def setUp(self: Any) -> None:
        self.engine = require(self)
        self.api = self.engine.client.api
        self.image = executor_image(self.engine, self.release)
        self.site = Site()
        self.addCleanup(self.site.close)
        self.server = self.site.server()
        self.rest = self.server.rest
        self.addCleanup(self.remove_all)
        self.start_node(default_function_image=self.image)

    def start_node(self: Any, **keys: Any) -> None:
        blobs = self.site.path / "blobs"
        driver = {"type": "docker", "address": self.engine.address, "binds": [f"{blobs}:{blobs}"]}
        address = f"http://127.0.0.1:{self.server.grpc_port}"
        config = self.site.config(server_addr=address, function_driver=driver, **keys)
        self.node = self.site.node(config).ready()
        until("the node at the server", self.rest.executors)

    def containers(self: Any) -> dict[str, dict[str, Any]]:
        """Of this site's executors, by the engine's id."""
        found = {}
        for executor in self.rest.executors():
            for each in self.api.containers(all=True, filters={"label": [f"indexify.executor_id={executor}"]}):
                found[each["Id"]] = each
        return found

    def running(self: Any) -> str:
        """The engine's id of the one container, when it runs."""

        def found() -> Any:
            return [identity for identity, each in self.containers().items() if each["State"] == "running"]

        [identity] = until("a running container", found)
        return str(identity)

    def remove_all(self: Any) -> None:
        self.node.kill()
        for identity in self.containers():
            self.api.remove_container(identity, force=True, v=True)

    def says(self: Any, identity: str, text: str) -> None:
        until(f"{text} in its output", lambda: text.encode() in self.api.logs(identity))

    def failure(self: Any, request: str) -> str:
        found = self.finished(request)
        self.assertEqual(list(found["outcome"]), ["failure"], f"{found}\n{self.node.tail()}")
        return str(found["outcome"]["failure"])

    def test_out_of_memory(self: Any) -> None:
        application = self.deploy("misbehave")
        self.assertEqual(self.failure(self.invoke(application, "eat")), "out_of_memory")
        self.assertEqual(self.output(self.invoke(application, "fine")), "fine")

    def test_a_container_that_somebody_kills(self: Any) -> None:
        application = self.deploy("misbehave")
        request = self.invoke(application, "sleep")
        identity = self.running()
        self.says(identity, "begun")
        self.api.kill(identity, signal="SIGKILL")
        self.assertEqual(self.failure(request), "function_error")
        self.assertEqual(self.output(self.invoke(application, "fine")), "fine")

    def test_request_state_and_a_hundred_megabytes_through_the_bind(self: Any) -> None:
        state = self.deploy("remember")
        self.assertEqual(self.output(self.invoke(state, "one")), ["nothing", "oneoneone", "one"])
        caller = self.deploy("measure_grown", "measure")
        self.assertEqual(self.output(self.invoke(caller, 100)), 100 << 20)
        self.assertEqual([str(path) for path in Path(self.site.path).rglob(".*.upload")], [])

    def test_functions_that_cannot_be_loaded(self: Any) -> None:
        broken = self.deploy("broken_import")
        self.assertEqual(self.failure(self.invoke(broken, "x")), "function_error")
        slow = self.deploy("slow_import", initialization_timeout_sec=1)
        self.assertEqual(self.failure(self.invoke(slow, "x")), "function_timeout")
        said = [event["error"] for event in self.node.events("container terminated")]
        self.assertIn("no_such_module_anywhere", "".join(said))

    def test_an_idle_container_is_taken_over_by_the_next_node(self: Any) -> None:
        application = self.deploy("misbehave")
        self.assertEqual(self.output(self.invoke(application, "fine")), "fine")
        identity = self.running()
        self.kill_node()
        self.start_node(default_function_image=self.image)
        self.assertEqual(self.output(self.invoke(application, "fine")), "fine")
        self.assertEqual(self.running(), identity)

    def test_a_busy_container_ends_with_what_it_ran(self: Any) -> None:
        application = self.deploy("misbehave", timeout_sec=4)
        request = self.invoke(application, "sleep")
        identity = self.running()
        self.says(identity, "begun")
        self.kill_node()
        self.start_node(default_function_image=self.image)
        until("another container", lambda: self.containers() and identity not in self.containers())
        self.assertEqual(self.failure(request), "function_timeout")
        [run] = self.rest.get(request)["function_runs"]
        self.assertEqual(len(run["allocations"]), 2, run)
        self.assertEqual(self.output(self.invoke(application, "fine")), "fine")


ALL = unittest.skipUnless(
    os.environ.get("INDEXIFY_ALL_EXECUTORS") == "1", "the matrix in containers is switched on by scripts/test --all"
)


@ALL
class StateProtocol(InContainers, SynchronousTestCase):
    release = OLD


@ALL
class EventLog(InContainers, SynchronousTestCase):
    release = NEW


del Ends
