"""Three ways to start a node, alike in what they print, how they stop and how they fail."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from .harness import BIN, PROGRAM, Node, Site, until
from .inprocess import EngineServer, threaded

WAYS: dict[str, Callable[[Path], list[str]]] = {
    "console": lambda config: [PROGRAM, "--config", str(config)],
    "twistd": lambda config: [str(BIN / "twistd"), "-n", "indexify-dataplane", "--config", str(config)],
    "twist": lambda config: [str(BIN / "twist"), "indexify-dataplane", "--config", str(config)],
}
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
STOP_SECS = 5.0


def start(site: Site, way: str, config: Path, **options: Any) -> Node:
    """With a pid file in the working directory that names a living process."""
    (site.path / "twistd.pid").write_text(str(os.getppid()))
    return site.node(config, **{"command": WAYS[way](config), **options})


def check_log(node: Node) -> None:
    """Only events in the documented shape, each once."""
    assert node.said_on_stderr == ""
    lines = node.said.splitlines()
    seen = set()
    for line in lines:
        event = json.loads(line)
        assert {"timestamp", "level", "target", "fields"} <= event.keys() <= {
            "timestamp", "level", "target", "fields", "span", "spans",
        }, line  # fmt: skip
        assert event["level"] in ("INFO", "WARN"), line
        key = (event["target"], json.dumps(event["fields"], sort_keys=True), event["timestamp"][:22])
        assert key not in seen, f"said twice: {line}"
        seen.add(key)
    for once in ("configuration", "records recovered", "node started", "signal received", "node stopped"):
        assert len(node.events(once)) == 1, f"{once}: {node.events(once)}"


@pytest.mark.parametrize("way", WAYS)
@threaded
def test_without_sandboxes_the_server_is_told(site: Site, way: str, tell: Callable[[str], None]) -> None:
    server = EngineServer(site.path)
    try:
        config = site.config(server_addr=f"http://127.0.0.1:{server.grpc_port}")
        for number, name in enumerate(SIGNALS, 1):
            node = start(site, way, config).ready()
            began = time.monotonic()
            assert node.stop(name, STOP_SECS) == 0
            tell(f"{way}: ended {time.monotonic() - began:.2f} s after {name.name}")
            assert server.stopped() == [node.executor_id] * number
            check_log(node)
            assert (site.path / "twistd.pid").read_text() == str(os.getppid())
    finally:
        server.stop()


@pytest.mark.parametrize("way", WAYS)
@threaded
def test_with_a_sandbox_the_server_is_not_told(site: Site, way: str, tell: Callable[[str], None]) -> None:
    server = EngineServer(site.path)
    try:
        config = site.config(server_addr=f"http://127.0.0.1:{server.grpc_port}")
        node = start(site, way, config).ready()
        sandbox = server.rest.create()
        server.rest.running(sandbox)
        before = site.processes()
        for name in SIGNALS:
            assert node.stop(name, STOP_SECS) == 0
            assert site.processes() == before
            node = start(site, way, config).ready()
            until("routed again", lambda each=node: each.answers(sandbox))
        server.rest.delete(sandbox)
        until("the sandbox is gone", lambda: not node.containers() and not site.processes())
        assert server.stopped() == []
        assert node.stop(signal.SIGTERM, STOP_SECS) == 0
        assert server.stopped() == [node.executor_id]
        check_log(node)
    finally:
        server.stop()


@pytest.mark.parametrize("way", WAYS)
def test_functions_on_the_command_line(site: Site, way: str) -> None:
    server = site.server()
    config = site.config(server_addr=f"http://127.0.0.1:{server.grpc_port}")
    for uris in (["ns:app:fn"], ["ns:app:fn", "ns:app:other:v1"]):
        node = start(site, way, config, command=[*WAYS[way](config), *(f"--function={uri}" for uri in uris)]).ready()
        told = server.rest.executors()[node.executor_id]["function_allowlist"]
        assert [each["function"] for each in told] == [uri.split(":")[2] for uri in uris]
        assert node.stop() == 0
    fails(site, config, "ns:app", command=[*WAYS[way](config), "-f", "ns:app"])


@threaded
def test_second_signal_ends_at_once(site: Site) -> None:
    """A client that downloads keeps the proxy draining."""
    server = EngineServer(site.path)
    try:
        loopback = {"port": 0, "listen_addr": "127.0.0.1", "drain_secs": 60}
        config = site.config(server_addr=f"http://127.0.0.1:{server.grpc_port}", http_proxy=loopback)
        node = site.node(config).ready()
        sandbox = server.rest.create()
        server.rest.running(sandbox)
        with following(node, sandbox):
            node.send_signal(signal.SIGTERM)
            node.event("signal received")
            began = time.monotonic()
            until("a second order", lambda: time.monotonic() - began > 0.7)
            assert node.alive
            node.send_signal(signal.SIGTERM)
            assert node.wait(1.0) == 1
        assert server.stopped() == []
    finally:
        server.stop()


@threaded
def test_a_client_that_follows_output_does_not_hold_up_the_stop(site: Site, tell: Callable[[str], None]) -> None:
    server = EngineServer(site.path)
    try:
        node = site.node(site.config(server_addr=f"http://127.0.0.1:{server.grpc_port}")).ready()
        sandbox = server.rest.create()
        server.rest.running(sandbox)
        with following(node, sandbox):
            began = time.monotonic()
            assert node.stop(signal.SIGTERM, 20) == 0
            took = time.monotonic() - began
        tell(f"with a client that follows output the node ended after {took:.1f} s")
        assert took < STOP_SECS
    finally:
        server.stop()


def following(node: Node, sandbox: str) -> Any:
    """A connection that follows the output of a process, whose first line has come."""
    headers = {"Tensorlake-Sandbox-Id": sandbox}
    order = {"command": "sh", "args": ["-c", "echo begun; sleep 600"]}
    pid = node.proxy.ask("POST", "/api/v1/processes", order, headers=headers, expected=201)["pid"]
    connection = socket.create_connection(("127.0.0.1", node.proxy.port), timeout=10)
    path = f"/api/v1/processes/{pid}/output/follow"
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\nTensorlake-Sandbox-Id: {sandbox}\r\n\r\n".encode())
    said = b""
    while b"begun" not in said:
        said += connection.recv(4096)
        assert said.startswith(b"HTTP/1.1 200"), said
    return closing(connection)


def fails(site: Site, config: Path, *words: str, command: list[str] | None = None, **options: Any) -> None:
    """The start must end by itself, non-zero, with a sentence that has these words."""
    node = site.node(config, command=command, **options)
    code = node.wait(20)
    assert code == 1, f"exit code {code}; {node.tail()}"
    lines = node.said_on_stderr.splitlines()
    sentence = "\n".join(line for line in lines if line.startswith("Error: "))
    assert sentence and all(word in sentence for word in words), f"{words} expected; {node.tail()}"
    assert "Traceback" not in node.said_on_stderr


@pytest.fixture
def taken() -> Iterator[int]:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("way", WAYS)
def test_taken_ports(site: Site, taken: int, way: str) -> None:
    for section in ("monitoring", "http_proxy"):
        config = site.config(**{section: {"port": taken, "listen_addr": "127.0.0.1"}})
        fails(site, config, str(taken), command=WAYS[way](config))


def test_places_that_cannot_be_used(site: Site) -> None:
    (site.path / "file").write_text("")
    fails(site, site.config(state_dir=str(site.path / "file" / "below")), str(site.path / "file"))
    fails(site, site.config(state_file=str(site.path / "file" / "state")), str(site.path / "file"))


def test_store_that_another_node_holds(site: Site) -> None:
    server = site.server()
    config = site.config(server_addr=f"http://127.0.0.1:{server.grpc_port}")
    holder = site.node(config).ready()
    fails(site, config, "store.db", str(holder.pid), name="second")
    assert holder.alive and holder.monitoring.send("GET", "/ready")[0] == 200


def test_store_of_a_newer_version(site: Site) -> None:
    (site.path / "node").mkdir()
    with closing(sqlite3.connect(site.path / "node" / "store.db")) as store:
        store.execute("PRAGMA user_version=99")
    fails(site, site.config(), "store.db", "newer", "99")


def test_store_that_is_none(site: Site) -> None:
    (site.path / "node").mkdir()
    (site.path / "node" / "store.db").write_bytes(b"not a database, but long enough to look at" * 100)
    fails(site, site.config(), "store.db")


def test_driver_that_is_not_built(site: Site) -> None:
    fails(site, site.config(driver={"type": "firecracker", **FIRECRACKER}), "firecracker")


FIRECRACKER = {
    "kernel_image_path": "/k", "base_rootfs_image": "/r", "cni_network_name": "n", "guest_gateway": "10.0.0.1",
    "lvm_volume_group": "v", "lvm_thin_pool": "p",
}  # fmt: skip


def test_unisolated_driver_needs_consent(site: Site) -> None:
    fails(site, site.config(fork_exec=None), "fork_exec.allow_unisolated")


@threaded
def test_part_that_dies(site: Site) -> None:
    """Broken from inside of the real process: a module that Python loads at its start replaces a method when told."""
    server = EngineServer(site.path)
    try:
        (site.path / "sitecustomize.py").write_text(SABOTAGE)
        trigger = site.path / "now"
        config = site.config(server_addr=f"http://127.0.0.1:{server.grpc_port}")
        environ = {"PYTHONPATH": str(site.path), "SABOTAGE": str(trigger)}
        node = site.node(config, env=environ).ready()
        sandbox = server.rest.create()
        server.rest.running(sandbox)
        before = site.processes()
        trigger.write_text("")
        assert node.wait(15) == 1
        assert "Error: a part of the node has ended: sabotage" in node.said_on_stderr, node.tail()
        assert len([line for line in node.said.splitlines() if '"ERROR"' in line]) == 1, node.tail()
        assert server.stopped() == []
        assert site.processes() == before
        node = site.node(config).ready()
        until("routed again", lambda: node.answers(sandbox))
    finally:
        server.stop()


SABOTAGE = """
import os, sys, threading, time

def wait():
    while not os.path.exists(os.environ["SABOTAGE"]):
        time.sleep(0.02)
    heartbeat = sys.modules["indexify_dataplane.control.heartbeat"].Heartbeat

    async def broken(self):
        raise RuntimeError("sabotage")

    heartbeat._beat = broken

if sys.argv[0].endswith("indexify-dataplane"):
    threading.Thread(target=wait, daemon=True).start()
"""
