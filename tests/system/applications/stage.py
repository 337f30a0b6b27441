"""A node with its embedded control plane and real function executors, and authors who use it through their SDK."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ..harness import PATIENCE, PROGRAM, Http, Node, NotSeen, Site, until

ROOT = Path(__file__).parents[3]
SOURCES = Path(__file__).parent
RELEASES = ("0.4.19", "newest")
INSTALL_SECS = 600


@functools.cache
def environment(release: str) -> Path:
    """The folder of an environment with this release; without it the test fails in CI and is skipped elsewhere."""
    made = subprocess.run(
        [ROOT / "scripts/executors", release], capture_output=True, text=True, timeout=INSTALL_SECS, check=False
    )
    if made.returncode == 0:
        return Path(made.stdout.split()[-1])
    reason = f"tensorlake {release} cannot be installed: {made.stderr.strip()[-300:]}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


class Author:
    """A process of the SDK's environment that has deployed one file."""

    def __init__(self, stage: Stage, source: str) -> None:
        self._stage = stage
        url = f"http://127.0.0.1:{stage.rest.port}"
        self._errors = open(stage.site.path / f"author-{source}.err", "wb")  # noqa: SIM115
        self._process = subprocess.Popen(
            [stage.environment / "bin/python", SOURCES / "author.py"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True, text=True,
            env={**os.environ, "TENSORLAKE_API_URL": url, "TENSORLAKE_API_KEY": "any"},
        )  # fmt: skip
        self.release = str(self._read()["release"])
        self.ask("deploy", str(SOURCES / source))

    def _read(self, seconds: float = PATIENCE) -> dict[str, Any]:
        assert self._process.stdout is not None
        late = threading.Timer(seconds, self._process.kill)
        late.start()
        try:
            line = self._process.stdout.readline()
        finally:
            late.cancel()
        if not line:
            errors = Path(self._errors.name).read_text(errors="replace")
            raise NotSeen(
                f"the author did not answer within {seconds:g} s or ended: {errors[-3000:]}\n{self._stage.node.tail()}"
            )
        return dict(json.loads(line))

    def ask(self, order: str, *args: Any, seconds: float = PATIENCE, **kwargs: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": order, "args": args, "kwargs": kwargs}) + "\n")
        self._process.stdin.flush()
        told = self._read(seconds)
        if "raised" in told:
            raise AssertionError(f"{order} {args}: {told['raised']}")
        return told["answer"]

    def value(self, application: str, *args: Any, seconds: float = PATIENCE) -> Any:
        """What a call gives."""
        answer = self.ask("call", application, *args, seconds=seconds)
        assert "value" in answer, answer
        return answer["value"]

    def failure(self, application: str, *args: Any, seconds: float = PATIENCE) -> tuple[str, str]:
        """The SDK's error of a call that fails: its class and its text."""
        answer = self.ask("call", application, *args, seconds=seconds)
        assert "error" in answer, answer
        return answer["error"], answer["message"]

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it may have been given up
            self._process.communicate(timeout=PATIENCE)
        self._process.kill()
        self._process.wait(PATIENCE)
        self._errors.close()


class Stage:
    """A node with the executors of one release, and an author per file of applications.

    The node is ``indexify-dataplane dev``; with ``apart`` its control plane is a process of its own, which outlives it.
    The directory is closed with the stage unless it was given. ``keys`` go into the node's configuration.
    """

    def __init__(
        self, release: str, *, site: Site | None = None, apart: bool = False, keys: Mapping[str, Any] | None = None
    ) -> None:
        self.keys = dict(keys or {})
        self.environment = environment(release)
        self._own = site is None
        self.site = site or Site()
        self._authors: dict[str, Author] = {}
        self._executor_ids: set[str] = set()
        self._server = None
        try:
            if apart:
                self._server = self.site.server()
                self.rest: Http = self._server.rest
            self.start_node()
        except BaseException:
            self.close()
            raise

    def start_node(self, name: str = "node") -> None:
        """``self.node`` is the node that was started last."""
        env = {"PATH": f"{self.environment / 'bin'}:{os.environ['PATH']}"}
        if self._server is not None:
            server = f"http://127.0.0.1:{self._server.grpc_port}"
            config = self.site.config(name, server_addr=server, **self.keys)
            self.node: Node = self.site.node(config, env=env).ready()
        else:
            config = self.site.config(name, **self.keys)
            command = [PROGRAM, "dev", "--config", str(config), "--data-dir", str(self.site.path / name)]
            command += ["--grpc-port", "0", "--http-port", "0", "--sandbox-proxy-port", "0"]
            self.node = self.site.node(config, command=command, env=env).ready()
            self.rest = Http(self.node.event("development control plane is listening")["rest"])
        self._executor_ids.add(self.node.executor_id)
        until("the node is registered", lambda: self.rest.get("/internal/executors"))

    def author(self, source: str) -> Author:
        """The one who has deployed this file."""
        if source not in self._authors:
            self._authors[source] = Author(self, source)
        return self._authors[source]

    def request(self, application: str, request_id: str) -> dict[str, Any]:
        """A request as the control plane tells it."""
        return dict(self.rest.get(f"/v1/namespaces/default/applications/{application}/requests/{request_id}"))

    def last_request(self, application: str) -> dict[str, Any]:
        known = self.rest.get(f"/v1/namespaces/default/applications/{application}/requests?limit=1")["requests"]
        return self.request(application, known[0]["id"])

    def containers(self, application: str) -> list[dict[str, Any]]:
        return list(self.rest.get(f"/v1/namespaces/default/applications/{application}/containers")["containers"])

    def processes(self) -> dict[str, int]:
        """Living executors of the stage's nodes: pid by container id."""
        found = {}
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit():
                continue
            try:
                environ = Path(entry.path, "environ").read_bytes().split(b"\0")
                state = Path(entry.path, "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue  # it ended while we looked
            told = dict(each.decode(errors="replace").partition("=")[::2] for each in environ)
            if told.get("INDEXIFY_EXECUTOR_ID") in self._executor_ids and state not in "ZX":
                found[told["INDEXIFY_CONTAINER_ID"]] = int(entry.name)
        return found

    def delete(self, application: str) -> None:
        self.rest.ask("DELETE", f"/v1/namespaces/default/applications/{application}")

    def close_authors(self) -> None:
        while self._authors:
            self._authors.popitem()[1].close()

    def close(self) -> None:
        try:
            self.close_authors()
        finally:
            if self._own:
                self.site.close()
