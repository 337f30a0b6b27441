"""The demonstration behind ``scripts/demo``: every step with its time, then the proof that nothing is left."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PORTS = {"rest": 8900, "grpc": 8901, "proxy": 8095, "monitoring": 8100, "sandbox_proxy": 9443}
SIZE = 50 * 1000 * 1000
NODE = Path(sys.executable).with_name("indexify-dataplane")
ROOT = Path(__file__).parents[1]
LINES = ["Once upon a time", "there was a node that ran what others wrote", "and lost nothing."]
LIMIT_SECS = 90.0
"""What may have passed when the SDK is there: a first run, all steps included, takes at most 120 s."""


BAD_SERVER = """
import socket
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
kept = []
while True:
    connection, _ = server.accept()
    if b"/close" in connection.recv(65536):
        connection.close()
    else:
        kept.append(connection)
"""
"""Closes on /close, is silent to everything else; its port is its first line."""


class Failed(Exception):
    """A step did not do what it should; the text says what came instead."""


def free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def ports() -> dict[str, int]:
    """The documented ports where they are free, others where not."""
    chosen = {}
    for name, port in PORTS.items():
        while not free(port) or port in chosen.values():
            port += 10_000 if port < 50_000 else 1
        chosen[name] = port
    return chosen


class Steps:
    """Prints what was done and how long it took."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.count = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[list[str]]:
        self.count += 1
        said: list[str] = []
        began = time.monotonic()
        print(f"{self.count:2}. {text} ", end="", flush=True)
        yield said
        print(f"[{(time.monotonic() - began) * 1000:.0f} ms]")
        for line in said:
            print(f"      {line}")


class Http:
    """One server on this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """``body``: bytes as they are, anything else as JSON."""
        headers = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host="Host" in headers)
            for name, value in headers.items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def get(self, path: str, expected: int = 200, **kwargs: Any) -> Any:
        return self.ask("GET", path, expected=expected, **kwargs)

    def ask(self, method: str, path: str, body: Any = None, *, expected: int = 200, **kwargs: Any) -> Any:
        status, answer = self.send(method, path, body, **kwargs)
        if status != expected:
            raise Failed(f"{method} {path} answered {status} instead of {expected}: {answer[:300]!r}")
        return json.loads(answer) if answer.startswith((b"{", b"[")) else answer


def until(what: str, ask: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Ask until the answer is true."""
    deadline = time.monotonic() + seconds
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise Failed(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.02)


def marked(sandbox: str) -> list[str]:
    """Processes on this host that belong to the sandbox, by the marker in their environment."""
    found = []
    needle = f"INDEXIFY_CONTAINER_ID={sandbox}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if needle in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(entry.name)
            except OSError:
                continue
    return found


class Sdk:
    """The newest SDK with its function executor, installed beside the demonstration's other steps.

    ``folder`` is a name that can be on the node's PATH before the environment is there.
    """

    def __init__(self, directory: Path) -> None:
        self.folder = directory / "sdk"
        self._output = directory / "sdk.log"
        with self._output.open("wb") as log:
            self._making = subprocess.Popen(
                [ROOT / "scripts/executors", "newest"], stdout=log, stderr=log, start_new_session=True
            )

    def missing(self, seconds: float) -> str | None:
        """Why there is none after this time, or None when it is there."""
        try:
            code = self._making.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            self.stop()
            return f"it was not installed within the {LIMIT_SECS:g} s of a first run; scripts/executors does it"
        said = self._output.read_text(errors="replace").strip()
        if code != 0:
            return f"it cannot be installed: {said[-200:]}"
        self.folder.symlink_to(said.split()[-1])
        return None

    def stop(self) -> None:
        if self._making.poll() is None:
            os.killpg(self._making.pid, signal.SIGTERM)
            self._making.wait()


class Demo:
    def __init__(self, directory: Path, at: dict[str, int]) -> None:
        self.directory = directory
        self.sdk = Sdk(directory)
        self.at = at
        self.rest, self.proxy, self.monitoring = Http(at["rest"]), Http(at["proxy"]), Http(at["monitoring"])
        self.steps = Steps()
        self.node: subprocess.Popen[bytes] | None = None
        self.sandbox = ""

    def start(self) -> None:
        with self.steps.step("start the node with its embedded control plane") as said:
            environ = {
                **os.environ,
                "PATH": f"{self.sdk.folder / 'bin'}:{os.environ['PATH']}",
                "INDEXIFY__HTTP_PROXY__PORT": str(self.at["proxy"]),
                "INDEXIFY__MONITORING__PORT": str(self.at["monitoring"]),
                # Short, so that the demonstration of a silent server does not take a minute.
                "INDEXIFY__HTTP_PROXY__UPSTREAM__READ_TIMEOUT_SECS": "1",
            }
            flags = ["--grpc-port", self.at["grpc"], "--http-port", self.at["rest"]]
            flags += ["--sandbox-proxy-port", self.at["sandbox_proxy"], "--data-dir", self.directory / "data"]
            log = (self.directory / "node.log").open("wb")
            self.node = subprocess.Popen(
                [str(NODE), "dev", *map(str, flags)], stdout=log, stderr=log, env=environ, start_new_session=True
            )
            until("the node is ready", self._ready)
            said.append(f"pid {self.node.pid}, log {self.directory / 'node.log'}")

    def _ready(self) -> bool:
        assert self.node is not None
        if self.node.poll() is not None:
            text = (self.directory / "node.log").read_text(errors="replace")
            raise Failed(f"the node ended with {self.node.returncode}:\n{text[-2000:]}")
        try:
            return self.monitoring.send("GET", "/ready")[0] == 200
        except OSError:
            return False

    def log_end(self) -> str:
        """What the node said last, for a failure on a machine that nobody can look at afterwards."""
        log = self.directory / "node.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return "\n".join(line[:400] for line in lines[-20:])

    def create(self) -> None:
        with self.steps.step("create a sandbox by REST") as said:
            made = self.rest.ask("POST", "/v1/namespaces/default/sandboxes", {"timeout_secs": 600})
            self.sandbox = made["sandbox_id"]
            said.append(f"{made}")
        with self.steps.step("wait until it is running"):
            path = f"/v1/namespaces/default/sandboxes/{self.sandbox}"
            until("running", lambda: self.rest.get(path)["status"] == "running")

    def route(self) -> None:
        forms = {
            "Tensorlake-Sandbox-Id": {"Tensorlake-Sandbox-Id": self.sandbox},
            "X-Tensorlake-Sandbox-Id": {"X-Tensorlake-Sandbox-Id": self.sandbox, "X-Tensorlake-Sandbox-Port": "9501"},
            "Host: <id>.local": {"Host": f"{self.sandbox}.local"},
            "Host: <port>-<id>.local": {"Host": f"9501-{self.sandbox}.local"},
        }
        for name, headers in forms.items():
            with self.steps.step(f"run a process through the proxy, routed by {name}") as said:
                order = {"command": "sh", "args": ["-c", f"echo routed by '{name}'"]}
                pid = self.proxy.ask("POST", "/api/v1/processes", order, headers=headers, expected=201)["pid"]
                path = f"/api/v1/processes/{pid}"
                until("exit", lambda p=path, h=headers: self.proxy.get(p, headers=h)["status"] != "running")
                said += self.proxy.get(f"{path}/stdout", headers=headers)["lines"]

    def follow(self) -> None:
        headers = {"Tensorlake-Sandbox-Id": self.sandbox}
        with self.steps.step("follow the output of a process while it runs") as said:
            order = {"command": "sh", "args": ["-c", "for n in 1 2 3; do echo line $n; sleep 0.2; done"]}
            pid = self.proxy.ask("POST", "/api/v1/processes", order, headers=headers, expected=201)["pid"]
            connection = http.client.HTTPConnection("127.0.0.1", self.at["proxy"], timeout=30)
            connection.request("GET", f"/api/v1/processes/{pid}/output/follow", headers=headers)
            response, began = connection.getresponse(), time.monotonic()
            arrived = []
            for line in response:
                if line.startswith(b"data:") and b"line" in line:
                    arrived.append(time.monotonic() - began)
                    said.append(f"{arrived[-1] * 1000:5.0f} ms  {json.loads(line[5:])['line']}")
            connection.close()
            if len(arrived) != 3 or arrived[2] - arrived[0] < 0.3:
                raise Failed(f"three lines were expected as they are written, they came at {arrived}")

    def files(self) -> None:
        headers = {"Tensorlake-Sandbox-Id": self.sandbox}
        content = os.urandom(SIZE)
        path = f"/api/v1/files?path={self.directory / 'uploaded.bin'}"
        with self.steps.step(f"move a file of {len(content) / 1e6:.0f} MB up") as said:
            self.proxy.ask("PUT", path, content, headers=headers, expected=204)
            said.append(f"sha256 sent     {hashlib.sha256(content).hexdigest()}")
        with self.steps.step("and down again") as said:
            got = self.proxy.send("GET", path, headers=headers)[1]
            said.append(f"sha256 received {hashlib.sha256(got).hexdigest()}")
            if got != content:
                raise Failed("the file came back different")
        self.proxy.ask("DELETE", path, headers=headers, expected=204)

    def errors(self) -> None:
        mine = {"Tensorlake-Sandbox-Id": self.sandbox}
        cases: list[tuple[str, int, dict[str, str]]] = [
            ("no sandbox named", 400, {}),
            ("two different sandboxes named", 400, {**mine, "X-Tensorlake-Sandbox-Id": "other"}),
            ("a port that is none", 400, {**mine, "Tensorlake-Sandbox-Port": "none"}),
            ("a port that is not the sandbox's", 403, {**mine, "Tensorlake-Sandbox-Port": str(self.at["rest"])}),
            ("an unknown sandbox", 404, {"Tensorlake-Sandbox-Id": "nobody"}),
        ]
        for name, status, headers in cases:
            with self.steps.step(f"error answer: {name}") as said:
                said.append(f"{status} {self.proxy.get('/api/v1/health', expected=status, headers=headers)}")
        with self.steps.step("start a server of its own in the sandbox, one that behaves badly") as said:
            order = {"command": sys.executable, "args": ["-c", BAD_SERVER]}
            pid = self.proxy.ask("POST", "/api/v1/processes", order, headers=mine, expected=201)["pid"]
            path = f"/api/v1/processes/{pid}/stdout"
            (port,) = until("its port", lambda: self.proxy.get(path, headers=mine)["lines"])
            said.append(f"it listens on port {port}")
        server = {**mine, "Tensorlake-Sandbox-Port": port}
        with self.steps.step("error answer: the server closes the connection") as said:
            said.append(f"502 {self.proxy.get('/close', expected=502, headers=server)}")
        with self.steps.step("error answer: the server says nothing to a request that waits for its word") as said:
            waiting = {**server, "Content-Length": "4", "Expect": "100-continue"}
            said.append(f"504 {self.proxy.ask('POST', '/silence', expected=504, headers=waiting)}")

    def application(self) -> None:
        began = time.monotonic()
        text = "deploy an application of three functions with the newest SDK"
        missing = self.sdk.missing(LIMIT_SECS - float(os.environ.get("DEMO_BEGAN_SECS_AGO", 0)) - self.steps.seconds)
        if missing is not None:
            with self.steps.step(f"{text}: skipped") as said:
                said.append(f"the SDK is missing: {missing}")
            return
        if time.monotonic() - began > 1:
            print(f"    (the SDK was installed; {time.monotonic() - began:.0f} s more)")
        with self.steps.step(text) as said:
            said += self._deploy()
        for name in ("call it, each function starts in a process of its own", "call it again, the processes are there"):
            with self.steps.step(name) as said:
                request = (
                    "/applications/story/requests/" + self.rest.ask("POST", "/applications/story", LINES)["request_id"]
                )
                outcome = until("the request's end", lambda path=request: self.rest.get(path)["outcome"], 40)
                if outcome != "success":
                    raise Failed(f"the request ended with {outcome}: {self.rest.get(request)}")
                said.append(self.rest.get(f"{request}/output").decode())
        with self.steps.step("delete it, its processes end"):
            self.rest.ask("DELETE", "/v1/namespaces/default/applications/story")
            until("their end", lambda: not self.monitoring.get("/state")["containers"])

    def _deploy(self) -> list[str]:
        """What the SDK's own command tells."""
        url = f"http://127.0.0.1:{self.at['rest']}"
        done = subprocess.run(
            [self.sdk.folder / "bin/tensorlake-deploy", ROOT / "scripts/demo_application/story.py"],
            env={**os.environ, "TENSORLAKE_API_URL": url, "TENSORLAKE_API_KEY": "any"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise Failed(f"tensorlake-deploy ended with {done.returncode}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
        told = [json.loads(line) for line in done.stdout.splitlines()]
        return [
            each.get("message") or f"deployed: {each['application']}"
            for each in told
            if each["type"] in ("build_log", "deployed")
        ]

    def remove(self) -> None:
        headers = {"Tensorlake-Sandbox-Id": self.sandbox}
        with self.steps.step("remove the sandbox while a process of it takes its time to end") as said:
            order = {"command": "sh", "args": ["-c", "trap 'sleep 1; exit' TERM; while :; do sleep 0.1; done"]}
            self.proxy.ask("POST", "/api/v1/processes", order, headers=headers, expected=201)
            self.rest.ask("DELETE", f"/v1/namespaces/default/sandboxes/{self.sandbox}")
            seen = until("503 or 404", lambda: self._refused(headers))
            said.append(f"while it stops: {seen}")
            until("its end", lambda: not self.monitoring.get("/state")["containers"] or self._gone())
        with self.steps.step("no process of it is left") as said:
            until("no process", lambda: not marked(self.sandbox))
            said.append(f"processes marked with {self.sandbox}: {marked(self.sandbox)}")

    def _gone(self) -> bool:
        states = {each["id"]: each["state"] for each in self.monitoring.get("/state")["containers"]}
        return states.get(self.sandbox, "terminated") == "terminated"

    def _refused(self, headers: dict[str, str]) -> str | None:
        status, body = self.proxy.send("GET", "/api/v1/health", headers=headers)
        return f"{status} {body.decode()}" if status in (503, 404) else None

    def stop(self) -> None:
        assert self.node is not None
        with self.steps.step("stop the node") as said:
            self.node.send_signal(signal.SIGTERM)
            code = self.node.wait(timeout=20)
            said.append(f"exit code {code}")
            if code != 0:
                raise Failed(f"the node ended with {code}")
        with self.steps.step("no port and no file of a sandbox is left") as said:
            taken = [f"{name} {port}" for name, port in self.at.items() if not free(port)]
            left = [str(path) for path in (self.directory / "data" / "fork_exec").rglob("*")]
            said += [f"ports still taken: {taken}", f"files of sandboxes: {left}"]
            if taken or left:
                raise Failed("something is left behind")

    def run(self) -> None:
        self.start()
        self.create()
        self.route()
        self.follow()
        self.files()
        self.errors()
        self.remove()
        self.application()
        self.stop()

    def keep(self) -> None:
        self.start()
        self.create()
        assert self.node is not None
        rest, proxy = self.at["rest"], self.at["proxy"]
        id_header = f"-H 'Tensorlake-Sandbox-Id: {self.sandbox}'"
        json_type = "-H 'Content-Type: application/json'"
        process = """-d '{"command": "sh", "args": ["-c", "id; date"]}'"""
        print(f"""
The node goes on as pid {self.node.pid}. Try:

  curl {id_header} http://localhost:{proxy}/api/v1/processes
  curl {id_header} {json_type} http://localhost:{proxy}/api/v1/processes {process}
  curl -H 'Host: {self.sandbox}.local' 'http://localhost:{proxy}/api/v1/files/list?path=/'
  curl http://localhost:{rest}/v1/namespaces/default/sandboxes
  curl http://localhost:{self.at["monitoring"]}/state
  curl http://localhost:{self.at["monitoring"]}/metrics

Its log: {self.directory / "node.log"}
Stop it with: kill {self.node.pid}""")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Run the main job on this machine.")
    parser.add_argument("--keep", action="store_true", help="leave node and sandbox running, print what to try")
    keep = parser.parse_args().keep
    directory = Path(tempfile.mkdtemp(prefix="indexify-demo-"))
    demo = Demo(directory, ports())
    try:
        demo.keep() if keep else demo.run()
    except (Failed, OSError, http.client.HTTPException, subprocess.TimeoutExpired) as error:
        print(f"\nFAILED: {type(error).__name__}: {error}", file=sys.stderr)
        print(f"The node's log is {directory / 'node.log'}, which ends with:\n{demo.log_end()}", file=sys.stderr)
        if demo.node is not None and demo.node.poll() is None:
            demo.node.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                demo.node.wait(timeout=15)
        return 1
    finally:
        demo.sdk.stop()
    if not keep:
        shutil.rmtree(directory)
        print(f"\nAll {demo.steps.count} steps done in {demo.steps.seconds:.1f} s; nothing is left.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
