"""The installed program from outside: child processes, HTTP, log lines and the host's process table.

A ``Site`` is one temporary directory with everything that a test started in it; when it is closed, whatever is left of
that is ended by its pid. Waiting is polling with a deadline, for something that was seen to happen.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.network.leftovers import executors_below, forget_nodes

BIN = Path(sys.executable).parent
PROGRAM = str(BIN / "indexify-dataplane")
PATIENCE = 30.0
"""Seconds for what usually takes a fraction of one; machines that run tests are busy."""

FIRST_START = 120.0
"""Seconds for a node's start: the first one with a Docker driver packs the guest bundle, which keeps a core busy."""

HUMAN_LINE = re.compile(r"\S+Z +[A-Z]+ \S+: (.*)$")
FIELD = re.compile(r' (\w+)=("(?:[^"\\]|\\.)*"|\S+)')

SMALL = {"cpus": 0.1, "memory_mb": 16, "ephemeral_disk_mb": 16}
ROOMY = {"cpu_count": 64, "memory_bytes": 64 << 30, "disk_bytes": 1 << 40}


class NotSeen(AssertionError):
    """Something did not happen in time; the text says what was there instead."""


def until(what: str, ask: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Ask until the answer is true, and give it."""
    deadline = time.monotonic() + seconds
    problem: Exception | None = None
    answer = None
    while True:
        try:
            answer = ask()
            problem = None
        except (OSError, http.client.HTTPException, KeyError) as error:
            problem = error
        if answer and problem is None:
            return answer
        if time.monotonic() > deadline:
            raise NotSeen(f"{what} was not seen within {seconds:g} s; the last answer: {problem or answer!r}")
        time.sleep(0.02)


class Http:
    """One server on this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def send(
        self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None, timeout: float = 30
    ) -> tuple[int, bytes]:
        """Status and body. ``body``: bytes as they are, anything else as JSON."""
        sent = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def ask(self, method: str, path: str, body: Any = None, *, expected: int = 200, **options: Any) -> Any:
        status, answer = self.send(method, path, body, **options)
        assert status == expected, f"{method} {path} answered {status} instead of {expected}: {answer[:500]!r}"
        return json.loads(answer) if answer.startswith((b"{", b"[")) else answer

    def get(self, path: str, **options: Any) -> Any:
        return self.ask("GET", path, **options)


class Child:
    """A process in a session of its own, its output in files."""

    def __init__(self, command: Sequence[str], *, log: Path, cwd: Path, env: Mapping[str, str] | None = None) -> None:
        self.command = list(command)
        self.log = log
        self.errors = log.with_suffix(".err")
        with open(log, "ab") as out, open(self.errors, "ab") as errors:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, cwd=cwd, start_new_session=True,
                env={**os.environ, "PYTHONDEVMODE": "", **(env or {})},
            )  # fmt: skip
        self.began = time.monotonic()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    def signal_group(self, number: int) -> None:
        os.killpg(self.pid, number)

    def wait(self, seconds: float = PATIENCE) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise NotSeen(f"{self.command} did not end within {seconds:g} s; {self.tail()}") from error

    def stop(self, number: int = signal.SIGTERM, seconds: float = PATIENCE) -> int:
        """Signal it and wait; the exit code."""
        self.send_signal(number)
        return self.wait(seconds)

    def kill(self) -> None:
        if self.alive:
            self.process.kill()
        self.process.wait(PATIENCE)

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def said_on_stderr(self) -> str:
        return self.errors.read_text(errors="replace")

    def tail(self) -> str:
        return f"its log ends:\n{self.said[-3000:]}\n{self.said_on_stderr[-2000:]}"


class Server(Child):
    """The embedded control plane alone."""

    def __init__(
        self, directory: Path, *, grpc_port: int = 0, rest_port: int = 0, queue_size: int | None = None
    ) -> None:
        ports = directory / "server-ports.json"
        ports.unlink(missing_ok=True)
        command = [
            sys.executable, "-m", "indexify_dataplane.devserver", "--port-file", str(ports),
            "--grpc-port", str(grpc_port), "--rest-port", str(rest_port), "--sandbox-proxy-port", "-1",
            "--blob-dir", str(directory / "blobs"),
            *(["--queue-size", str(queue_size)] if queue_size else []),
        ]  # fmt: skip
        super().__init__(command, log=directory / "server.log", cwd=directory)
        until("the server's ports", lambda: ports.exists() or self._ended())
        told = json.loads(ports.read_text())
        self.grpc_port = told["grpc"]
        self.rest = Rest(told["rest"])

    def _ended(self) -> bool:
        if not self.alive:
            raise NotSeen(f"the server ended with {self.process.returncode}; {self.tail()}")
        return False


class Rest(Http):
    """The server as its clients see it."""

    base = "/v1/namespaces/default/sandboxes"

    def create(self, **wish: Any) -> str:
        return str(self.ask("POST", self.base, {"resources": SMALL, **wish})["sandbox_id"])

    def delete(self, sandbox: str) -> None:
        self.ask("DELETE", f"{self.base}/{sandbox}")

    def sandbox(self, sandbox: str) -> dict[str, Any]:
        return dict(self.get(f"{self.base}/{sandbox}"))

    def sandboxes(self) -> dict[str, dict[str, Any]]:
        return {each["id"]: each for each in self.get(self.base)["sandboxes"]}

    def executors(self) -> dict[str, dict[str, Any]]:
        return {each["id"]: each for each in self.get("/internal/executors")}

    def running(self, *sandboxes: str, seconds: float = PATIENCE) -> None:
        """Wait until they run."""
        for sandbox in sandboxes:
            until(f"sandbox {sandbox} running", lambda each=sandbox: self._status(each, "running"), seconds)

    def ended(self, *sandboxes: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """Wait until they are over; their outcomes."""
        for sandbox in sandboxes:
            until(f"sandbox {sandbox} terminated", lambda each=sandbox: self._status(each, "terminated"), seconds)
        known = self.sandboxes()
        return {sandbox: known[sandbox]["outcome"] for sandbox in sandboxes}

    def _status(self, sandbox: str, wanted: str) -> bool:
        found = self.sandbox(sandbox)
        if wanted == "running" and found["status"] == "terminated":
            raise NotSeen(f"sandbox {sandbox} has ended: {found}")
        return bool(found["status"] == wanted)


class Answer:
    """What the proxy said of a sandbox's health; true if the sandbox itself said it."""

    def __init__(self, sandbox: str, status: int, body: bytes) -> None:
        self._sandbox, self._status, self._body = sandbox, status, body

    def __bool__(self) -> bool:
        return self._status == 200

    def __repr__(self) -> str:
        return f"{self._status} for sandbox {self._sandbox}: {self._body[:300].decode(errors='replace')}"


class Node(Child):
    """A node; ``ready`` waits until it has started and knows its ports."""

    def __init__(self, site: Site, config: Path, *, name: str, command: Sequence[str] | None = None, **options: Any):
        self.config_file = config
        self.executor_id = ""
        options.setdefault("cwd", site.path)
        super().__init__(command or [PROGRAM, "--config", str(config)], log=site.path / f"{name}.log", **options)
        self._skip = self.log.stat().st_size  # what an earlier node with this name wrote
        self._skip_errors = self.errors.stat().st_size

    @property
    def said(self) -> str:
        with open(self.log, "rb") as file:
            file.seek(self._skip)
            return file.read().decode(errors="replace")

    @property
    def said_on_stderr(self) -> str:
        with open(self.errors, "rb") as file:
            file.seek(self._skip_errors)
            return file.read().decode(errors="replace")

    def events(self, message: str | None = None) -> list[dict[str, Any]]:
        """The log's events as their fields, in either format: all, or those with this message."""
        found = []
        for line in self.said.splitlines():
            if line.startswith("{") and line.endswith("}"):
                found.append(dict(json.loads(line)["fields"]))
            elif text := HUMAN_LINE.match(line):
                fields = {name: value.strip('"') for name, value in FIELD.findall(text[1])}
                found.append({"message": FIELD.split(text[1])[0], **fields})
        return [each for each in found if message in (None, each["message"])]

    def event(self, message: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """The first event with this message, when it was said."""

        def found() -> Any:
            said = self.events(message)
            if not said and not self.alive:
                raise NotSeen(f"the node ended with {self.process.returncode} before {message!r}; {self.tail()}")
            return said

        return dict(until(f"{message!r} in the node's log", found, seconds)[0])

    def ready(self, seconds: float = FIRST_START) -> Node:
        self.executor_id = str(self.event("node started", seconds)["executor_id"])
        self.monitoring = Http(int(self.event("monitoring is listening")["port"]))
        self.proxy = Http(int(self.event("Starting HTTP proxy server")["listen_addr"].rpartition(":")[2]))
        until("the node ready", lambda: self.monitoring.send("GET", "/ready")[0] == 200, seconds)
        return self

    def state(self) -> dict[str, Any]:
        return dict(self.monitoring.get("/state"))

    def containers(self) -> dict[str, str]:
        """State by id."""
        return {each["id"]: each["state"] for each in self.state()["containers"]}

    def answers(self, sandbox: str, **options: Any) -> Answer:
        """Whether traffic through the proxy reaches the sandbox."""
        headers = {"Tensorlake-Sandbox-Id": sandbox}
        return Answer(sandbox, *self.proxy.send("GET", "/api/v1/health", headers=headers, **options))


class Site:
    """One temporary directory and all that was started there."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="indexify-system-"))
        self._children: list[Child] = []

    def config(self, name: str = "node", /, **keys: Any) -> Path:
        """A configuration file for a node of its own: JSON logs, free ports, a directory below this one."""
        loopback = {"port": 0, "listen_addr": "127.0.0.1"}
        content = {
            "env": "test", "server_addr": "http://127.0.0.1:1",
            "state_dir": str(self.path / name), "fork_exec": {"allow_unisolated": True},
            "http_proxy": loopback, "monitoring": loopback, "resource_overrides": ROOMY, "stop_grace_secs": 1.0,
            "function_executor": {"code_cache_path": str(self.path / name / "code")}, **keys,
        }  # fmt: skip
        path = self.path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return path

    def server(self, **options: Any) -> Server:
        server = Server(self.path, **options)
        self._children.append(server)
        return server

    def node(self, config: Path, **options: Any) -> Node:
        node = Node(self, config, **{"name": config.stem, **options})
        self._children.append(node)
        return node

    def run(self, *command: str, seconds: float = PATIENCE, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            command, cwd=options.pop("cwd", self.path), capture_output=True, text=True, timeout=seconds, check=False,
            start_new_session=True, **options,
        )  # fmt: skip

    def processes(self) -> dict[str, set[tuple[int, int]]]:
        """Processes of containers of this site by container id, as (pid, start time), by their environments."""
        found: dict[str, set[tuple[int, int]]] = {}
        for process, container in containers_on_host(str(self.path)):
            found.setdefault(container, set()).add(process)
        return found

    def run_directories(self) -> set[str]:
        """Names of what drivers keep per container."""
        return {each.name for each in self.path.glob("*/fork_exec/*") if each.name[0] != "."}

    def close(self) -> None:
        for child in self._children:
            child.kill()
        for processes in self.processes().values():
            for pid, _ in processes:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        until("no process of the site is left", lambda: not self.processes())
        known = {each.executor_id for each in self._children if isinstance(each, Node) and each.executor_id}
        forget_nodes(known | executors_below(self.path))

        def removed() -> bool:
            # A program that a killed node had started (it packs the bundle) may still write for a moment.
            shutil.rmtree(self.path, ignore_errors=True)
            return not self.path.exists()

        until("the site's directory removed", removed)


def containers_on_host(below: str) -> list[tuple[tuple[int, int], str]]:
    """Living processes with a container's marker and a home below ``below``, with the container's id."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            environ = dict(_pair(each) for each in Path(entry.path, "environ").read_bytes().split(b"\0") if each)
            container = environ.get("INDEXIFY_CONTAINER_ID")
            if container is None or not environ.get("HOME", "").startswith(below):
                continue
            state, *_rest = fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            if state not in "ZX":
                found.append(((int(entry.name), int(fields[19])), container))
        except OSError:
            continue  # it ended while we looked, or is none of ours
    return found


def _pair(text: bytes) -> tuple[str, str]:
    name, _, value = text.decode(errors="replace").partition("=")
    return name, value
