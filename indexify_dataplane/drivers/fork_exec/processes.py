"""Processes of this host, told apart from later ones with the same pid by their start time.

Blocking (``/proc``) and quick; whole-table calls belong into a thread.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping

from attrs import frozen

MARKER = "INDEXIFY_RUN_ID"
"""Variable in the environment of every process of a container: the last means to find one whose parents are gone."""


@frozen(order=True)
class Process:
    """``started`` is in clock ticks since boot (field 22 of ``/proc/PID/stat``)."""

    pid: int
    started: int


@frozen
class Row:
    """What the table tells about one process; ``zombie`` ones are dead and only wait to be reaped."""

    process: Process
    parent: int
    session: int
    zombie: bool


def look_up(pid: int) -> Row | None:
    """None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in parentheses, may itself hold spaces and parentheses.
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Row(
        process=Process(pid, int(fields[19])),
        parent=int(fields[1]),
        session=int(fields[3]),
        zombie=fields[0] in (b"Z", b"X"),
    )


def alive(process: Process) -> bool:
    """Whether exactly this process runs; a zombie does not."""
    row = look_up(process.pid)
    return row is not None and row.process == process and not row.zombie


def table() -> dict[int, Row]:
    """All processes this host shows, zombies left out."""
    rows = (look_up(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {row.process.pid: row for row in rows if row is not None and not row.zombie}


def below(rows: Mapping[int, Row], roots: Iterable[int]) -> set[int]:
    """Pids of all descendants of ``roots``, without them."""
    children: dict[int, list[int]] = {}
    for pid, row in rows.items():
        children.setdefault(row.parent, []).append(pid)
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            if pid not in found:
                found.add(pid)
                waiting.append(pid)
    return found


def marked(run_id: str, rows: Mapping[int, Row]) -> set[int]:
    """Pids whose environment carries the marker of this run. Others' processes cannot be read and are left out."""
    wanted = f"{MARKER}={run_id}".encode()
    found = set()
    for pid in rows:
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                environment = file.read()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if wanted in environment.split(b"\0"):
            found.add(pid)
    return found


def send(process: Process, number: int) -> bool:
    """Signal exactly this process; False when it is gone. The pidfd is taken before the start time is compared, so a
    reused pid is never hit."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not alive(process):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def end_all(find: Callable[[Mapping[int, Row]], set[int]], patience: float = 10.0) -> list[int]:
    """Kill what ``find`` returns until it returns nothing; the pids that are left after ``patience`` seconds.

    All are stopped before the first is killed: one that forks while its siblings die would else get away with a child
    that no parent chain leads to.
    """
    until = time.monotonic() + patience
    pause = 0.001
    own = os.getpid()
    stopped: set[Process] = set()
    while True:
        rows = table()
        found = {rows[pid].process for pid in find(rows) if pid in rows and pid != own}
        if not found:
            return []
        fresh = found - stopped
        if fresh and time.monotonic() < until:
            for process in fresh:
                send(process, signal.SIGSTOP)
            stopped |= fresh
            continue
        for process in found:
            send(process, signal.SIGKILL)
        if time.monotonic() > until:
            return sorted(process.pid for process in found)
        time.sleep(pause)
        pause = min(pause * 2, 0.1)
