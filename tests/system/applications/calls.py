"""Functions that call functions in every way that the SDK has."""

import os
import time

from tensorlake.applications import RETURN_WHEN, Future, application, cls, function

FEW = 3
"""Containers of a function: as many as a small machine starts quickly."""


@application()
@function()
def greet(name: str) -> str:
    return decorate(f"hello {name}")


@function()
def decorate(text: str) -> str:
    return f"*** {shout(text)} ***"


@function()
def shout(text: str) -> str:
    return text.upper()


@application()
@function()
def squares(count: int) -> list[int]:
    return square.map(range(count))


@application()
@function()
def squares_after(seconds: float, count: int) -> list[int]:
    """Long enough for other requests to begin."""
    time.sleep(seconds)
    return square.map(range(count))


@application()
@function(max_containers=1)
def squares_alone(count: int) -> list[int]:
    return square.map(range(count))


@application()
@function()
def sum_of_squares(count: int) -> int:
    """A reduction over a map that nobody waits for in between, itself a tail call."""
    return plus.future.reduce(square.future.map(range(count)), 1000)


@function(max_containers=FEW)
def square(number: int) -> int:
    return number * number


@function(max_containers=FEW)
def plus(left: int, right: int) -> int:
    return left + right


@application()
@function()
def countdown(number: int) -> str:
    """Each step is a tail call of the next."""
    return step.future(number)


@function(max_containers=FEW)
def step(number: int) -> str:
    return step.future(number - 1) if number else "lift-off"


@application()
@function()
def race(runners: list[float]) -> list[float]:
    """Waits for the first future, then for all; the order of results is that of the calls."""
    futures = [run.future(seconds).run() for seconds in runners]
    done, others = Future.wait(futures, return_when=RETURN_WHEN.FIRST_COMPLETED)
    first = [future.result() for future in done]
    Future.wait(others)
    return [min(first), *(future.result() for future in futures)]


@function(max_containers=FEW)
def run(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@application()
@function()
async def side_by_side(count: int) -> int:
    """Coroutines of the SDK's asynchronous form."""
    total = await thrice(count)
    return total + await thrice(1)


@function()
async def thrice(number: int) -> int:
    return 3 * number


@application()
@function()
def method(text: str) -> list[str]:
    return [Reverser().turn(text), Reverser().turn(text)]


@cls()
class Reverser:
    def __init__(self):
        self.turned = 0

    @function()
    def turn(self, text: str) -> str:
        """What the instance counts shows that it lives as long as its container."""
        self.turned += 1
        return f"{text[::-1]} {self.turned}"


@application()
@function()
def hands_over(megabytes: int) -> int:
    """A large argument and a large result."""
    return len(mirror(os.urandom(1024 * 1024) * megabytes))


@function()
def mirror(data: bytes) -> bytes:
    return data[::-1]


@application()
@function()
def process(_: str) -> list[int]:
    """This process and its parent, to see where functions run."""
    return [os.getpid(), os.getppid()]
