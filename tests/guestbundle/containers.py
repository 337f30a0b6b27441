"""The real daemon as the first process of a container: started from the bundle, driven through its HTTP API."""

from __future__ import annotations

import http.client
import json
import threading
import time
import unittest
from collections.abc import Callable, Sequence
from typing import Any

from indexify_dataplane.guestbundle import MOUNT_POINT, Bundle, container_environment
from tests.engine import Engine

READY_SECONDS = 30.0


def until(condition: Callable[[], Any], what: str, seconds: float = 10.0) -> Any:
    """The first true value of ``condition``, asked every 5 ms: a container has no event to wait for from outside."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s")
        pause.wait(0.005)
    return value


class Guest:
    """One container. ``options`` go to the engine's host configuration; ``bind`` is what is mounted, by default the
    bundle's folder; ``scratch`` a directory of the host that is mounted at its own path, writable."""

    def __init__(
        self,
        engine: Engine,
        bundle: Bundle,
        image: str,
        *,
        entrypoint: Sequence[str] = (),
        arguments: Sequence[str] = (),
        user: str | None = None,
        environment: dict[str, str] | None = None,
        bind: str | None = None,
        scratch: str | None = None,
        **options: Any,
    ) -> None:
        self._engine, self.bundle = engine, bundle
        api = engine.client.api
        image_env = api.inspect_image(image)["Config"].get("Env") or []
        daemon = ["--log-dir", "/var/log/indexify", *arguments, *(["--", *entrypoint] if entrypoint else [])]
        binds = [f"{bind or bundle.path}:{MOUNT_POINT}:ro", *([f"{scratch}:{scratch}"] if scratch else [])]
        self.id: str = api.create_container(
            image,
            entrypoint=list(bundle.command()),
            command=daemon,
            user=user,
            environment=container_environment(image_env, environment),
            host_config=api.create_host_config(binds=binds, **options),
        )["Id"]

    def start(self) -> None:
        api = self._engine.client.api
        api.start(self.id)
        self.address = api.inspect_container(self.id)["NetworkSettings"]["IPAddress"]

    def ready(self) -> None:
        """Wait for the first 200 from the health route."""
        until(self.healthy, "the daemon answers its health route", READY_SECONDS)

    def healthy(self) -> bool:
        try:
            return self.request("GET", "/api/v1/health")[0] == 200
        except OSError as error:
            state = self._engine.client.api.inspect_container(self.id)["State"]
            if not state["Running"]:
                raise AssertionError(f"the daemon ended with {state['ExitCode']}: {self.logs()}") from error
            return False

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(self.address, 9501, timeout=10)
        try:
            encoded = None if body is None else json.dumps(body)
            connection.request(method, path, encoded, {} if body is None else {"Content-Type": "application/json"})
            reply = connection.getresponse()
            content = reply.read()
            return reply.status, json.loads(content) if content else None
        finally:
            connection.close()

    def ended(self, pid: int) -> Any:
        def finished() -> Any:
            info = self.request("GET", f"/api/v1/processes/{pid}")[1]
            return info if info["status"] != "running" else None

        return until(finished, f"process {pid} ends", 30)

    def run(self, *argv: str, **request: Any) -> tuple[Any, list[str]]:
        """Start a process, wait for its end; its last state and its output."""
        order = {"command": argv[0], "args": list(argv[1:]), **request}
        status, started = self.request("POST", "/api/v1/processes", order)
        if status != 201:
            raise AssertionError(f"{argv[0]} was not started: {status} {started}")
        info = self.ended(started["pid"])
        return info, self.request("GET", f"/api/v1/processes/{started['pid']}/output")[1]["lines"]

    def python(self, code: str, **request: Any) -> tuple[Any, list[str]]:
        """Run ``code`` in the bundle's own interpreter, which is there in every image."""
        return self.run(*self.bundle.interpreter(), "-c", code, **request)

    def stop(self, seconds: int = 10) -> int:
        """The exit code after the engine's SIGTERM, and SIGKILL ``seconds`` later."""
        self._engine.client.api.stop(self.id, timeout=seconds)
        return int(self._engine.client.api.wait(self.id, timeout=seconds + 10)["StatusCode"])

    def logs(self) -> str:
        return str(self._engine.client.api.logs(self.id).decode(errors="replace"))

    def remove(self) -> None:
        self._engine.client.api.remove_container(self.id, force=True, v=True)


def guest(test: unittest.TestCase, engine: Engine, bundle: Bundle, image: str, **wanted: Any) -> Guest:
    """A started and answering daemon, removed when the test ends."""
    made = Guest(engine, bundle, image, **wanted)
    test.addCleanup(made.remove)
    made.start()
    made.ready()
    return made
