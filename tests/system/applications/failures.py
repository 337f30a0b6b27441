"""Functions that fail in every way. ``tally`` is a file to which every attempt writes a line."""

import os
import sys
import time

from tensorlake.applications import FunctionError, RequestError, Retries, application, cls, function


def attempt(tally: str) -> int:
    with open(tally, "a") as file:
        file.write(f"{os.getpid()} {time.time()}\n")
    with open(tally) as file:
        return len(file.readlines())


@application()
@function()
def raises(text: str) -> str:
    raise ValueError(text)


@application()
@function()
def refuses(text: str) -> str:
    raise RequestError(text)


@application()
@function()
def child_refuses(text: str) -> str:
    return refuse(text)


@function()
def refuse(text: str) -> str:
    raise RequestError(text)


@application()
@function()
def catches(text: str) -> list[str]:
    """What a caller sees of its children's failures."""
    seen = []
    for child in (refuse, stumble):
        try:
            child(text)
        except RequestError as error:
            seen.append(f"request error: {error.message}")
        except FunctionError:
            seen.append("function error")
    return seen


@function()
def stumble(text: str) -> str:
    raise ValueError(text)


@application()
@function()
def exits(tally: str) -> str:
    """Ends its process the first time."""
    if attempt(tally) == 1:
        os._exit(17)
    return "alive"


@application()
@function(memory=1)
def grows(gigabytes: int) -> int:
    """Needs more memory than it has."""
    return len(bytearray(os.urandom(1024)) * (gigabytes << 20))


@application(retries=Retries(max_retries=2))
@function()
def succeeds_at_last(tally: str) -> int:
    """Fails twice, which its policy allows."""
    tries = attempt(tally)
    if tries < 3:
        raise ValueError(f"attempt {tries}")
    return tries


@application(retries=Retries(max_retries=2))
@function()
def never_succeeds(tally: str) -> int:
    raise ValueError(f"attempt {attempt(tally)}")


@application()
@function(timeout=1, retries=Retries(max_retries=1))
def overruns(tally: str) -> int:
    attempt(tally)
    time.sleep(600)
    return 0


@application()
@function(timeout=2)
def waits_long(seconds: float) -> float:
    """The time that a child takes is not the parent's."""
    return sleep(seconds)


@function(timeout=30)
def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@application()
@function()
def uses_unmakeable(text: str) -> str:
    return Unmakeable().say(text)


@cls(init_timeout=20)
class Unmakeable:
    def __init__(self):
        print("the constructor of Unmakeable fails", file=sys.stderr, flush=True)
        raise RuntimeError("cannot be made")

    @function()
    def say(self, text: str) -> str:
        return text


@application()
@function()
def uses_slow_to_make(text: str) -> str:
    return SlowToMake().say(text)


@cls(init_timeout=2)
class SlowToMake:
    def __init__(self):
        time.sleep(600)

    @function()
    def say(self, text: str) -> str:
        return text
