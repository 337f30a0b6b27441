"""What REST clients can do with applications and their requests, without HTTP. Actions fail with Refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import msgspec

from indexify_dataplane.wireproto import executor_api_pb2 as pb

from .errors import Refused
from .events import ENCODINGS
from .fleet import Fleet
from .runs import Runs
from .sandbox_actions import Body, checked_resources, shaped
from .shapes import Manifest, SandboxResources
from .state import Application, Request, Version, World

REQUEST_ID = re.compile(r"[0-9A-Za-z_.:-]{1,36}")
NAME = re.compile(r"[0-9A-Za-z_.-]+")


class ApplicationActions:
    """Applications, requests and their outputs."""

    def __init__(self, *, world: World, fleet: Fleet, runs: Runs, settle: Callable[[], None]) -> None:
        self._world = world
        self._fleet = fleet
        self._runs = runs
        self._settle = settle

    def deploy(
        self, namespace: str, body: Body | Manifest, code: bytes | None = None, *, upgrade_requests: bool = False
    ) -> Application:
        """A new application, or a new version of one. ``upgrade_requests`` moves open requests to it."""
        try:
            manifest = shaped(body, Manifest)
        except Refused as error:
            raise Refused(400, f"bad application manifest: {error.message}") from error
        self._check(manifest, code)
        self._world.touch_namespace(namespace)
        known = self._world.applications.get((namespace, manifest.name))
        now = self._world.now_ms()
        application = known or Application(namespace, manifest.name, now, "")
        version = manifest.version or self._world.fresh_id()
        deployed: dict[str, Any] = msgspec.to_builtins(manifest)
        deployed.update(
            namespace=namespace, version=version, created_at=application.created_at, state="active", tombstoned=False
        )
        application.versions[version] = Version(deployed, self._store_code(namespace, code) if code else None)
        before, application.current = application.current, version
        self._world.applications[(namespace, manifest.name)] = application
        if before and before != version:
            self._retire(application, before)
        if upgrade_requests:
            self._upgrade(application)
        self._world.stirred = True
        self._settle()
        return application

    def _check(self, manifest: Manifest, code: bytes | None) -> None:
        if not NAME.fullmatch(manifest.name):
            raise Refused(400, f"application name {manifest.name!r} has characters other than 0-9 A-Z a-z _ . -")
        for key, function in manifest.functions.items():
            if key != function.name:
                raise Refused(400, f"function {key!r} is named {function.name!r} in its own entry")
            checked_resources(msgspec.convert(msgspec.to_builtins(function.resources), SandboxResources))
        if not manifest.functions:
            return
        if not code:
            raise Refused(400, "code is required")
        if manifest.entrypoint is None:
            raise Refused(400, "entrypoint is required")
        if manifest.entrypoint.function_name not in manifest.functions:
            raise Refused(400, f"entrypoint function {manifest.entrypoint.function_name!r} is not in functions")

    def _store_code(self, namespace: str, code: bytes) -> pb.DataPayload:
        uri = self._world.blobs.write(f"{namespace}_{self._world.fresh_id()}", code)
        return pb.DataPayload(
            uri=uri,
            size=len(code),
            sha256_hash=sha256(code).hexdigest(),
            encoding=pb.DATA_PAYLOAD_ENCODING_BINARY_ZIP,
            encoding_version=0,
            offset=0,
            metadata_size=0,
            content_type="application/zip",
            id=self._world.fresh_id(),
        )

    def _retire(self, application: Application, version: str) -> None:
        """Idle containers of an older version are not needed; busy ones end when they are idle."""
        for container in self._world.containers.values():
            reference = container.description.function
            if (
                not container.is_sandbox
                and (reference.namespace, reference.application_name, reference.application_version)
                == (application.namespace, application.name, version)
                and not container.allocations
            ):
                self._world.idle[container.id] = container

    def _upgrade(self, application: Application) -> None:
        for request in self._requests(application.namespace, application.name):
            if request.outcome is None:
                waiting = [run for run in request.runs.values() if run.status == "pending"]
                for run in waiting:
                    self._runs.unqueue(run)
                request.version = application.current
                for run in waiting:
                    self._runs.queue(run)

    def get(self, namespace: str, name: str, message: str = "Application not found") -> Application:
        application = self._world.applications.get((namespace, name))
        if application is None:
            raise Refused(404, message)
        return application

    def list_applications(self, namespace: str) -> list[Application]:
        return [a for a in self._world.applications.values() if a.namespace == namespace]

    def delete(self, namespace: str, name: str) -> None:
        """Remove the application, its requests and its containers; an unknown one is fine."""
        if self._world.applications.pop((namespace, name), None) is None:
            return
        for request in self._requests(namespace, name):
            self._runs.discard(request)
        for container in list(self._world.containers.values()):
            reference = container.description.function
            is_its = (reference.namespace, reference.application_name) == (namespace, name)
            if is_its and container.wanted and not container.is_sandbox:
                self._fleet.unwant(container)
        self._settle()

    # Requests

    def invoke(
        self,
        namespace: str,
        name: str,
        body: bytes,
        content_type: str = "application/octet-stream",
        request_id: str | None = None,
    ) -> Request:
        """Call the application's entrypoint with one argument. ``request_id`` makes a repetition a conflict (409)."""
        application = self.get(namespace, name, "application not found")
        entrypoint = application.manifest["entrypoint"]
        if entrypoint is None:
            raise Refused(400, "application has no entrypoint")
        if request_id is not None and not REQUEST_ID.fullmatch(request_id):
            raise Refused(400, "Idempotency-Key must have 1 to 36 characters of 0-9 A-Z a-z _ . : -")
        chosen = request_id or self._world.fresh_id()
        if (namespace, name, chosen) in self._world.requests:
            raise Refused(409, "request id already exists")
        function = entrypoint["function_name"]
        if function not in application.manifest["functions"]:
            raise Refused(404, f"entrypoint function {function} not found")
        uri = self._world.blobs.write(f"{namespace}/{name}/{chosen}/input", body)
        payload = pb.DataPayload(
            uri=uri,
            size=len(body),
            sha256_hash=sha256(body).hexdigest(),
            encoding=ENCODINGS.get(content_type.partition(";")[0].strip(), pb.DATA_PAYLOAD_ENCODING_RAW),
            encoding_version=0,
            offset=0,
            metadata_size=0,
            content_type=content_type,
            id=self._world.fresh_id(),
        )
        request = Request(chosen, namespace, name, application.current, self._world.now_ms())
        self._runs.start(request, function, payload)
        self._settle()
        return request

    def get_request(self, namespace: str, name: str, request_id: str) -> Request:
        request = self._world.requests.get((namespace, name, request_id))
        if request is None:
            raise Refused(404, "request not found")
        return request

    def list_requests(self, namespace: str, name: str) -> list[Request]:
        """The application's requests, the newest first."""
        return self._requests(namespace, name)[::-1]

    def _requests(self, namespace: str, name: str) -> list[Request]:
        return [r for r in self._world.requests.values() if (r.namespace, r.application) == (namespace, name)]

    def delete_request(self, namespace: str, name: str, request_id: str) -> None:
        """Give the request up and forget it; an unknown one is fine."""
        request = self._world.requests.get((namespace, name, request_id))
        if request is not None:
            self._runs.discard(request)
            self._settle()
