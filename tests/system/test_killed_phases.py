"""The node is killed with SIGKILL while an allocation is in each of its phases; a real executor, a real program. Every
allocation ends exactly once, its container is named, its uploads are gone, and the retry succeeds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from indexify_dataplane.wireproto import executor_api_pb2 as pb
from tests.blobs.faulty_s3 import COMPLETE, CREATE, Fault, FaultyS3
from tests.executor.support import NEW, OLD

from .functions import Functions, S3Blobs, in_faulty_s3
from .harness import Site, until
from .inprocess import threaded

LOST = "internal_error"
"""What the server's API calls CONTAINER_TERMINATED."""

protocols = pytest.mark.parametrize("release", [OLD, NEW])


@pytest.fixture
def s3() -> Iterator[FaultyS3]:
    made = FaultyS3()
    try:
        yield made
    finally:
        made.close()


def hangs(functions: Functions, fault: Fault, state: str) -> str:
    """Wait until the one allocation is in ``state`` because of ``fault``; its id."""
    fault.wait()
    return str(until(f"an allocation that is {state}", lambda: functions.in_state(state))[0]["id"])


def killed(functions: Functions) -> None:
    functions.kill_node()
    functions.begin_node().ready()


def in_store(site: Site, s3: FaultyS3, release: str) -> tuple[Functions, S3Blobs]:
    blobs = S3Blobs(site.path.name.replace("_", "-").lower())
    functions = Functions(site, blobs=blobs, release=release)
    in_faulty_s3(functions, s3)
    functions.began()
    return functions, blobs


@protocols
@threaded
def test_preparing(site: Site, s3: FaultyS3, release: str) -> None:
    functions, blobs = in_store(site, s3, release)
    application = functions.deploy("greet")
    preparing = s3.hold_answer(CREATE)  # The upload is there, and nobody knows its id.
    request = functions.invoke(application, "World")
    allocation = hangs(functions, preparing, "preparing")
    functions.kill_node()
    assert len(blobs.open_uploads()) == 1
    preparing.lift()
    functions.begin_node().ready()
    assert functions.output(request) == "hello World"
    reason, container = functions.failed(allocation)
    assert reason == "CONTAINER_TERMINATED" and container
    assert functions.attempts(request) == [LOST, "success"]
    until("no upload is open", lambda: not blobs.open_uploads())


@protocols
@threaded
def test_waiting_for_a_slot(site: Site, release: str) -> None:
    functions = Functions(site, release=release)
    functions.began()
    application = functions.deploy("wait_for")
    request = functions.invoke(application, str(site.path / "go"))
    running = until("one that runs", lambda: functions.in_state("executing"))[0]
    [(_, sent)] = functions.server.order(
        lambda engine: [
            (each.id, engine._placement.message(each))
            for made in engine.world.requests.values()
            for each in made.allocations.values()
        ]
    )
    sent.allocation_id, sent.function_call_id = "queued", "call-queued"
    functions.send(pb.Command(run_allocation=pb.RunAllocation(allocation=sent)))
    assert [each["id"] for each in until("one that waits", lambda: functions.in_state("waiting"))] == ["queued"]
    killed(functions)
    for allocation in (str(running["id"]), "queued"):
        assert functions.failed(allocation) == ("CONTAINER_TERMINATED", sent.container_id), allocation
    (site.path / "go").touch()
    assert functions.output(request) == "seen"
    assert functions.attempts(request) == [LOST, "success"]


@protocols
@threaded
def test_waiting_for_a_child(site: Site, release: str) -> None:
    functions = Functions(site, release=release)
    functions.began()
    application = functions.deploy("call_waiter", "wait_for")
    request = functions.invoke(application, str(site.path / "go"))
    until("parent and child run", lambda: len(functions.in_state("executing")) == 2)
    both = [str(each["id"]) for each in functions.in_state("executing")]
    killed(functions)
    for allocation in both:
        assert functions.failed(allocation)[0] == "CONTAINER_TERMINATED"
    (site.path / "go").touch()
    assert functions.output(request) == "the child has seen it"
    ends = {
        run["name"]: [str(each["failure_reason"] or each["outcome"]) for each in run["allocations"]]
        for run in functions.rest.get(request)["function_runs"]
    }
    assert ends == {"call_waiter": [LOST, "success"], "wait_for": [LOST, "success"]}
    assert [str(path) for path in site.path.rglob(".*.upload")] == []


@protocols
@threaded
def test_cancelling(site: Site, release: str) -> None:
    functions = Functions(site, release=release)
    functions.began()
    application = functions.deploy("misbehave")
    functions.invoke(application, "stubborn")
    allocation = str(until("one that runs", lambda: functions.in_state("executing"))[0]["id"])
    functions.send(pb.Command(kill_allocation=pb.KillAllocation(allocation_id=allocation)))
    until("one that is cancelled", lambda: functions.in_state("cancelling"))
    killed(functions)
    reason, container = functions.failed(allocation)
    assert reason == "CONTAINER_TERMINATED" and container
    assert functions.output(functions.invoke(application, "fine")) == "fine"


@pytest.mark.parametrize("performed", [False, True])
@protocols
@threaded
def test_finalizing(site: Site, s3: FaultyS3, release: str, performed: bool) -> None:
    functions, blobs = in_store(site, s3, release)
    application = functions.deploy("greet")
    completing = s3.hold_answer(COMPLETE) if performed else s3.hold(COMPLETE)
    request = functions.invoke(application, "World")
    allocation = hangs(functions, completing, "finalizing")
    functions.kill_node()
    completing.lift()
    functions.begin_node().ready()
    assert functions.output(request) == "hello World"
    reason, container = functions.failed(allocation)
    assert reason == "CONTAINER_TERMINATED" and container
    assert functions.attempts(request) == [LOST, "success"]
    until("no upload is open", lambda: not blobs.open_uploads())


@threaded
def test_a_node_stops_in_time_although_its_store_hangs(site: Site, s3: FaultyS3) -> None:
    functions, blobs = in_store(site, s3, OLD)
    application = functions.deploy("greet")
    preparing = s3.hold_answer(CREATE)
    request = functions.invoke(application, "World")
    hangs(functions, preparing, "preparing")
    assert functions.node.stop(seconds=20) == 0
    preparing.lift()
    functions.begin_node().ready()
    assert functions.output(request) == "hello World"
    until("no upload is open", lambda: not blobs.open_uploads())
