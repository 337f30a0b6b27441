"""The product's own image: built here from local parts and run as docs/operations.md says, beside its sandboxes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import tarfile
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker.errors import ImageNotFound

from tests.engine import Engine, require

from .docker_nodes import DockerNodes
from .harness import Http, NotSeen, Site, until

ROOT = Path(__file__).parents[2]
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
BASE = """\
FROM {debian}
COPY authorities.pem /etc/ssl/certs/ca-certificates.crt
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*
"""


def build(engine: Engine, tag: str, **options: Any) -> str:
    """An image; the engine's output is the error's text when that fails."""
    said = []
    options = {"network_mode": "host", "rm": True, "forcerm": True, "decode": True, **options}
    for line in engine.client.api.build(tag=tag, **options):
        said.append(str(line.get("stream") or line.get("error") or ""))
        if "error" in line:
            raise AssertionError("".join(said)[-3000:])
    return tag


def base(engine: Engine) -> str:
    """Debian with Python and its venv module, trusting whom this machine trusts: the stand-in for python:…-slim."""
    text = BASE.format(debian=engine.image("debian")).encode()
    tag = f"ixtest/product-base:{hashlib.sha256(text).hexdigest()[:12]}"
    try:
        engine.client.images.get(tag)
        return tag
    except ImageNotFound:
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as archive:
            for name, content in (("Dockerfile", text), ("authorities.pem", AUTHORITIES.read_bytes())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        context.seek(0)
        return build(engine, tag, fileobj=context, custom_context=True)


@pytest.fixture(scope="module")
def engine() -> Engine:
    try:
        return require(unittest.TestCase())
    except unittest.SkipTest as skipped:
        pytest.skip(str(skipped))


@pytest.fixture(scope="module")
def product(engine: Engine) -> Iterator[str]:
    tag = build(engine, f"ixtest/product:{os.getpid()}", path=str(ROOT), buildargs={"BASE": base(engine)})
    yield tag
    engine.client.api.remove_image(tag, force=True)


class Contained:
    """Nodes in a container, with the options of the documentation; paths and ports are the test's."""

    def __init__(self, site: Site, engine: Engine, image: str) -> None:
        self.engine, self.image, self.site = engine, image, site
        self.nodes = DockerNodes(site, engine)
        self.state = site.path / "state"
        self.state.mkdir(mode=0o700)
        (site.path / "etc").mkdir()
        loopback = {"port": 0, "listen_addr": "127.0.0.1"}
        content = {
            "env": "test", "server_addr": f"http://127.0.0.1:{self.nodes.server.grpc_port}",
            "state_dir": str(self.state), "driver": {"type": "docker"}, "default_function_image": self.nodes.image,
            "http_proxy": loopback, "monitoring": loopback,
            "resource_overrides": {"cpu_count": 64, "memory_bytes": 64 << 30, "disk_bytes": 1 << 40},
        }  # fmt: skip
        (site.path / "etc" / "dataplane.yaml").write_text(yaml.safe_dump(content))
        self.containers: list[str] = []

    def documented(self) -> list[str]:
        """The words of the first ``docker run`` of the page."""
        page = (ROOT / "docs/operations.md").read_text().replace("\\\n", " ")
        found = re.search(r"^docker run .*$", page, re.MULTILINE)
        assert found is not None
        return shlex.split(found[0])

    def run(self, *command: str, **options: Any) -> str:
        """Start one; its id. The image, its name and the host's side of mounts replace those of the page."""
        words, caps, binds = self.documented(), [], []
        assert words[words.index("--network") + 1] == "host"
        mounts = {
            "/var/run/docker.sock": self.engine.address.removeprefix("unix://"), "/proc": "/proc",
            "/etc/indexify": str(self.site.path / "etc"), "/var/lib/indexify": str(self.state),
        }  # fmt: skip
        for at, word in enumerate(words):
            if word == "--cap-add":
                caps.append(words[at + 1])
            elif word == "-v":
                outside, _, inside = words[at + 1].partition(":")
                # State has the same path outside and inside.
                binds.append(f"{mounts[outside]}:{str(self.state) if outside == '/var/lib/indexify' else inside}")
        api = self.engine.client.api
        host = api.create_host_config(network_mode="host", cap_add=caps, binds=binds)
        arguments = list(command) or words[words.index("indexify-dataplane:latest") + 1 :]
        made = str(api.create_container(self.image, command=arguments, host_config=host)["Id"])
        self.containers.append(made)
        api.start(made)
        return made

    def event(self, container: str, message: str) -> dict[str, Any]:
        def found() -> Any:
            said = self.engine.client.api.logs(container).decode(errors="replace")
            for line in said.splitlines():
                if line.startswith("{") and json.loads(line)["fields"]["message"] == message:
                    return json.loads(line)["fields"]
            if not self.engine.client.api.inspect_container(container)["State"]["Running"]:
                raise NotSeen(f"the node in the container ended: {said[-3000:]}")
            return None

        return dict(until(f"{message!r} in the node's log", found, 60))

    def proxy(self, container: str) -> Http:
        self.event(container, "node started")
        return Http(int(self.event(container, "Starting HTTP proxy server")["listen_addr"].rpartition(":")[2]))

    def close(self) -> None:
        for container in self.containers:
            self.engine.client.api.remove_container(container, force=True, v=True)
        self.nodes.close()


@pytest.fixture
def contained(site: Site, engine: Engine, product: str) -> Iterator[Contained]:
    made = Contained(site, engine, product)
    try:
        yield made
    finally:
        made.close()


def test_the_node_in_a_container_runs_sandboxes_beside_it(contained: Contained) -> None:
    api, rest = contained.engine.client.api, contained.nodes.server.rest
    node = contained.run()
    proxy = contained.proxy(node)
    sandbox = contained.nodes.create(entrypoint=["/bin/sh", "-c", "exec sleep 1000"])
    rest.running(sandbox)
    headers = {"Tensorlake-Sandbox-Id": sandbox}
    until("traffic", lambda: proxy.send("GET", "/api/v1/health", headers=headers)[0] == 200)

    # An upgrade: the container goes, the sandbox stays and is adopted by the next one.
    api.stop(node, timeout=45)
    assert api.inspect_container(node)["State"]["ExitCode"] == 0
    assert contained.nodes.container(sandbox)["State"]["Running"]
    proxy = contained.proxy(contained.run())
    until("traffic again", lambda: proxy.send("GET", "/api/v1/health", headers=headers)[0] == 200)
    rest.delete(sandbox)
    rest.ended(sandbox)
    until("nothing is left", lambda: not contained.nodes.ours())


def test_doctor_finds_everything_inside_that_a_node_needs(contained: Contained) -> None:
    doctor = contained.run("doctor", "--json", "--config", "/etc/indexify/dataplane.yaml")
    api = contained.engine.client.api
    code = api.wait(doctor, timeout=120)["StatusCode"]
    told = json.loads(api.logs(doctor, stdout=True, stderr=False))
    failed = [each for each in told["checks"] if each["grade"] == "failed"]
    assert (code, failed) == (0, [])
    grades = {each["check"]: each["grade"] for each in told["checks"]}
    for check in ("engine", "privilege", "network namespace", "guest bundle", "server gRPC"):
        assert grades[check] == "ok", (check, told)
    assert "iptables" in grades and "ip6tables" in grades
