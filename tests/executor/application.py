"""The users' application of the tests with real executors. It is packed into a ZIP, never imported here."""

import os
import time

from tensorlake.applications import RequestContext, RequestError, application, function


def later(called):  # Release 0.3.5 has the older name.
    return called.future if hasattr(called, "future") else called.awaitable


@application()
@function()
def greet(name: str) -> str:
    return f"hello {name}"


@application()
@function()
def misbehave(how: str) -> str:
    print("begun", flush=True)
    if how == "raise":
        raise ValueError("users' mistake")
    if how == "request error":
        raise RequestError("not like this")
    if how == "exit":
        os._exit(7)
    if how == "sleep":
        time.sleep(600)
    if how == "nap":
        time.sleep(1.5)
    if how == "eat":
        return str(len(bytearray(os.urandom(1024)) * (2 << 20)))
    if how == "stubborn":
        while True:
            try:
                time.sleep(600)
            except BaseException:
                pass
    return how


@application()
@function()
def double(number: int) -> int:
    return number * 2


@application()
@function()
def fail(number: int) -> int:
    if number < 0:
        raise RequestError(f"{number} is negative")
    raise ValueError(f"{number}")


@application()
@function()
def call(number: int) -> int:
    return double(number) + 1


@application()
@function()
def call_and_sleep(number: int) -> int:
    doubled = double(number)
    print("called", flush=True)
    time.sleep(600)
    return doubled


@application()
@function()
def fan_out(count: int) -> int:
    return sum(double.map(list(range(count))))


@application()
@function()
def tail(number: int) -> int:
    return later(double)(number)


@application()
@function()
def catch(number: int) -> str:
    try:
        return str(fail(number))
    except RequestError as error:
        return f"request error: {error.message}"
    except Exception as error:
        return f"{type(error).__name__}"


@application()
@function()
def wait_briefly(number: int) -> str:
    future = later(double)(number).run()
    try:
        return str(future.result(timeout=0.2))
    except Exception as error:
        return type(error).__name__


@application()
@function()
def report_progress(steps: int) -> int:
    context = RequestContext.get()
    for step in range(steps):
        context.progress.update(current=step + 1, total=steps)
        while not os.path.exists(os.path.join(os.environ["HOME"], f"go-{step}")):
            time.sleep(0.01)
    return steps


@application()
@function()
def remember(value: str) -> list:
    state = RequestContext.get().state
    before = state.get("a key/with ü", "nothing")
    state.set("a key/with ü", value * 3)
    first = state.get("a key/with ü")
    state.set("a key/with ü", value)
    return [before, first, state.get("a key/with ü")]


@application()
@function()
def try_state(how: str) -> str:
    state = RequestContext.get().state
    try:
        return str(state.get("key", "nothing")) if how == "get" else str(state.set("key", how))
    except Exception as error:
        return type(error).__name__


@application()
@function()
def grow(megabytes: int) -> str:
    return "0123456789abcdef" * (65536 * megabytes)


@function()
def measure(data: bytes) -> int:
    return len(data)


@application()
@function()
def measure_grown(megabytes: int) -> int:
    return measure(os.urandom(1024 * 1024) * megabytes)


@application()
@function()
def catch_anything(number: int) -> str:
    try:
        return str(double(number))
    except Exception as error:
        return type(error).__name__


@application()
@function()
def wait_for(path: str) -> str:
    while not os.path.exists(path):
        time.sleep(0.01)
    return "seen"


@application()
@function()
def call_waiter(path: str) -> str:
    return f"the child has {wait_for(path)} it"
