"""A small image registry on loopback (the pull side of the registry HTTP API, version 2), which an engine takes without
TLS. It can ask for credentials, hold answers back, fail, and count what was asked.

    registry = Registry.start(test)
    reference = registry.push("tools/busybox", "1", busybox_layer())
    registry.hold("/blobs/")     # pulls now hang in the middle ...
    registry.release()           # ... and go on
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def native_architecture() -> str:
    """This machine's, as images spell it."""
    machine = os.uname().machine
    return ARCHITECTURES.get(machine, machine)


def _digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Registry:
    """One registry; ``address`` is ``127.0.0.1:PORT``, the first part of references to its images.

    ``credentials`` are a name and a password without which every request is answered 401.
    """

    def __init__(self, *, credentials: tuple[str, str] | None = None) -> None:
        self.credentials = credentials
        self.asked: list[tuple[str, str]] = []
        """Method and path of every request, in order; those that were refused included."""
        self.attempts: list[str] = []
        """Every ``name:password`` that was shown."""
        self._blobs: dict[str, bytes] = {}
        self._manifests: dict[tuple[str, str], bytes] = {}
        self._failures: dict[str, int] = {}
        self._held = ""
        self._open = threading.Event()
        self._open.set()
        self.reached_hold = threading.Event()
        """Set once a request waits where ``hold`` told it to."""
        registry = self

        class Request(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                registry._answer(self)

            do_HEAD = do_GET

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Request)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="registry", daemon=True)
        self._thread.start()
        self.address = f"127.0.0.1:{self._server.server_port}"

    @classmethod
    def start(cls, test: Any, **options: Any) -> Registry:
        """One that ends with the test."""
        registry = cls(**options)
        test.addCleanup(registry.stop)
        return registry

    def stop(self) -> None:
        self._open.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def push(
        self, name: str, tag: str, layers: bytes | Sequence[bytes], *, architecture: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> str:  # fmt: skip
        """Offer an image made of tar archives; its reference. ``config`` has keys such as ``Env`` or ``Cmd``."""
        archives = [layers] if isinstance(layers, bytes) else list(layers)
        described = json.dumps(
            {
                "architecture": architecture or native_architecture(),
                "os": "linux",
                "config": dict(config or {}),
                "rootfs": {"type": "layers", "diff_ids": [_digest(archive) for archive in archives]},
                "history": [{"created_by": "tests"} for _ in archives],
            }
        ).encode()
        packed = [gzip.compress(archive, 1, mtime=0) for archive in archives]
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": self._entry(described, CONFIG),
                "layers": [self._entry(layer, LAYER) for layer in packed],
            }
        ).encode()
        self._manifests[name, tag] = self._manifests[name, _digest(manifest)] = manifest
        return f"{self.address}/{name}:{tag}"

    def _entry(self, content: bytes, kind: str) -> dict[str, Any]:
        digest = _digest(content)
        self._blobs[digest] = content
        return {"mediaType": kind, "size": len(content), "digest": digest}

    def fail(self, part: str, status: int) -> None:
        """Answer every request whose path contains ``part`` with this status."""
        self._failures[part] = status

    def heal(self) -> None:
        self._failures.clear()

    def hold(self, part: str) -> None:
        """Let requests whose path contains ``part`` wait until ``release``."""
        self.reached_hold.clear()
        self._held = part
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def count(self, part: str, method: str = "GET") -> int:
        """Requests so far with ``part`` in their path."""
        return sum(part in path and method == each for each, path in self.asked)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path
        self.asked.append((request.command, path))
        if self.credentials is not None and not self._known(request.headers.get("Authorization", "")):
            self._send(request, 401, b"", {"WWW-Authenticate": 'Basic realm="tests"'})
            return
        for part, status in self._failures.items():
            if part in path:
                self._refuse(request, status, "UNAVAILABLE", "told to fail")
                return
        if not self._open.is_set() and self._held in path:
            self.reached_hold.set()
            self._open.wait()
        if path in ("/v2/", "/v2"):
            self._send(request, 200, b"{}", {"Docker-Distribution-Api-Version": "registry/2.0"})
            return
        name, kind, reference = self._split(path)
        content = self._manifests.get((name, reference)) if kind == "manifests" else self._blobs.get(reference)
        if content is None:
            unknown = "MANIFEST_UNKNOWN" if kind == "manifests" else "BLOB_UNKNOWN"
            self._refuse(request, 404, unknown, f"{reference} is not known")
            return
        media = MANIFEST if kind == "manifests" else "application/octet-stream"
        self._send(request, 200, content, {"Content-Type": media, "Docker-Content-Digest": _digest(content)})

    @staticmethod
    def _split(path: str) -> tuple[str, str, str]:
        rest, _, reference = path.removeprefix("/v2/").rpartition("/")
        name, _, kind = rest.rpartition("/")
        return name, kind, reference

    def _known(self, header: str) -> bool:
        scheme, _, text = header.partition(" ")
        if scheme.lower() != "basic":
            return False
        shown = base64.b64decode(text).decode(errors="replace")
        self.attempts.append(shown)
        return self.credentials is not None and shown == ":".join(self.credentials)

    def _refuse(self, request: BaseHTTPRequestHandler, status: int, code: str, message: str) -> None:
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self._send(request, status, body, {"Content-Type": "application/json"})

    def _send(
        self, request: BaseHTTPRequestHandler, status: int, body: bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        try:
            request.send_response(status)
            for name, value in (headers or {}).items():
                request.send_header(name, value)
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            if request.command != "HEAD":
                request.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # a pull that was given up
