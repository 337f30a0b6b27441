"""Idle connections to containers, kept for the next request. Keyed by container, because addresses are reused fast."""

from __future__ import annotations

from typing import Protocol


class Poolable(Protocol):
    """A connection with no exchange on it."""

    key: tuple[str, int]
    idle_since: float

    def closed(self) -> bool: ...
    def close(self) -> None: ...


class IdleConnections:
    """At most ``capacity`` of all containers together, each for at most ``idle_secs``."""

    def __init__(self, *, capacity: int, idle_secs: float) -> None:
        self._capacity = capacity
        self._idle_secs = idle_secs
        self._idle: dict[tuple[str, int], list[Poolable]] = {}
        self._forgotten = False
        self.count = 0

    def take(self, key: tuple[str, int]) -> Poolable | None:
        """The one used last, which is the least likely to be closed by the other side."""
        idle = self._idle.get(key)
        while idle:
            connection = idle.pop()
            self.count -= 1
            if not connection.closed():
                return connection
        return None

    def put(self, connection: Poolable, now: float) -> None:
        if self._forgotten or self.count >= self._capacity:
            connection.close()
            return
        connection.idle_since = now
        self.count += 1
        idle = self._idle.get(connection.key)
        if idle is None:
            self._idle[connection.key] = [connection]
        else:
            idle.append(connection)

    def lost(self, connection: Poolable) -> None:
        """An idle connection was closed by the other side."""
        idle = self._idle.get(connection.key)
        if idle and connection in idle:
            idle.remove(connection)
            self.count -= 1
            if not idle:
                del self._idle[connection.key]

    def expire(self, now: float) -> None:
        for key, idle in list(self._idle.items()):
            kept = [connection for connection in idle if now - connection.idle_since < self._idle_secs]
            if len(kept) < len(idle):
                self._close(idle[: len(idle) - len(kept)])
            if kept:
                self._idle[key] = kept
            else:
                del self._idle[key]

    def forget(self, container_id: str) -> None:
        """Close what is kept for a container that takes no more requests."""
        for key in [key for key in self._idle if key[0] == container_id]:
            self._close(self._idle.pop(key))

    def close(self) -> None:
        """Close all, now and those that come back later."""
        self._forgotten = True
        idle, self._idle = self._idle, {}
        for connections in idle.values():
            self._close(connections)

    def _close(self, connections: list[Poolable]) -> None:
        self.count -= len(connections)
        for connection in connections:
            connection.close()
