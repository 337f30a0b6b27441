"""Applications end to end: deployed and called by their author with the real SDK, run by the installed program.

Every test runs with executors and SDK of an old release (state protocol) and of the newest (event log).
"""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .applications.stage import RELEASES, Author, Stage
from .harness import ROOMY, Site, until

Tell = Callable[[str], None]


@pytest.fixture(scope="module", params=RELEASES)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    made = Stage(request.param)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def calls(stage: Stage) -> Author:
    return stage.author("calls.py")


@pytest.fixture
def failures(stage: Stage) -> Author:
    return stage.author("failures.py")


@pytest.fixture
def context(stage: Stage) -> Author:
    return stage.author("context.py")


@pytest.fixture
def tally(tmp_path: Path) -> Path:
    """A file that functions write to."""
    return tmp_path / "tally"


def runs(request: dict[str, Any]) -> list[tuple[str, str | None, int]]:
    """Function, failure reason and number of attempts of every run."""
    return [(run["name"], run["failure_reason"], len(run["allocations"])) for run in request["function_runs"]]


def lines(tally: Path) -> list[str]:
    return tally.read_text().splitlines() if tally.exists() else []


# What the documentation shows


def test_documented_application_runs_unchanged(stage: Stage) -> None:
    """Map, reduce, a class, a tail call, images, progress, models as results."""
    author = stage.author("words.py")
    pages = ["a quick brown fox", "jumps", "over the lazy dogs gladly"]
    report = author.value("report", pages, seconds=60)
    assert report == {"words": 10, "longest": "gladly", "headline": "Gladly and 9 other words"}
    noted = {event["image"] for event in stage.node.events() if event["message"].startswith("image noted, not built")}
    if author.release != "0.4.19":  # newer ones build images before they deploy
        assert any("/report/" in image for image in noted), noted


def test_functions_run_below_the_node(calls: Author, stage: Stage) -> None:
    """As direct children, one process per function: those who started the node can tell its executors."""
    first, second = calls.value("process", "x"), calls.value("process", "x")
    assert first[1] == stage.node.pid
    assert first == second


# Calls


def test_chain_of_three_functions(calls: Author, stage: Stage) -> None:
    assert calls.value("greet", "bob") == "*** HELLO BOB ***"
    request = stage.last_request("greet")
    assert request["outcome"] == "success"
    assert runs(request) == [("greet", None, 1), ("decorate", None, 1), ("shout", None, 1)]


def test_fan_out_of_fifty(calls: Author, stage: Stage, tell: Tell) -> None:
    began = time.monotonic()
    assert calls.value("squares", 50) == [number * number for number in range(50)]
    tell(f"{calls.release}: 50 calls side by side in {time.monotonic() - began:.2f} s, starts included")
    request = stage.last_request("squares")
    assert [run for run in runs(request) if run[0] == "square"] == [("square", None, 1)] * 50
    assert len({container["id"] for container in stage.containers("squares") if "square" in container["function_name"]})


def test_maps_of_a_function_that_has_one_container(calls: Author) -> None:
    requests = [calls.ask("invoke", "squares_alone", 3) for _ in range(2)]
    assert [calls.ask("output", each)["value"] for each in requests] == [[0, 1, 4]] * 2


def test_reduction_of_a_map_that_nobody_waits_for(calls: Author) -> None:
    assert calls.value("sum_of_squares", 5) == 1030


def test_tail_calls(calls: Author, stage: Stage) -> None:
    assert calls.value("countdown", 3) == "lift-off"
    assert [name for name, _, _ in runs(stage.last_request("countdown"))] == ["countdown", *["step"] * 4]


def test_futures_are_waited_for(calls: Author) -> None:
    calls.value("race", [0.0, 0.0])  # both containers are there
    first, *both = calls.value("race", [1.5, 0.1])
    assert both == [1.5, 0.1]
    if calls.release != "0.4.19":  # which looks at one future after the other
        assert first == 0.1


def test_coroutines(calls: Author) -> None:
    assert calls.value("side_by_side", 4) == 15


def test_instances_live_as_long_as_their_container(calls: Author) -> None:
    assert calls.value("method", "abc") == ["cba 1", "cba 2"]


def test_large_argument_and_result(calls: Author, tell: Tell) -> None:
    began = time.monotonic()
    assert calls.value("hands_over", 100) == 100 << 20
    tell(f"{calls.release}: 100 MiB to a function and back in {time.monotonic() - began:.2f} s, starts included")


# Failures


def test_exception(failures: Author, stage: Stage) -> None:
    assert failures.failure("raises", "x") == ("RequestFailed", "function_error")
    request = stage.last_request("raises")
    assert request["outcome"] == {"failure": "function_error"}
    assert request["request_error"] is None


def test_request_error(failures: Author, stage: Stage) -> None:
    assert failures.failure("refuses", "no way, \u00fc") == ("RequestError", "no way, \u00fc")
    assert stage.last_request("refuses")["request_error"]["function_name"] == "refuses"
    assert failures.failure("child_refuses", "nor here") == ("RequestError", "nor here")


def test_callers_catch_failures(failures: Author, stage: Stage) -> None:
    assert failures.value("catches", "t") == ["request error: t", "function error"]
    assert stage.last_request("catches")["outcome"] == "success"


def test_exit_of_the_process(failures: Author, stage: Stage, tally: Path) -> None:
    assert failures.failure("exits", str(tally)) == ("RequestFailed", "function_error")
    began = time.monotonic()
    assert failures.value("exits", str(tally)) == "alive"
    assert time.monotonic() - began < 10


def test_out_of_memory(failures: Author, stage: Stage) -> None:
    if stage.node.events("resource limits are not all enforced: cgroups cannot be created"):
        pytest.skip("cgroups cannot be created here")
    assert failures.failure("grows", 3) == ("RequestFailed", "out_of_memory")
    assert runs(stage.last_request("grows")) == [("grows", "out_of_memory", 1)]


def test_retries_stay_in_their_process(failures: Author, stage: Stage, tally: Path) -> None:
    assert failures.value("succeeds_at_last", str(tally)) == 3
    assert len({line.split()[0] for line in lines(tally)}) == 1
    assert runs(stage.last_request("succeeds_at_last")) == [("succeeds_at_last", None, 3)]


def test_retries_end(failures: Author, tally: Path) -> None:
    assert failures.failure("never_succeeds", str(tally)) == ("RequestFailed", "function_error")
    assert len(lines(tally)) == 3


def test_timeout_of_a_run(failures: Author, tally: Path) -> None:
    """It ends with the process that would not stop; its policy allows one more attempt."""
    assert failures.failure("overruns", str(tally), seconds=60) == ("RequestFailed", "function_timeout")
    pids = [int(line.split()[0]) for line in lines(tally)]
    assert len(pids) == 2
    until("the processes are gone", lambda: not any(Path("/proc", str(pid)).exists() for pid in pids))


def test_waiting_for_a_call_is_no_part_of_the_timeout(failures: Author) -> None:
    assert failures.value("waits_long", 2.5) == 2.5


def test_failing_constructor(failures: Author, stage: Stage) -> None:
    assert failures.failure("uses_unmakeable", "x") == ("RequestFailed", "function_error")
    assert ("Unmakeable.say", "function_error", 1) in runs(stage.last_request("uses_unmakeable"))
    said = [event for event in stage.node.events("container terminated") if event["fn"] == "Unmakeable.say"]
    assert "the constructor of Unmakeable fails" in said[-1]["error"]


def test_constructor_that_takes_too_long(failures: Author, stage: Stage) -> None:
    assert failures.failure("uses_slow_to_make", "x") == ("RequestFailed", "function_timeout")
    assert ("SlowToMake.say", "function_timeout", 1) in runs(stage.last_request("uses_slow_to_make"))


# Context


def test_request_state(context: Author, stage: Stage) -> None:
    for value in ("one", "two"):
        before, changed, after, request_id = context.value("remembers", value)
        assert (before, changed, after) == ("nothing", f"{value} and more", f"{value} and more")
        assert request_id == stage.last_request("remembers")["id"]


def test_progress_begins_the_timeout_anew(context: Author) -> None:
    assert context.value("keeps_going", 3) == 6


def test_requests_run_side_by_side(context: Author, stage: Stage) -> None:
    ids = [context.ask("invoke", "overlaps", 1.0) for _ in range(4)]
    spans = [context.ask("output", each)["value"] for each in ids]
    assert max(began for began, _ in spans) < min(ended for _, ended in spans), spans
    assert len([each for each in stage.containers("overlaps") if each["current_state"] == "running"]) == 4


# Life


def test_deleting_an_application_ends_what_runs(context: Author, stage: Stage, tally: Path) -> None:
    request = context.ask("invoke", "takes_time", str(tally))
    until("it runs", lambda: lines(tally) == ["begun"])
    containers = {each["id"] for each in stage.containers("takes_time")}
    assert containers <= stage.processes().keys()
    stage.delete("takes_time")
    until("its processes are gone", lambda: not containers & stage.processes().keys())
    path = f"/v1/namespaces/default/applications/takes_time/requests/{request}"
    assert stage.rest.send("GET", path)[0] == 404
    assert lines(tally) == ["begun"]


def test_what_a_deleted_request_still_runs_is_nobody_elses_result(context: Author, stage: Stage, tally: Path) -> None:
    context.ask("deploy_again")
    request = context.ask("invoke", "takes_time", str(tally))
    until("it runs", lambda: lines(tally) == ["begun"])
    stage.rest.ask("DELETE", f"/v1/namespaces/default/applications/takes_time/requests/{request}")
    with tally.open("a") as file:
        file.write("end it\n")
    second = context.ask("invoke", "takes_time", str(tally))
    assert context.ask("output", second)["value"] == "ended"


def test_the_code_of_a_deleted_request_ends(context: Author, stage: Stage, tally: Path, tmp_path: Path) -> None:
    """And the function's only container is there for the next request at once."""
    context.ask("deploy_again")
    request = context.ask("invoke", "ticks", str(tally), 10_000)
    until("it runs", lambda: lines(tally))
    stage.rest.ask("DELETE", f"/v1/namespaces/default/applications/ticks/requests/{request}")
    other = tmp_path / "other"
    began = time.monotonic()
    second = context.ask("invoke", "ticks", str(other), 20)
    assert context.ask("output", second)["value"] == "done"
    assert time.monotonic() - began < 30
    seen = len(lines(tally))
    third = context.ask("invoke", "ticks", str(other), 20)
    assert context.ask("output", third)["value"] == "done"
    assert len(lines(tally)) == seen


def test_warm_invoke_and_cold_start(calls: Author, stage: Stage, tell: Tell) -> None:
    stage.delete("process")
    calls.ask("deploy_again")
    [cold] = calls.ask("timed", "process", "x", 1)
    calls.ask("timed", "process", "x", 5)
    warm = calls.ask("timed", "process", "x", 40)
    median = statistics.median(warm)
    tell(f"{calls.release}: cold call {cold * 1000:.0f} ms, warm call p50 {median * 1000:.1f} ms by the SDK's clock")
    assert cold < 60
    assert median < 0.25, warm


def test_nothing_is_left_of_deleted_applications(stage: Stage) -> None:
    for application in stage.rest.get("/v1/namespaces/default/applications")["applications"]:
        stage.delete(application["name"])
    until("no process of an executor is left", lambda: not stage.processes())
    until("every outcome is delivered", lambda: stage.node.state()["unacknowledged_reports"] == 0)
    assert stage.node.alive
    assert not [event for event in stage.node.events() if "traceback" in event]


# Crashes: a control plane and a node of their own


@pytest.mark.parametrize("release", RELEASES)
def test_request_ends_although_the_node_is_killed(release: str, site: Site, tmp_path: Path, tell: Tell) -> None:
    """It dies in the middle of a run; the one that is started after it reports that, and the run is tried again."""
    stage = Stage(release, site=site, apart=True)
    try:
        author, tally = stage.author("context.py"), tmp_path / "tally"
        request = author.ask("invoke", "takes_time", str(tally))
        until("it runs", lambda: lines(tally) == ["begun"])
        [pid] = stage.processes().values()
        began = time.monotonic()
        stage.node.send_signal(signal.SIGKILL)
        stage.node.wait()
        until("its executor died with it", lambda: not Path("/proc", str(pid)).exists())
        stage.start_node()
        until("it runs again", lambda: lines(tally) == ["begun", "begun"])
        tell(f"{author.release}: running again {time.monotonic() - began:.2f} s after the node was killed")
        with tally.open("a") as file:
            file.write("end it\n")
        assert author.ask("output", request) == {"value": "ended"}
        [(name, failure, attempts)] = runs(stage.request("takes_time", request))
        assert (name, failure, attempts) == ("takes_time", None, 2)
    finally:
        stage.close_authors()


@pytest.mark.parametrize("release", RELEASES[:1])
def test_work_goes_on_on_another_node(release: str, site: Site, tmp_path: Path) -> None:
    """The node is stopped while it runs something; a second one, there already, does it again."""
    stage = Stage(release, site=site, apart=True)
    try:
        author, tally = stage.author("context.py"), tmp_path / "tally"
        request = author.ask("invoke", "takes_time", str(tally))
        until("it runs", lambda: lines(tally) == ["begun"])
        first = stage.node
        stage.start_node("second")
        until("both are known", lambda: len(stage.rest.get("/internal/executors")) == 2)
        first.send_signal(signal.SIGTERM)
        until("it runs again", lambda: lines(tally) == ["begun", "begun"])
        assert first.wait() == 0
        with tally.open("a") as file:
            file.write("end it\n")
        assert author.ask("output", request) == {"value": "ended"}
    finally:
        stage.close_authors()


# A machine of two CPUs


@pytest.mark.parametrize("release", RELEASES[-1:])
def test_requests_that_map_at_the_same_time_end(release: str) -> None:
    """With the newest SDK a map is a call of the function that makes it, and here more callers wait than there are
    CPUs; another application has its turn all the same."""
    stage = Stage(release, keys={"resource_overrides": {**ROOMY, "cpu_count": 2}})
    try:
        calls = stage.author("calls.py")
        requests = [calls.ask("invoke", "squares_after", 1.5, 2) for _ in range(4)]
        assert calls.value("greet", "bob") == "*** HELLO BOB ***"
        assert [calls.ask("output", each)["value"] for each in requests] == [[0, 1]] * len(requests)
    finally:
        stage.close()
