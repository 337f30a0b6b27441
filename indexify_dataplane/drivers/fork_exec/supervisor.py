"""The small parent of one sandbox: starts its daemon, keeps its output in bounds, and writes down how it ended.

A process of its own, because whoever adopts a sandbox cannot wait for a process that is not its child, run as
``python -I -S supervise.py RUN_DIRECTORY LOG_MAX_BYTES LOG_KEEP [CGROUP...] -- DAEMON...``. Standard library only and
few modules of it (no json, no subprocess): this memory is paid once per sandbox.

What it holds for the node, which may be dead at any time:

- File descriptor 3 is the run directory's lock file, locked by the node before the spawn and shared since. The lock is
  held exactly as long as node-before-spawn or supervisor live, so a node that was killed between "spawned" and
  "recorded" leaves a truth that its successor can read without racing any pid.
- It leads a session of its own, so a signal to the node's process group does not reach it.
- It is a subreaper: whatever the sandbox forks, by whatever number of forks and sessions, stays below it. When the
  daemon has ended it kills all that is left, so "no child any more" proves that nothing of the sandbox lives.
- If it is killed itself, the kernel kills the daemon (parent death signal).

Signals: SIGUSR2 kills the sandbox, SIGTERM goes to the daemon, SIGINT and SIGHUP are ignored. They are blocked and
taken with ``sigtimedwait``, so there is no handler and no moment at which one is lost.
"""

from __future__ import annotations

# What ``signal`` dresses up with enumerations, for 0.8 MB.
import _signal as signal  # type: ignore[import-not-found]
import errno
import os
import sys
import time

LOCK_FD = 3
READY = b"ready\n"
KILL_PATIENCE = 30.0
READY_PATIENCE = 120.0
FAST, SLOW = 0.005, 4.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def rotate(path: str, keep: int) -> None:
    """Copy ``path`` to ``path.1`` (older ones move up, ``keep`` of them stay) and truncate it.

    The writer keeps its append-only descriptor. What it writes between the last read and the truncation is lost: a few
    microseconds of output once per full file, the price for writers that need no cooperation. A copy that fails (a
    full disk) does not keep the file from being truncated.
    """
    for number in range(keep, 1, -1):
        older = f"{path}.{number - 1}"
        if os.path.exists(older):
            os.replace(older, f"{path}.{number}")
    source = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if keep:
            target = os.open(f"{path}.1", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                while chunk := os.read(source, 1 << 16):
                    os.write(target, chunk)
            finally:
                os.close(target)
    finally:
        os.ftruncate(source, 0)
        os.close(source)


def write_whole(path: str, text: str) -> None:
    """Replace a small file: readers see the old or the new text, never a part."""
    descriptor = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
    os.replace(path + ".new", path)


def stat_fields(pid: int) -> list[bytes]:
    """Fields of ``/proc/PID/stat`` from the state on (index 0 is field 3); the name before may hold anything."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()


def descendants(root: int) -> set[int]:
    """All processes below ``root``."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parent = int(stat_fields(int(name))[1])
            except (OSError, IndexError):
                continue  # ended while we looked
            children.setdefault(parent, []).append(int(name))
    found: set[int] = set()
    waiting = [root]
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            if pid not in found:
                found.add(pid)
                waiting.append(pid)
    return found


def oom_kills(cgroups: list[str]) -> int:
    """How many processes of these cgroups the kernel killed for lack of memory."""
    for directory in cgroups:
        for name in ("memory.events", "memory.oom_control"):
            try:
                with open(f"{directory}/{name}") as file:
                    for line in file:
                        if line.startswith("oom_kill "):
                            return int(line.split()[1])
            except OSError as error:
                # Removed before the opening (ENOENT), or between the opening and the reading (ENODEV).
                if error.errno not in (errno.ENOENT, errno.ENODEV):
                    raise
    return 0


class Supervisor:
    """See the module's text."""

    def __init__(self, run: str, log_max_bytes: int, log_keep: int, cgroups: list[str], daemon: list[str]) -> None:
        self.run = run
        self.output = run + "/output.log"
        self.log_max_bytes = log_max_bytes
        self.log_keep = log_keep
        self.cgroups = cgroups
        self.daemon = daemon
        self.pid = 0
        self.status: int | None = None
        self.kill_ordered = False
        self.size = 0

    def main(self) -> int:
        import ctypes

        os.set_inheritable(LOCK_FD, False)
        taken = {signal.SIGCHLD, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
        signal.pthread_sigmask(signal.SIG_BLOCK, taken)
        os.setsid()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "cannot become a subreaper")
        output = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if os.getppid() != parent:
                    os._exit(127)
                os.dup2(output, 1)
                os.dup2(output, 2)
                os.setsid()
                self._confine()
                os.chdir(self.run + "/work")
                for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and exec would pass that on
                    signal.signal(ignored, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, taken)
                os.execvp(self.daemon[0], self.daemon)
            except BaseException as error:
                os.write(2, f"the daemon {self.daemon[0]} cannot be started: {error}\n".encode())
            finally:
                os._exit(127)
        os.close(output)
        write_whole(
            self.run + "/process.json",
            f'{{"supervisor": {parent}, "supervisor_started": {int(stat_fields(parent)[19])}, '
            f'"daemon": {self.pid}, "daemon_started": {int(stat_fields(self.pid)[19])}}}\n',
        )
        self._wait(taken)
        self._write_status(clean=False)
        clean = self._kill_rest()
        self._write_status(clean=clean)
        return 0 if clean else 1

    def _confine(self) -> None:
        for directory in self.cgroups:
            with open(directory + "/cgroup.procs", "w") as file:
                file.write(str(os.getpid()))
        try:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("0")  # a protected node must not make its sandboxes the last ones to be killed
        except OSError as error:
            os.write(2, f"oom_score_adj stays as it is: {error}\n".encode())

    def _wait(self, taken: set[int]) -> None:
        """Until the daemon has ended."""
        ready_until = time.monotonic() + READY_PATIENCE
        ready, pause = False, FAST
        while True:
            info = signal.sigtimedwait(taken, pause)
            number = info.si_signo if info is not None else 0
            if number == signal.SIGUSR2:
                self.kill_ordered = True
                os.kill(self.pid, signal.SIGKILL)
            elif number == signal.SIGTERM:
                os.kill(self.pid, signal.SIGTERM)
            self._reap()
            if self.status is not None:
                return
            if ready or time.monotonic() > ready_until:
                ready = True
                pause = self._bound_output(pause)
            elif os.path.exists(self.run + "/ports.json"):
                ready, pause = True, 1.0
                self._tell(READY)

    def _tell(self, line: bytes) -> None:
        try:
            os.write(1, line)
        except BrokenPipeError:
            print("the node was gone when the daemon became ready", file=sys.stderr, flush=True)
        null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, 1)
        os.close(null)

    def _bound_output(self, pause: float) -> float:
        """Rotate if it is time; look every second while output grows, ever less often while it does not."""
        try:
            size = os.stat(self.output).st_size
            if size > self.log_max_bytes:
                rotate(self.output, self.log_keep)
                size = 0
        except OSError as error:
            print(f"output cannot be rotated: {error}", file=sys.stderr, flush=True)
            return SLOW
        grown, self.size = size != self.size, size
        return 1.0 if grown else min(max(pause, 1.0) * 2, SLOW)

    def _reap(self) -> bool:
        """Reap what has ended; whether any child is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.pid:
                self.status = status

    def _kill_rest(self) -> bool:
        """Kill everything that is still below; False if something would not go."""
        until = time.monotonic() + KILL_PATIENCE
        pause = 0.001
        while self._reap():
            if time.monotonic() > until:
                return False
            for pid in descendants(os.getpid()):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                except PermissionError as error:
                    print(f"process {pid} cannot be killed: {error}", file=sys.stderr, flush=True)
            time.sleep(pause)
            pause = min(pause * 2, 0.1)
        return True

    def _write_status(self, clean: bool) -> None:
        if self.status is None:
            raise RuntimeError("the daemon runs")
        code, number = "null", "null"
        if os.WIFSIGNALED(self.status):
            number = str(os.WTERMSIG(self.status))
        else:
            code = str(os.WEXITSTATUS(self.status))
        # The count is sticky and a child's death counts too; only with the daemon's own SIGKILL it means this end.
        oom = number == str(signal.SIGKILL) and not self.kill_ordered and oom_kills(self.cgroups) > 0
        flags = f'"oom": {str(oom).lower()}, "clean": {str(clean).lower()}'
        text = f'{{"code": {code}, "signal": {number}, {flags}}}\n'
        try:
            write_whole(self.run + "/status.json", text)
        except OSError as error:
            print(f"the status {text.strip()} cannot be written: {error}", file=sys.stderr, flush=True)


def run(arguments: list[str]) -> int:
    dashes = arguments.index("--") if "--" in arguments else -1
    if dashes < 3 or dashes == len(arguments) - 1:
        raise SystemExit("usage: supervise.py RUN_DIRECTORY LOG_MAX_BYTES LOG_KEEP [CGROUP...] -- DAEMON...")
    directory, log_max_bytes, log_keep, *cgroups = arguments[:dashes]
    return Supervisor(directory, int(log_max_bytes), int(log_keep), cgroups, arguments[dashes + 1 :]).main()
