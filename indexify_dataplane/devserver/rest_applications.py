"""REST routes of applications and requests: deploy, invoke, follow, read the output."""

from __future__ import annotations

import base64
import json
from functools import partial
from typing import Any, BinaryIO

import msgspec
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .engine import Engine
from .errors import Refused
from .events import content_type, failure_text, outcome_json
from .multipart import read_multipart
from .rest import Answer, Call, Pattern, Reply, as_json, gone
from .rest_sandboxes import TENANT, state_text
from .shapes import Manifest
from .state import FunctionRun, Request

log = Logger()

DEPLOY_BYTES = 6 * 1024 * 1024
KEEP_ALIVE_SECS = 1.0
CHUNK_BYTES = 64 * 1024
DEFAULT_NAMESPACE = "default"
JSON, EVENTS = "application/json", "text/event-stream"


class ApplicationRoutes:
    """Binds the routes to an engine; ``clock`` paces the keep-alive comments of event streams.

    Without a namespace in the path, as in the commands that newer SDKs print after a deployment, it is the default one.
    """

    def __init__(self, engine: Engine, clock: Any) -> None:
        self._engine = engine
        self._clock = clock
        self._applications = engine.applications

    def patterns(self) -> list[Pattern]:
        base = TENANT + "/applications"
        requests = base + "/{name}/requests"
        request = requests + "/{request_id}"
        found = [
            Pattern("POST", base, self.deploy),
            Pattern("GET", base, self.list),
            Pattern("GET", base + "/{name}", self.get),
            Pattern("DELETE", base + "/{name}", self.delete),
            Pattern("POST", base + "/{name}", self.invoke),
            Pattern("GET", base + "/{name}/containers", self.containers),
            Pattern("GET", requests, self.list_requests),
            Pattern("GET", request, self.get_request),
            Pattern("DELETE", request, self.delete_request),
            Pattern("GET", request + "/progress", self.progress),
            Pattern("GET", request + "/output/{call_id}", self.call_output),
        ]
        found += [Pattern(method, request + "/output", self.output) for method in ("GET", "HEAD")]
        return found + [
            Pattern(each.method, each.path.removeprefix(TENANT), partial(each.route, namespace=DEFAULT_NAMESPACE))
            for each in found
        ]

    # Applications

    def deploy(self, call: Call, namespace: str) -> Answer:
        body = call.body
        if len(body) > DEPLOY_BYTES:
            raise Refused(413, f"an application may have {DEPLOY_BYTES} bytes in all")
        try:
            parts = read_multipart(call.header("content-type") or "", body)
        except ValueError as error:
            raise Refused(400, str(error)) from error
        if "application" not in parts:
            raise Refused(400, "application manifest is required")
        try:
            manifest = msgspec.json.decode(parts["application"], type=Manifest)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Refused(400, f"bad application manifest: {error}") from error
        kind = parts.get("code_content_type")
        if kind is not None and kind.strip() != b"application/zip":
            raise Refused(400, "code_content_type must be application/zip")
        upgrade = parts.get("upgrade_requests_to_latest_code", b"false").strip()
        if upgrade not in (b"true", b"false"):
            raise Refused(400, "upgrade_requests_to_latest_code must be true or false")
        self._applications.deploy(namespace, manifest, parts.get("code"), upgrade_requests=upgrade == b"true")
        return Reply()

    def list(self, call: Call, namespace: str) -> Answer:
        page, _, cursor = paged(call, self._applications.list_applications(namespace), lambda a: a.name)
        return as_json({"applications": [application.manifest for application in page], "cursor": cursor})

    def get(self, call: Call, namespace: str, name: str) -> Answer:
        return as_json(self._applications.get(namespace, name).manifest)

    def delete(self, call: Call, namespace: str, name: str) -> Answer:
        self._applications.delete(namespace, name)
        return Reply()

    def containers(self, call: Call, namespace: str, name: str) -> Answer:
        found = []
        for container in self._engine.world.containers.values():
            reference = container.description.function
            if not container.is_sandbox and (reference.namespace, reference.application_name) == (namespace, name):
                found.append(
                    {
                        "id": container.id,
                        "application_name": name,
                        "version": reference.application_version,
                        "function_name": reference.function_name,
                        "desired_state": "running" if container.wanted else "terminated",
                        "current_state": state_text(container.state, container.reason),
                        "executor_id": container.executor_id,
                        "created_at_clock": container.created_at_clock,
                    }
                )
        return as_json({"containers": found})

    # Requests

    def invoke(self, call: Call, namespace: str, name: str) -> Answer:
        request = self._applications.invoke(
            namespace,
            name,
            call.body,
            call.header("content-type") or "application/octet-stream",
            call.header("idempotency-key"),
        )
        accept = call.header("accept") or JSON
        if JSON in accept:
            return as_json({"request_id": request.id})
        if EVENTS in accept:
            self._stream(call, request)
            return None
        # The request exists all the same: so does the real server.
        raise Refused(400, f"Accept must name {JSON} or {EVENTS}, not {accept!r}")

    def list_requests(self, call: Call, namespace: str, name: str) -> Answer:
        page, before, after = paged(call, self._applications.list_requests(namespace, name), lambda r: r.id)
        told = [
            {
                "id": request.id,
                "created_at": request.created_at,
                "outcome": outcome_json(request.outcome, request.failure_reason),
                "function_runs_count": len(request.runs),
                "application_version": request.version,
            }
            for request in page
        ]
        return as_json({"requests": told, "prev_cursor": before, "next_cursor": after})

    def get_request(self, call: Call, namespace: str, name: str, request_id: str) -> Answer:
        request = self._applications.get_request(namespace, name, request_id)
        return as_json(
            {
                "id": request.id,
                "outcome": outcome_json(request.outcome, request.failure_reason),
                "failure_reason": failure_text(request.failure_reason) if request.outcome == "failure" else None,
                "application_version": request.version,
                "created_at": request.created_at,
                "request_error": self._error(request),
                "function_runs": [run_json(run) for run in request.runs.values()],
            }
        )

    def _error(self, request: Request) -> dict[str, Any] | None:
        run = request.failed_run
        if run is None or run.request_error is None:
            return None
        try:
            message = self._engine.story.read(run.request_error).decode("utf-8", "replace")
        except OSError as error:
            message = f"the error's text cannot be read: {error}"
        return {"function_name": run.function, "message": message}

    def delete_request(self, call: Call, namespace: str, name: str, request_id: str) -> Answer:
        self._applications.delete_request(namespace, name, request_id)
        return Reply()

    def progress(self, call: Call, namespace: str, name: str, request_id: str) -> Answer:
        self._stream(call, self._applications.get_request(namespace, name, request_id))
        return None

    # Outputs

    def output(self, call: Call, namespace: str, name: str, request_id: str) -> Answer:
        request = self._applications.get_request(namespace, name, request_id)
        value = request.runs[request.id].value
        if value is None:
            return Reply(204)
        return self._send(call, value)

    def call_output(self, call: Call, namespace: str, name: str, request_id: str, call_id: str) -> Answer:
        run = self._applications.get_request(namespace, name, request_id).runs.get(call_id)
        if run is None or run.value is None:
            raise Refused(404, "function call output not found")
        return self._send(call, run.value)

    def _send(self, call: Call, value: pb.DataPayload) -> Answer:
        if not value.uri:
            return Reply(200, b"", content_type(value))
        request = call.request
        length = value.size - value.metadata_size
        if call.method == "HEAD":
            # The real server names the length of the whole payload here, its metadata included.
            request.setHeader("Content-Type", content_type(value))
            request.setHeader("Content-Length", str(value.size))
            request.write(b"")
            request.finish()
            return None
        try:
            blob = self._engine.world.blobs.open(value.uri)
        except OSError as error:
            raise Refused(404, f"the output cannot be read: {error}") from error
        blob.seek(value.offset + value.metadata_size)
        request.setHeader("Content-Type", content_type(value))
        request.setHeader("Content-Length", str(length))
        request.registerProducer(Sending(request, blob, length), False)
        return None

    # Event streams

    def _stream(self, call: Call, request: Request) -> None:
        """Tell what happened so far and what happens until the request is finished."""
        transport = call.request
        transport.setHeader("Content-Type", EVENTS)
        transport.setHeader("Cache-Control", "no-cache")
        keep_alive = LoopingCall(transport.write, b":\n\n")
        keep_alive.clock = self._clock

        def stop() -> None:
            if keep_alive.running:
                keep_alive.stop()
            if tell in request.listeners:
                request.listeners.remove(tell)

        def tell(event: dict[str, Any]) -> None:
            transport.write(b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n")
            if "RequestFinished" in event:
                stop()
                transport.finish()

        transport.write(b"")
        gone(transport).addCallback(lambda _: stop())
        for event in list(request.events):
            tell(event)
        if request.outcome is None:
            request.listeners.append(tell)
            keep_alive.start(KEEP_ALIVE_SECS, now=False)


class Sending:
    """Writes the next ``left`` bytes of a file whenever the connection can take some, then finishes the request."""

    def __init__(self, request: Any, source: BinaryIO, left: int) -> None:
        self._request = request
        self._source = source
        self._left = left

    def resumeProducing(self) -> None:
        chunk = self._source.read(min(CHUNK_BYTES, self._left))
        self._left -= len(chunk)
        if chunk:
            self._request.write(chunk)
        if not chunk or not self._left:
            self.stopProducing()
            self._request.unregisterProducer()
            if self._left:
                log.error("output is shorter than its payload says", missing_bytes=self._left)
                self._request.transport.abortConnection()
            else:
                self._request.finish()

    def stopProducing(self) -> None:
        """The client is gone, or everything was sent."""
        self._source.close()


def paged(call: Call, items: list[Any], key: Any) -> tuple[list[Any], str | None, str | None]:
    """One page by ``limit`` and ``cursor``, and the cursors of the pages before and after (None at the ends)."""
    limit = call.count("limit", 100)
    start = 0
    cursor = call.query("cursor")
    if cursor is not None:
        try:
            wanted = base64.urlsafe_b64decode(cursor).decode()
        except ValueError as error:
            raise Refused(400, "invalid cursor") from error
        start = next((place for place, item in enumerate(items) if key(item) == wanted), len(items))
    if call.query("direction") == "backward":
        start, end = max(0, start - limit), start
    else:
        end = start + limit
    before = encoded(key(items[start])) if start > 0 and start < len(items) else None
    after = encoded(key(items[end])) if end < len(items) else None
    return items[start:end], before, after


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


def run_json(run: FunctionRun) -> dict[str, Any]:
    statuses = {"waiting": "pending"}
    return {
        "id": run.id,
        "name": run.function,
        "application": run.request.application,
        "namespace": run.request.namespace,
        "status": statuses.get(run.status, run.status),
        "outcome": run.outcome or ("undefined" if run.status == "completed" else None),
        "failure_reason": failure_text(run.failure_reason) if run.outcome == "failure" else None,
        "child_function_run_ids": run.children,
        "application_version": run.request.version,
        "created_at": run.created_at_ns,
        "allocations": [
            {
                "id": allocation.id,
                "function_name": run.function,
                "executor_id": allocation.executor_id,
                "container_id": allocation.container_id,
                "created_at": allocation.created_at,
                "outcome": allocation.outcome or "undefined",
                "failure_reason": failure_text(allocation.failure_reason) if allocation.outcome == "failure" else None,
                "attempt_number": allocation.attempt,
                "execution_duration_ms": allocation.duration_ms,
            }
            for allocation in run.allocations
        ],
    }
