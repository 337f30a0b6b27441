"""Finds what a process started, wherever it went, to kill all of it.

A descendant is told by its parent chain, its session, or the mark in its environment. The chain breaks when a parent
dies, so it is followed before the leader is killed; the mark outlives that and is looked for again after. A process
that breaks all three (it forks twice, opens a session of its own *and* cleans its environment) escapes, as it would
from anything but a cgroup of its own, which a container seldom may make.

Race: between looking and killing, a pid can be given to another process. So each is pinned by a pidfd, looked at
again through its start time, and signalled through the pidfd.
"""

from __future__ import annotations

import asyncio
import os
import signal

from .environment import MARK

ROUNDS = 10


class Descendants:
    """The tree of ``leader``, whose processes carry ``mark``."""

    def __init__(self, *, leader: int, mark: str) -> None:
        self._leader = leader
        self._mark = MARK + b"=" + mark.encode("ascii") + b"\0"
        self._found: dict[int, int] = {}  # pid to start time

    @classmethod
    def of_all(cls, mark: str) -> Descendants:
        """Everything that any process of a daemon started; ``mark`` is what all their marks begin with."""
        everything = cls(leader=-1, mark=mark)
        everything._mark = everything._mark[:-1] + b"-"
        return everything

    def look_while_leader_lives(self) -> None:
        """Follow the parent chain and the session; cheap, one small file per process of the pid namespace."""
        table = process_table()
        children: dict[int, list[int]] = {}
        for pid, (parent, _, _, _) in table.items():
            children.setdefault(parent, []).append(pid)
        queue = [self._leader]
        while queue:
            for pid in children.pop(queue.pop(), ()):
                self._found[pid] = table[pid][2]
                queue.append(pid)
        for pid, (_, session, started, _) in table.items():
            if session == self._leader and pid != self._leader:
                self._found[pid] = started

    async def kill(self) -> None:
        """Kill what was found, then look for marked and session members until nothing new comes up."""
        await asyncio.get_running_loop().run_in_executor(None, self._kill_all)

    def _kill_all(self) -> None:
        killed: set[tuple[int, int]] = set()
        for _ in range(ROUNDS):
            fresh = [item for item in self._found.items() if item not in killed]
            for pid, started in fresh:
                _kill_pinned(pid, started)
            killed.update(fresh)
            self._found = {
                pid: started
                for pid, (_, session, started, dead) in process_table().items()
                if not dead and pid not in (1, os.getpid()) and (session == self._leader or self._marked(pid))
            }
            if all(item in killed for item in self._found.items()):
                return

    def _marked(self, pid: int) -> bool:
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                environ = file.read(1024 * 1024)
        except OSError:
            # Gone, or another user's: then it is none of ours.
            return False
        return self._mark in environ


def process_table() -> dict[int, tuple[int, int, int, bool]]:
    """pid to (parent, session, start time in ticks, whether it is dead) of every process that can be seen."""
    table: dict[int, tuple[int, int, int, bool]] = {}
    try:
        names = os.listdir("/proc")
    except OSError:
        # No /proc in this container: the group is all that can be told.
        return table
    for name in names:
        if name.isdigit():
            row = process_row(int(name))
            if row is not None:
                table[int(name)] = row
    return table


def process_row(pid: int) -> tuple[int, int, int, bool] | None:
    """One row of ``process_table``; None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read(4096)
    except OSError:
        return None
    # The command in parentheses may hold anything, parentheses included.
    fields = text[text.rfind(b")") + 2 :].split()
    if len(fields) < 20:
        return None
    return int(fields[1]), int(fields[3]), int(fields[19]), fields[0] in (b"Z", b"X")


def _kill_pinned(pid: int, started: int) -> None:
    try:
        pin = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError:
        # A kernel without pidfds: the window is as small as it gets.
        pin = -1
    try:
        row = process_row(pid)
        if row is None or row[2] != started:
            return
        if pin >= 0:
            signal.pidfd_send_signal(pin, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
    finally:
        if pin >= 0:
            os.close(pin)
