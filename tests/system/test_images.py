"""The image cache in a real node: what is to be there is there, and starts of the same image share its pull."""

from __future__ import annotations

import os
import sqlite3
import unittest
from collections.abc import Iterator
from typing import Any

import pytest
from docker.errors import ImageNotFound

from tests.engine import _busybox_files, _tar, require
from tests.registry import Registry

from .docker_nodes import DockerNodes
from .harness import Site, until


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    yield made
    made.stop()


def layer() -> bytes:
    return _tar({**_busybox_files(), "etc/own": os.urandom(8)})


def there(api: Any, reference: str) -> bool:
    try:
        api.inspect_image(reference)
    except ImageNotFound:
        return False
    return True


def test_pre_pulled_used_and_remembered(site: Site, registry: Registry) -> None:
    try:
        engine = require(unittest.TestCase())
    except unittest.SkipTest as skipped:
        pytest.skip(str(skipped))
    wanted, used = registry.push("wanted", "1", layer()), registry.push("used", "1", layer())
    nodes = DockerNodes(site, engine)
    nodes.config = site.config(
        server_addr=f"http://127.0.0.1:{nodes.server.grpc_port}", sandbox_driver=nodes.driver, fork_exec=None,
        image_cache={"pre_pull": [wanted], "check_interval_secs": 1},
    )  # fmt: skip
    api = engine.client.api
    try:
        node = nodes.start()
        until("the image to be there", lambda: there(api, wanted))
        api.remove_image(wanted)
        until("the image again", lambda: there(api, wanted))
        registry.hold("/blobs/")
        sandboxes = [nodes.create(image=used) for _ in range(3)]
        assert registry.reached_hold.wait(30)
        registry.release()
        nodes.server.rest.running(*sandboxes)
        assert registry.count("/used/manifests/sha256:") == 1
        with sqlite3.connect(site.path / "node" / "docker" / "images.db") as connection:
            known = dict(connection.execute("SELECT reference, image FROM images"))
        assert set(known) == {wanted, used} and known[used] == api.inspect_image(used)["Id"]
        assert node.stop() == 0
    finally:
        nodes.close()
        for reference in (wanted, used):
            if there(api, reference):
                api.remove_image(reference, force=True)
