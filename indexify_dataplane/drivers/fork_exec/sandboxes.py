"""Sandboxes under fork-exec: a daemon below a supervisor that outlives the node.

Interleavings that matter: a kill can come while the start is under way (whoever removes the run directory first, the
other finds nothing and is content), and a kill removes the status file while a watch is about to read it (the kill
leaves the status to the watches first).
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from ...core.model import ExitStatus, Handle
from ...reactor import Pool
from ..base import DriverError, StartOrder
from ..completion import to_the_end
from . import environment, supervise, supervisor
from .exit_watch import ExitWatch
from .processes import Process, send
from .run_directory import Life
from .runs import Run, Runs

log = Logger()

KILL_PATIENCE = 5.0
"""Seconds a supervisor has to end its sandbox before that is done without it."""
LOOK_AGAIN = 0.5
"""Seconds between two looks at a sandbox whose supervisor is not known yet."""


class Settings(Protocol):
    """The ``fork_exec`` section of the configuration."""

    @property
    def log_max_bytes(self) -> int: ...

    @property
    def log_keep(self) -> int: ...

    @property
    def env_deny(self) -> Sequence[str]: ...


class _SupervisorProcess(ProcessProtocol):
    """The node's end of a supervisor: ``ready`` fires when the daemon listens, or fails with how it ended before."""

    def __init__(self) -> None:
        self.ready: Deferred[None] = Deferred()
        self._said = b""

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self._said += data
        if self._said == supervisor.READY and not self.ready.called:
            self.ready.callback(None)

    def processEnded(self, reason: Failure) -> None:
        if not self.ready.called:
            how = "ended" if reason.check(ProcessDone) else f"ended: {reason.getErrorMessage()}"
            self.ready.errback(DriverError(f"the supervisor {how}"))


class _Watch:
    """One ``watch`` of one sandbox; tells once."""

    def __init__(self, tell: Callable[[ExitStatus], None]) -> None:
        self._tell: Callable[[ExitStatus], None] | None = tell
        self.exit: ExitWatch | None = None
        self.timer: Any = None

    @property
    def stopped(self) -> bool:
        return self._tell is None

    def tell(self, status: ExitStatus) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(status)

    def stop(self) -> None:
        self._tell = None
        if self.exit is not None:
            self.exit.stop()
        if self.timer is not None and self.timer.active():
            self.timer.cancel()


class Sandboxes:
    """Starts, watches and ends them; the blocking parts run in ``pool``."""

    def __init__(
        self,
        *,
        reactor: Any,
        pool: Pool,
        runs: Runs,
        settings: Settings,
        daemon_command: Sequence[str],
        environment: Mapping[str, str],
        start_timeout: float,
    ) -> None:
        self._reactor = reactor
        self._pool = pool
        self._runs = runs
        self._settings = settings
        self._daemon_command = tuple(daemon_command)
        self._environment = environment
        self._start_timeout = start_timeout
        self._watches: dict[str, set[_Watch]] = {}
        self._statuses: dict[str, ExitStatus] = {}
        self.starting: set[str] = set()

    def close(self) -> None:
        """Stop all watches. The sandboxes go on."""
        for watches in list(self._watches.values()):
            for watch in list(watches):
                watch.stop()
        self._watches.clear()
        self._statuses.clear()

    async def start(self, order: StartOrder) -> Handle:
        run = self._runs.begin(order)
        self.starting.add(run.life.run_id)
        try:
            await to_the_end(self._pool.run(self._runs.prepare, run, order))
            process = self._spawn(run, order)
            await process.ready.addTimeout(self._start_timeout, self._reactor)
            return await to_the_end(self._pool.run(self._handle, run))
        except Exception as error:
            words = ""
            if isinstance(error, (DriverError, TimeoutError)):
                words = await to_the_end(self._pool.run(self._runs.last_words, run))
            run.close()
            await to_the_end(self._pool.run(self._runs.destroy, run.life))
            if isinstance(error, TimeoutError):
                problem = f"the daemon of {order.container_id} was not ready after {self._start_timeout:g} s{words}"
                raise DriverError(problem) from error
            if isinstance(error, DriverError) and words:
                raise DriverError(f"sandbox {order.container_id} cannot be started: {error}{words}") from error
            if isinstance(error, OSError):
                raise DriverError(f"sandbox {order.container_id} cannot be started: {error}") from error
            raise
        finally:
            self.starting.discard(run.life.run_id)

    def _spawn(self, run: Run, order: StartOrder) -> _SupervisorProcess:
        if run.directory is None:
            raise DriverError(f"the start of {order.container_id} was not prepared")
        home = run.directory.file("work")
        daemon = [
            *self._daemon_command,
            "--port", "0", "--http-port", "0", "--address", "127.0.0.1",
            "--log-dir", run.directory.file("logs"), "--port-file", run.directory.file("ports.json"),
        ]  # fmt: skip
        if order.argv:
            daemon += ["--", *order.argv]
        arguments = [
            sys.executable, "-I", "-S", supervise.__file__, run.directory.path,
            str(self._settings.log_max_bytes), str(self._settings.log_keep), *run.cgroups, "--", *daemon,
        ]  # fmt: skip
        null, own_log = run.descriptors
        protocol = _SupervisorProcess()
        # The child's copy of the lock descriptor shares the lock, so there is no moment at which it is free.
        self._reactor.spawnProcess(
            protocol,
            sys.executable,
            arguments,
            env=environment.for_sandbox(self._environment, order, run.life.run_id, home),
            childFDs={0: null, 1: "r", 2: own_log, supervisor.LOCK_FD: run.lock},
        )
        run.close()
        return protocol

    def _handle(self, run: Run) -> Handle:
        found = self._runs.find(run.life)
        if found is None:
            raise DriverError(f"container {run.life.container_id} was killed while it started")
        handle = self._runs.handle(*found)
        if handle.http_address is None:
            raise DriverError(f"the daemon of {run.life.container_id} did not say where it listens")
        return handle

    async def terminate(self, life: Life) -> None:
        await self._pool.run(self._send_to_daemon, life, signal.SIGTERM)

    def _send_to_daemon(self, life: Life, number: int) -> None:
        found = self._runs.find(life)
        if found is not None and found[1].main is not None:
            send(found[1].main, number)

    async def kill(self, life: Life) -> None:
        ending = await to_the_end(self._pool.run(self._order_end, life))
        if ending is not None:
            await self._gone(ending)
        await to_the_end(self._pool.run(self._runs.destroy, life, lambda status: self._leave(life, status)))
        if life.handle_id not in self._watches:
            self._statuses.pop(life.handle_id, None)

    def _leave(self, life: Life, status: ExitStatus) -> None:
        """In the kill's thread: keep the status for the watches before its file is gone."""
        self._statuses[life.handle_id] = status

    def _order_end(self, life: Life) -> Process | None:
        """Tell the supervisor; None when there is none to tell."""
        found = self._runs.find(life)
        ending = found[1].supervisor if found is not None else None
        return ending if ending is not None and send(ending, signal.SIGUSR2) else None

    async def _gone(self, process: Process) -> None:
        """Until it has ended, or the patience with it."""
        over: Deferred[None] = Deferred()

        def end() -> None:
            if not over.called:
                over.callback(None)

        watch = ExitWatch(self._reactor, process, end)
        timer = self._reactor.callLater(KILL_PATIENCE, end)
        try:
            await to_the_end(over)
        finally:
            watch.stop()
            if timer.active():
                timer.cancel()

    def watch(self, life: Life, exited: Callable[[ExitStatus], None]) -> Callable[[], None]:
        watch = _Watch(exited)
        self._watches.setdefault(life.handle_id, set()).add(watch)

        def stop() -> None:
            watch.stop()
            self._forget(life, watch)

        if life.supervisor is not None:
            self._await_exit(life, watch, life.supervisor)
        else:
            self._owned(self._look(life, watch))
        return stop

    def _forget(self, life: Life, watch: _Watch) -> None:
        watches = self._watches.get(life.handle_id)
        if watches is not None:
            watches.discard(watch)
            if not watches:
                del self._watches[life.handle_id]
                self._statuses.pop(life.handle_id, None)

    def _await_exit(self, life: Life, watch: _Watch, process: Process) -> None:
        watch.exit = ExitWatch(self._reactor, process, lambda: self._owned(self._report(life, watch)))

    async def _look(self, life: Life, watch: _Watch) -> None:
        """Watch a sandbox that was adopted before its supervisor had written down who it is."""
        found = await self._pool.run(self._runs.find, life)
        if watch.stopped:
            return
        if found is not None and found[1].supervisor is not None:
            self._await_exit(life, watch, found[1].supervisor)
        elif await self._pool.run(self._runs.inspect, life) is not None:
            await self._report(life, watch)
        elif not watch.stopped:
            watch.timer = self._reactor.callLater(LOOK_AGAIN, lambda: self._owned(self._look(life, watch)))

    async def _report(self, life: Life, watch: _Watch) -> None:
        """Its supervisor is gone: tell how it ended."""
        try:
            status = await self._pool.run(self._runs.inspect, life)
        except DriverError as error:
            log.warn("status of an ended sandbox cannot be read", container_id=life.container_id, error=str(error))
            status = None
        if status is None or status == ExitStatus():
            status = self._statuses.get(life.handle_id, ExitStatus())
        watch.tell(status)
        self._forget(life, watch)

    def _owned(self, work: Any) -> None:
        """Run a coroutine of a watch; what goes wrong in it stops here."""

        def failed(failure: Failure) -> None:
            log.failure("watch of a sandbox failed", failure)

        Deferred.fromCoroutine(work).addErrback(failed)
