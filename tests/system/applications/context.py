"""What functions ask of their request's context."""

import time

from tensorlake.applications import RequestContext, application, function


@application()
@function()
def remembers(value: str) -> list[str]:
    """State is shared by the functions of one request and starts empty."""
    context = RequestContext.get()
    before = context.state.get("note", "nothing")
    context.state.set("note", value)
    changed = append(" and more")
    return [before, changed, context.state.get("note"), context.request_id]


@function()
def append(more: str) -> str:
    state = RequestContext.get().state
    state.set("note", state.get("note") + more)
    return state.get("note")


@application()
@function(timeout=2)
def keeps_going(seconds: float) -> int:
    """Runs beyond its timeout, which every sign of progress begins anew."""
    progress = RequestContext.get().progress
    steps = int(seconds / 0.5)
    for step in range(steps):
        progress.update(step + 1, steps)
        time.sleep(0.5)
    return steps


@application()
@function(max_containers=4)
def overlaps(seconds: float) -> list[float]:
    """When it ran, to see what runs at the same time."""
    began = time.time()
    time.sleep(seconds)
    return [began, time.time()]


@application()
@function(max_containers=1)
def takes_time(tally: str) -> str:
    """Writes when it begins and when it ends."""
    with open(tally, "a") as file:
        file.write("begun\n")
    for _ in range(100):
        time.sleep(0.1)
        with open(tally) as file:
            if "end it\n" in file:
                return "ended"
    return "ended late"


@application()
@function(max_containers=1)
def ticks(tally: str, times: int) -> str:
    """Writes all the time that it runs."""
    for _ in range(times):
        with open(tally, "a") as file:
            file.write("tick\n")
        time.sleep(0.05)
    return "done"


@application()
@function()
def echo(data: bytes) -> bytes:
    return data
