"""The one place that waits for child processes: our own, and as PID 1 the orphans that the kernel hands us.

Race: two callers of ``wait`` in one process steal each other's exit codes (a reaper that waits for "any" takes the
status of a child before its owner asks). Here SIGCHLD leads to one loop that looks at the next dead child without
taking it (WNOWAIT), tells its owner while the pid and its process group cannot be given out again, then takes it;
a pid without an owner is an orphan and only taken. ``spawn`` runs on the same thread as that loop, so no child can
die before it is entered. Signals go out only before a child was taken, so they never reach a recycled pid.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .logs import Log
from .oom_order import prefer


@dataclass(frozen=True)
class Identity:
    """Whom a process runs as; ``home`` and ``name`` go into its environment."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str | None = None
    home: str | None = None


class Child:
    """One spawned process, leader of its own session and group. ``exited`` is its code, negative for a signal."""

    __slots__ = ("_popen", "exited", "group_ends_with_leader", "killed_by_us", "pid")

    def __init__(self, *, popen: subprocess.Popen[bytes], exited: asyncio.Future[int]) -> None:
        self.pid = popen.pid
        self.exited = exited
        self.group_ends_with_leader = False
        self.killed_by_us = False
        self._popen: subprocess.Popen[bytes] | None = popen

    def signal_group(self, number: int) -> None:
        """Signal all members of the group. Raises ProcessLookupError when the leader was taken already."""
        if self.exited.done():
            raise ProcessLookupError(f"process {self.pid} has ended")
        if number == signal.SIGKILL:
            self.killed_by_us = True
        os.killpg(self.pid, number)

    def ended(self, code: int) -> None:
        if self._popen is not None:
            # Told to the object, which would otherwise wait for the pid itself when it goes.
            self._popen.returncode = code
            self._popen = None
        if not self.exited.done():
            self.exited.set_result(code)


def take_no_dispositions_over() -> None:
    """Let children begin with default dispositions and an empty mask, whatever the daemon was started with.

    A child inherits what is ignored or blocked: below a node that ``nohup`` started, no terminal's end would end its
    programs. A handler that does nothing is as deaf as to ignore, but is not inherited across exec.
    """
    for number in signal.valid_signals():
        # These two the interpreter itself ignores; subprocess puts them right.
        if number in (signal.SIGPIPE, signal.SIGXFSZ) or signal.getsignal(number) is not signal.SIG_IGN:
            continue
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class Children:
    """Spawns and reaps. Create one per process, on the loop's thread."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop, log: Log) -> None:
        self._loop = loop
        self._log = log
        self._children: dict[int, Child] = {}

    def open(self) -> None:
        take_no_dispositions_over()
        self._loop.add_signal_handler(signal.SIGCHLD, self.reap)

    def close(self) -> None:
        self._loop.remove_signal_handler(signal.SIGCHLD)

    def spawn(
        self,
        argv: Sequence[bytes],
        *,
        env: dict[bytes, bytes],
        cwd: bytes | None,
        stdin: int,
        stdout: int,
        stderr: int,
        identity: Identity | None = None,
        before_exec: Callable[[], None] | None = None,
    ) -> Child:
        """Start ``argv`` in a session of its own. Raises OSError (its ``filename`` names what was not found)."""
        switch: dict[str, object] = {}
        if identity is not None:
            switch = {"user": identity.uid, "group": identity.gid, "extra_groups": list(identity.groups)}
        popen: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
            list(argv),
            env=env,
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=before_exec,
            **switch,
        )
        prefer(popen.pid)
        child = Child(popen=popen, exited=self._loop.create_future())
        self._children[child.pid] = child
        return child

    def alive(self) -> list[Child]:
        return list(self._children.values())

    def reap(self) -> None:
        """Take every dead child there is."""
        while True:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if dead is None or dead.si_pid == 0:
                return
            pid = dead.si_pid
            child = self._children.get(pid)
            if child is not None and child.group_ends_with_leader:
                # The zombie still holds the number of the group: nobody else can be hit.
                try:
                    os.killpg(pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    self._log.debug("no member of the group is left to kill", pid=pid)
            _, status = os.waitpid(pid, os.WNOHANG)
            if child is None:
                self._log.debug("orphan reaped", pid=pid)
                continue
            del self._children[pid]
            child.ended(os.waitstatus_to_exitcode(status))
