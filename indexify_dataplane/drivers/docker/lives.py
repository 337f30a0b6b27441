"""Which containers are known to run, from what the node did and what the engine's events told.

Interleaving that matters: an answer that says that a container lives is on its way while its end is told. So ends are
remembered for a while, and win.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

REMEMBERED = 1024
"""Ends that are remembered, many more than can come while an answer is on its way."""


class Lives:
    """By engine id. Used from several threads. ``heard`` says whether ends are told."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._alive: set[str] = set()
        self._dead: OrderedDict[str, None] = OrderedDict()
        self._oom: set[str] = set()
        self._told: set[str] = set()
        self.heard = False

    def alive(self, identity: str) -> None:
        """It is about to run, or was seen running."""
        with self._lock:
            if identity not in self._dead:
                self._alive.add(identity)

    def surely_runs(self, identity: str) -> bool:
        return self.heard and identity in self._alive

    def seen(self, identity: str) -> bool:
        """Whether this process has started it, or found it running, and knows of no end."""
        return identity in self._alive

    def told_to_end(self, identity: str) -> None:
        """By this node, now."""
        with self._lock:
            self._told.add(identity)

    def known_of_end(self, identity: str) -> tuple[bool, bool]:
        """Whether an OOM kill was told of, and whether this node told it to end."""
        return identity in self._oom, identity in self._told

    def ended(self, action: str, identity: str) -> None:
        """An event: ``die``, ``oom`` or ``destroy``."""
        if action == "oom":
            with self._lock:
                self._oom.add(identity)
        elif action == "die":
            with self._lock:
                self._die(identity)
        else:
            self.gone(identity)

    def gone(self, identity: str) -> None:
        """It was removed."""
        with self._lock:
            self._die(identity)
            self._oom.discard(identity)
            self._told.discard(identity)

    def _die(self, identity: str) -> None:
        self._alive.discard(identity)
        self._dead[identity] = None
        if len(self._dead) > REMEMBERED:
            self._dead.popitem(last=False)
