"""Functions in containers that never come to run: no such image, a registry that is away, code that does not load or
takes too long. The server hears the reason, the log has the engine's or the executor's words, nothing is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from indexify_dataplane.wireproto import executor_api_pb2 as pb
from tests.engine import Engine
from tests.executor.image import executor_image
from tests.executor.support import NEW, OLD
from tests.registry import Registry

from .functions import Functions
from .harness import Site, until
from .inprocess import threaded

Begin = Callable[[str], Functions]


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def begin(site: Site, engine: Engine) -> Iterator[Begin]:
    """Start a node whose functions run in this image."""
    begun: list[Functions] = []

    def start(image: str) -> Functions:
        blobs = site.path / "blobs"
        driver = {"type": "docker", "address": engine.address, "binds": [f"{blobs}:{blobs}"]}
        functions = Functions(
            site, function_driver=driver, default_function_image=image,
            function_executor={"code_cache_path": str(site.path / "code")},
        )  # fmt: skip
        begun.append(functions)
        functions.began()
        return functions

    yield start
    for functions in begun:
        functions.node.kill()
        for each in containers(engine, functions):
            engine.client.api.remove_container(each["Id"], force=True, v=True)


def containers(engine: Engine, functions: Functions) -> list[dict[str, Any]]:
    label = f"indexify.executor_id={functions.node.executor_id}"
    return list(engine.client.api.containers(all=True, filters={"label": [label]}))


def fails(engine: Engine, functions: Functions, application: str, *reasons: str) -> str:
    """Invoke it: how it ended, as the server's API tells. Its allocations failed for ``reasons``, as the node told."""
    request = functions.invoke(application, "x")
    found = functions.finished(request)
    until("no container is left", lambda: not containers(engine, functions))
    failed = {
        pb.AllocationFailureReason.Name(each.failed.reason).removeprefix("ALLOCATION_FAILURE_REASON_")
        for each in functions.outcomes().values()
        if each.failed.request_id == request.rpartition("/")[2]
    }
    assert failed == set(reasons), f"{failed} {functions.node.tail()}"
    return str(found["outcome"]["failure"])


@threaded
def test_an_image_that_does_not_exist(engine: Engine, registry: Registry, begin: Begin) -> None:
    functions = begin(f"{registry.address}/nowhere/at-all:9")
    application = functions.deploy("greet")
    assert fails(engine, functions, application, "STARTUP_FAILED_BAD_IMAGE") == "function_error"
    said = functions.node.event("container terminated")
    assert said["reason"] == "STARTUP_FAILED_BAD_IMAGE"
    assert "/nowhere/at-all:9" in said["error"] and "manifest unknown" in said["error"]


@threaded
def test_a_registry_that_is_away(engine: Engine, begin: Begin) -> None:
    functions = begin("127.0.0.1:1/tools/executor:1")
    application = functions.deploy("greet")
    assert fails(engine, functions, application, "STARTUP_FAILED_INTERNAL_ERROR") == "internal_error"
    assert "connection refused" in functions.node.event("container terminated")["error"]


@pytest.mark.parametrize("release", [OLD, NEW])
@threaded
def test_code_that_does_not_load(engine: Engine, begin: Begin, release: str) -> None:
    functions = begin(executor_image(engine, release))
    broken = functions.deploy("broken_import")
    assert fails(engine, functions, broken, "STARTUP_FAILED_FUNCTION_ERROR") == "function_error"
    slow = functions.deploy("slow_import", initialization_timeout_sec=1)
    assert fails(engine, functions, slow, "STARTUP_FAILED_FUNCTION_TIMEOUT") == "function_timeout"
    exits = functions.deploy("exits")
    assert fails(engine, functions, exits, "STARTUP_FAILED_INTERNAL_ERROR") == "internal_error"
    said = "".join(event["error"] for event in functions.node.events("container terminated"))
    assert "no_such_module_anywhere" in said and "took longer than 1 s" in said
