"""Which ports of a sandbox the proxy may reach.

Everything here shares the host's loopback, so a port belongs to a sandbox only if one of its own processes listens on
it. Answers are kept for a moment and questions at the same time are asked once: the proxy asks for every connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ...reactor import Pool
from ..base import PortRefused
from .ports import find_listener
from .processes import alive, below, table
from .run_directory import Life
from .runs import LOOPBACK, Runs

DAEMON_PORT = 9500
HTTP_PORT = 9501
VALID_FOR = 1.0
"""Seconds an answer is believed."""
MOST_ANSWERS = 4096

Key = tuple[str, int]
Address = tuple[str, int]


@frozen
class _Answer:
    address: Address
    until: float


def find_upstream(runs: Runs, life: Life, port: int) -> Address:
    """Where ``port`` of this sandbox is reached; PortRefused. Blocking."""
    if port == DAEMON_PORT:
        raise PortRefused(f"port {DAEMON_PORT} of {life.container_id} is for the node alone")
    found = runs.find(life)
    supervisor = found[1].supervisor if found is not None else None
    if found is None or supervisor is None or found[1].main is None or not alive(found[1].main):
        raise PortRefused(f"container {life.container_id} is not running")
    directory, life = found
    ports = directory.ports()
    if ports is None:
        raise PortRefused(f"the daemon of {life.container_id} does not listen yet")
    if port == HTTP_PORT:
        return LOOPBACK, ports[1]
    if port not in ports:
        # The supervisor is a subreaper: all of the sandbox is below it. The daemon's own ports are not the user's.
        listener = find_listener(below(table(), [supervisor.pid]), port)
        if listener is not None:
            return listener.reachable_at, port
    raise PortRefused(f"no process of container {life.container_id} listens on port {port}")


class Upstreams:
    """Remembers answers and joins questions."""

    def __init__(self, *, pool: Pool, seconds: Callable[[], float], find: Callable[[Life, int], Address]) -> None:
        self._pool = pool
        self._seconds = seconds
        self._find = find
        self._answers: dict[Key, _Answer] = {}
        self._asked: dict[Key, list[Deferred[Address]]] = {}

    async def address(self, life: Life, port: int) -> Address:
        key = (life.handle_id, port)
        answer = self._answers.get(key)
        if answer is not None and self._seconds() < answer.until:
            return answer.address
        waiting: Deferred[Address] = Deferred()
        if key in self._asked:
            self._asked[key].append(waiting)
        else:
            self._asked[key] = [waiting]
            self._pool.run(self._find, life, port).addBoth(self._tell, key)
        return await waiting

    def _tell(self, result: Any, key: Key) -> None:
        if not isinstance(result, Failure):
            if len(self._answers) >= MOST_ANSWERS:
                now = self._seconds()
                self._answers = {key: answer for key, answer in self._answers.items() if now < answer.until}
            self._answers[key] = _Answer(result, self._seconds() + VALID_FOR)
        for waiting in self._asked.pop(key):
            if not waiting.called:
                (waiting.errback if isinstance(result, Failure) else waiting.callback)(result)

    def forget(self, life: Life) -> None:
        """It is being killed: no answer about it holds any more."""
        for key in [key for key in self._answers if key[0] == life.handle_id]:
            del self._answers[key]
