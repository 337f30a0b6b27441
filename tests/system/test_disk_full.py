"""The store's disk is full: what runs goes on and is reached, nothing new is taken, and space heals it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .harness import Node, Site, until


@pytest.fixture
def small_disk(site: Site) -> Iterator[Path]:
    place = site.path / "node"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        problem = f"no file system can be mounted here: {mounted.stderr.strip()}"
        if os.environ.get("CI") == "true":
            pytest.fail(problem)
        pytest.skip(problem)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_disk_full(small_disk: Path, site: Site, tell: Callable[[str], None]) -> None:
    server = site.server()
    node = site.node(site.config(server_addr=f"http://127.0.0.1:{server.grpc_port}")).ready()
    sandboxes = [server.rest.create() for _ in range(3)]
    server.rest.running(*sandboxes)
    before = site.processes()
    ballast = small_disk / "ballast"
    fill(ballast)
    # Something to be written down, so that the node notices.
    server.rest.delete(sandboxes[2])
    until("the node is not ready", lambda: node.monitoring.send("GET", "/ready")[0] == 503)
    ready = node.monitoring.get("/ready", expected=503)
    assert not ready["checks"]["store"], ready
    assert node.monitoring.send("GET", "/health")[0] == 200
    late = server.rest.create()
    began = time.monotonic()
    while time.monotonic() - began < 3:
        assert all(node.answers(each) for each in sandboxes[:2])
        assert late not in node.containers()
        assert late not in site.processes()
        time.sleep(0.1)
    assert set(before) - set(site.processes()) <= {sandboxes[2]}
    assert server.rest.sandbox(late)["status"] == "pending"
    assert node.executor_id in server.rest.executors(), "the node still tells that it lives"
    began = time.monotonic()
    ballast.unlink()
    until("the node is ready", lambda: node.monitoring.send("GET", "/ready")[0] == 200)
    server.rest.running(late)
    tell(f"with space again, the node had started what was ordered meanwhile after {time.monotonic() - began:.1f} s")
    until("the deleted one is gone", lambda: set(site.processes()) == {*sandboxes[:2], late})
    until("all is told", lambda: node.state()["unacknowledged_reports"] == 0)
    fill(ballast)
    server.rest.delete(late)
    node.kill()
    config = site.config(server_addr=f"http://127.0.0.1:{server.grpc_port}")
    node = site.node(config, name="on-full-disk")
    until("the node waits for space, or says why it ends", lambda: waits(node) or not node.alive)
    if not node.alive:
        assert node.wait() == 1
        assert f"Error: the node cannot start: the store {small_disk / 'store.db'}" in node.said_on_stderr, node.tail()
    ballast.unlink()
    if not node.alive:
        node = site.node(config, name="with-space")
    node.ready()
    until("the other one is gone", lambda: set(site.processes()) == set(sandboxes[:2]))
    assert {each: before[each] for each in sandboxes[:2]} == site.processes()
    for each in sandboxes[:2]:
        server.rest.delete(each)
    until("nothing is left", lambda: not site.processes())
    assert node.stop() == 0


def waits(node: Node) -> bool:
    """It tells its supervisor that it lives and is not ready, and its log tells why."""
    return bool(node.events("the store cannot be written: no new commands are taken"))


def fill(path: Path) -> None:
    """Write until there is no space left."""
    with open(path, "wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            while True:
                try:
                    file.write(b"\0" * size)
                except OSError:
                    break
