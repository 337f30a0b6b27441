"""REST routes of image builds, and of the builders that stand in for the sandboxes in which SDKs build."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from msgspec import Struct, field

from .engine import Engine
from .errors import Refused
from .image_builds import BUILDER_IMAGE, KEPT_BYTES, Builder, ImageBuilds, Run
from .rest import Answer, Call, Pattern, Reply, as_json
from .rest_sandboxes import TENANT, SandboxRoutes

BUILDS = "/platform/v1/sandbox-template-builds"
BUILDER = "/image-builders/{builder_id}/api/v1"
EVENTS = "text/event-stream"


class WantedImage(Struct):
    """Body of POST sandbox-template-builds."""

    name: str
    dockerfile: str = ""
    public: bool = False


class WantedSandbox(Struct):
    """What tells a builder from any other sandbox."""

    image: str | None = None


class Command(Struct):
    """Body of POST …/processes, as far as a builder looks at it."""

    command: str
    args: list[str] = field(default_factory=list)


class ImageBuildRoutes:
    """Its patterns stand before those of ``sandboxes``, which get every sandbox that is no builder."""

    def __init__(self, engine: Engine, builds: ImageBuilds, sandboxes: SandboxRoutes) -> None:
        self._engine = engine
        self._builds = builds
        self._sandboxes = sandboxes

    def patterns(self) -> list[Pattern]:
        sandbox = TENANT + "/sandboxes/{sandbox_id}"
        process = BUILDER + "/processes/{pid}"
        return [
            Pattern("POST", BUILDS, self.prepare),
            Pattern("POST", BUILDS + "/{build_id}/complete", self.complete),
            Pattern("POST", TENANT + "/sandboxes", self.create),
            Pattern("GET", sandbox, self.get),
            Pattern("DELETE", sandbox, self.delete),
            Pattern("GET", BUILDER + "/health", self.health),
            Pattern("POST", BUILDER + "/processes", self.start),
            Pattern("GET", BUILDER + "/processes", self.list),
            Pattern("POST", BUILDER + "/processes/run", self.run),
            Pattern("GET", process, self.process),
            Pattern("GET", process + "/output/follow", self.follow),
            Pattern("PUT", BUILDER + "/files", self.write, any_size=True),
            Pattern("GET", BUILDER + "/files", self.read),
            Pattern("DELETE", BUILDER + "/files", self.remove),
        ]

    # Builds

    def prepare(self, call: Call) -> Answer:
        wanted = call.shaped(WantedImage)
        return as_json(self._builds.prepare(wanted.name, wanted.dockerfile, wanted.public))

    def complete(self, call: Call, build_id: str) -> Answer:
        return as_json(self._builds.complete(build_id, call.shaped(dict[str, Any])))

    # The sandbox that a client asks for

    def create(self, call: Call, namespace: str) -> Answer:
        try:
            image = msgspec.json.decode(call.body, type=WantedSandbox).image
        except (msgspec.DecodeError, UnicodeDecodeError):
            image = None  # what is wrong with it is said by the other route
        if image != BUILDER_IMAGE:
            return self._sandboxes.create(call, namespace)
        builder = self._builds.open(namespace)
        return as_json({"sandbox_id": builder.id, "status": "running", "sandbox_url": url(call, builder)})

    def get(self, call: Call, namespace: str, sandbox_id: str) -> Answer:
        builder = self._builds.builder(sandbox_id)
        if builder is None or builder.namespace != namespace:
            return self._sandboxes.get(call, namespace, sandbox_id)
        resources = {"cpus": 0.0, "memory_mb": 0, "ephemeral_disk_mb": 0, "disk_mb": 0}
        return as_json(
            {
                "id": builder.id,
                "namespace": namespace,
                "image": BUILDER_IMAGE,
                "status": "running",
                "created_at": builder.created_at,
                "resources": resources,
                "timeout_secs": 0,
                "sandbox_url": url(call, builder),
            }
        )

    def delete(self, call: Call, namespace: str, sandbox_id: str) -> Answer:
        builder = self._builds.builder(sandbox_id)
        if builder is None or builder.namespace != namespace:
            return self._sandboxes.delete(call, namespace, sandbox_id)
        self._builds.close(sandbox_id)
        return Reply()

    # Inside the builder

    def _builder(self, builder_id: str) -> Builder:
        builder = self._builds.builder(builder_id)
        if builder is None:
            raise Refused(404, "Sandbox not found")
        return builder

    def _run(self, builder_id: str, pid: str) -> Run:
        for run in self._builder(builder_id).runs:
            if str(run.pid) == pid:
                return run
        raise Refused(404, f"process {pid} not found")

    def health(self, call: Call, builder_id: str) -> Answer:
        self._builder(builder_id)
        return as_json({"healthy": True})

    def start(self, call: Call, builder_id: str) -> Answer:
        return as_json(run_json(self._begin(call, builder_id)), 201)

    def _begin(self, call: Call, builder_id: str) -> Run:
        order = call.shaped(Command)
        return self._builder(builder_id).start(order.command, order.args, self._engine.world.now_ms())

    def list(self, call: Call, builder_id: str) -> Answer:
        return as_json({"processes": [run_json(run) for run in self._builder(builder_id).runs]})

    def run(self, call: Call, builder_id: str) -> Answer:
        run = self._begin(call, builder_id)
        begun = event("started", {"pid": run.pid, "started_at": run.at_ms})
        ended = event("exit", {"exit_code": run.exit_code, "oom_killed": False, "reason": "exited"})
        return Reply(200, begun + output(run) + ended, EVENTS)

    def process(self, call: Call, builder_id: str, pid: str) -> Answer:
        return as_json(run_json(self._run(builder_id, pid)))

    def follow(self, call: Call, builder_id: str, pid: str) -> Answer:
        return Reply(200, output(self._run(builder_id, pid)) + event("eof", {}), EVENTS)

    def write(self, call: Call, builder_id: str) -> Answer:
        builder = self._builder(builder_id)
        if call.size <= KEPT_BYTES:
            builder.files[path(call)] = call.body
        return Reply(204)

    def read(self, call: Call, builder_id: str) -> Answer:
        content = self._builder(builder_id).files.get(path(call))
        if content is None:
            raise Refused(404, f"file not found: {path(call)}")
        return Reply(200, content, "application/octet-stream")

    def remove(self, call: Call, builder_id: str) -> Answer:
        self._builder(builder_id).files.pop(path(call), None)
        return Reply(204)


def url(call: Call, builder: Builder) -> str:
    """Where the client that asked reaches the builder: at this server, below a path of its own."""
    return f"http://{call.header('host')}/image-builders/{builder.id}"


def path(call: Call) -> str:
    named = call.query("path")
    if not named:
        raise Refused(400, "path is required")
    return named


def run_json(run: Run) -> dict[str, Any]:
    return {
        "pid": run.pid,
        "status": "exited",
        "exit_code": run.exit_code,
        "signal": None,
        "stdin_writable": False,
        "command": run.command,
        "args": run.args,
        "started_at": run.at_ms,
        "ended_at": run.at_ms,
    }


def output(run: Run) -> bytes:
    told = [("stdout", line) for line in run.stdout] + [("stderr", line) for line in run.stderr]
    return b"".join(event("output", {"line": line, "stream": stream, "timestamp": run.at_ms}) for stream, line in told)


def event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
