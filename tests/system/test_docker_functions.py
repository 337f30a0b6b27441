"""Functions in containers: the executor that the image brings, called by its author through the real SDK."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine import Engine
from tests.executor.image import executor_image

from .applications.stage import RELEASES, Stage
from .harness import Site, until


class Containers:
    """A stage whose functions run in containers of the test engine."""

    def __init__(self, engine: Engine, release: str) -> None:
        self.engine, self.site = engine, Site()
        image = executor_image(engine, release)
        driver = {"type": "docker", "address": engine.address, "binds": [f"{self.site.path}:{self.site.path}"]}
        keys = {"function_driver": driver, "default_function_image": image}
        try:
            self.stage = Stage(release, site=self.site, apart=True, keys=keys)
        except BaseException:
            self.site.close()
            raise

    def all(self) -> list[dict[str, Any]]:
        label = f"indexify.executor_id={self.stage.node.executor_id}"
        return list(self.engine.client.api.containers(all=True, filters={"label": [label]}))

    def close(self) -> None:
        self.stage.close_authors()
        self.stage.node.kill()
        for each in self.all():
            self.engine.client.api.remove_container(each["Id"], force=True, v=True)
        self.site.close()


@pytest.fixture(scope="module", params=RELEASES)
def containers(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Containers]:
    made = Containers(engine, request.param)
    try:
        yield made
    finally:
        made.close()


def test_a_chain_of_functions(containers: Containers) -> None:
    stage = containers.stage
    calls = stage.author("calls.py")
    assert calls.value("greet", "bob", seconds=60) == "*** HELLO BOB ***"
    assert stage.last_request("greet")["outcome"] == "success"
    found = containers.all()
    assert {each["Labels"]["indexify.fn"] for each in found} == {"greet", "decorate", "shout"}
    assert {each["Labels"]["is_function_executor"] for each in found} == {"true"}
    assert all(each["Labels"]["indexify.type"] == "function" for each in found)


def test_the_executor_is_the_first_process_and_root(containers: Containers) -> None:
    containers.stage.author("calls.py").value("process", "x", seconds=60)
    (found,) = [each for each in containers.all() if each["Labels"]["indexify.fn"] == "process"]
    inside = containers.engine.client.api.inspect_container(found["Id"])
    assert inside["Path"] == "function-executor"
    assert "PYTHONFAULTHANDLER=1" in inside["Config"]["Env"]
    limits = {each["Name"]: each["Hard"] for each in inside["HostConfig"]["Ulimits"]}
    assert limits["core"] == 0 and limits["stack"] == 1 << 30
    assert inside["HostConfig"]["ShmSize"] == 1 << 30
    status = Path(f"/proc/{inside['State']['Pid']}/status").read_text()
    told = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    assert told["NSpid"].split()[-1] == "1"
    assert told["Uid"].split() == ["0"] * 4


def test_an_idle_executor_outlives_its_node(containers: Containers) -> None:
    stage = containers.stage
    calls = stage.author("calls.py")
    calls.value("process", "x", seconds=60)
    before = {each["Id"] for each in containers.all()}
    stage.node.kill()
    stage.start_node()
    assert calls.value("greet", "ann", seconds=60) == "*** HELLO ANN ***"
    until("the executors go on", lambda: before & {each["Id"] for each in containers.all()})
