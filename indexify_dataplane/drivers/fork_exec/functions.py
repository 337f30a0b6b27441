"""Function executors under fork-exec: direct children of the node that die with it.

``setsid setpriv --pdeathsig KILL -- EXECUTOR``: each program replaces the one before, so the pid stays, the executor
is the node's own child (its parent pid is what users see), leads a session, and is killed by the kernel if the node is.
A node that is killed before setpriv has asked for that leaves an orphan; its mark and its run directory, with no lock
on it, tell the next node.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import evolve
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from ...core.model import ExitStatus, Handle
from ...reactor import Pool
from ..base import DriverError, StartOrder
from ..completion import to_the_end
from . import cgroups, environment, output
from .ports import executor_port
from .processes import look_up, send
from .run_directory import Life
from .runs import LOOPBACK, Run, Runs
from .sandboxes import Settings
from .supervisor import oom_kills

log = Logger()

FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.1
ROTATE_EVERY = 5.0


class _Executor(ProcessProtocol):
    """One child; ``status`` is set when it has ended."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.status: ExitStatus | None = None
        self.killed = False
        self._watches: list[Callable[[], None]] = []

    def processEnded(self, reason: Failure) -> None:
        ended = reason.value
        if isinstance(ended, ProcessTerminated) and ended.signal is not None:
            oom = ended.signal == signal.SIGKILL and not self.killed and oom_kills(list(self.run.cgroups)) > 0
            self.status = ExitStatus(signal=ended.signal, oom=oom)
        else:
            self.status = ExitStatus(code=ended.exitCode if isinstance(ended, ProcessTerminated) else 0)
        watches, self._watches = self._watches, []
        for tell in watches:
            tell()

    def when_ended(self, ended: Callable[[], None]) -> Callable[[], None]:
        """Call ``ended`` at the end, never at once; returns what takes that back. Only while it runs."""
        self._watches.append(ended)

        def stop() -> None:
            if ended in self._watches:
                self._watches.remove(ended)

        return stop


class Functions:
    """Starts, watches and ends them; the blocking parts run in ``pool``."""

    def __init__(
        self,
        *,
        reactor: Any,
        pool: Pool,
        runs: Runs,
        settings: Settings,
        command: str,
        environment: Mapping[str, str],
        start_timeout: float,
    ) -> None:
        self._reactor = reactor
        self._pool = pool
        self._runs = runs
        self._settings = settings
        self._command = command
        self._environment = environment
        self._start_timeout = start_timeout
        self._executors: dict[str, _Executor] = {}
        self._rotation: Any = None
        self._rotating: Deferred[None] | None = None
        self._closed = False

    def open(self) -> None:
        self._closed = False
        self._rotation = self._reactor.callLater(ROTATE_EVERY, self._rotate)

    async def close(self) -> None:
        """Kill all; they die with the node."""
        self._closed = True
        if self._rotation is not None and self._rotation.active():
            self._rotation.cancel()
        if self._rotating is not None:
            await self._rotating
        lives = [executor.run.life for executor in self._executors.values()]
        await DeferredList(
            [Deferred.fromCoroutine(self.kill(life)).addErrback(self._outlives, life) for life in lives],
        )

    def _outlives(self, failure: Failure, life: Life) -> None:
        log.error(
            "function executor outlives the node", container_id=life.container_id, error=failure.getErrorMessage()
        )

    def own(self) -> set[str]:
        """Run ids of the children of this process."""
        return set(self._executors)

    async def start(self, order: StartOrder) -> Handle:
        if self._closed:
            raise DriverError(f"function executor {order.container_id} cannot be started: the driver is closed")
        run = self._runs.begin(order)
        executor = _Executor(run)
        try:
            await to_the_end(self._pool.run(self._runs.prepare, run, order))
            env = environment.for_executor(self._environment, self._settings.env_deny, order, run.life.run_id)
            program, arguments = await to_the_end(self._pool.run(self._arguments, order, env))
            self._spawn(executor, program, arguments, env)
            await to_the_end(self._pool.run(self._record, run))
            port = await self._port(executor)
        except Exception as error:
            words = ""
            if isinstance(error, DriverError):
                words = await to_the_end(self._pool.run(self._runs.last_words, run))
            await self._end(executor)
            if isinstance(error, (DriverError, OSError)):
                text = f"function executor {order.container_id} cannot be started: {error}{words}"
                raise DriverError(text) from error
            raise
        return Handle(
            driver=self._runs.driver,
            id=run.life.handle_id,
            daemon_address=f"{LOOPBACK}:{port}",
            ip=LOOPBACK,
            opaque=run.life.opaque(),
        )

    def _arguments(self, order: StartOrder, env: Mapping[str, str]) -> tuple[str, list[str]]:
        path = env.get("PATH", environment.DEFAULT_PATH)
        command, *rest = order.argv or (
            self._command,
            f"--executor-id={order.executor_id}",
            f"--function-executor-id={order.container_id}",
        )
        found = {name: shutil.which(name, path=path) for name in ("setsid", "setpriv", command)}
        missing = [name for name, program in found.items() if program is None]
        if command in missing and os.path.dirname(command):
            wrong = "not an executable file" if os.path.exists(command) else "no such program"
            seen_from = "" if os.path.isabs(command) else f" (seen from {os.getcwd()})"
            raise DriverError(f"{wrong}: {command}{seen_from}")
        if missing:
            raise DriverError(f"no such program in PATH ({path}): {', '.join(missing)}")
        setsid, setpriv, executor = (str(program) for program in found.values())
        return setsid, [
            "setsid", setpriv, "--pdeathsig", "KILL", "--", executor, *rest, "--address", f"{LOOPBACK}:0",
        ]  # fmt: skip

    def _spawn(self, executor: _Executor, program: str, arguments: list[str], env: Mapping[str, str]) -> None:
        run = executor.run
        if self._closed:
            raise DriverError("the driver is closed")
        null, log_file = run.descriptors
        # In the reactor's thread: the parent whose death is signalled is the thread that spawned.
        transport = self._reactor.spawnProcess(
            executor, program, arguments, env=dict(env), childFDs={0: null, 1: log_file, 2: log_file}
        )
        run.close_files()
        row = look_up(transport.pid)
        if row is None:
            raise DriverError("it ended at once")
        run.life = evolve(run.life, main=row.process)
        self._executors[run.life.run_id] = executor

    def _record(self, run: Run) -> None:
        """Write down who it is, and confine it before it had time to load anything."""
        process = run.life.main
        if process is None or run.directory is None:
            raise DriverError("it was not spawned")
        run.directory.write("process.json", {"daemon": process.pid, "daemon_started": process.started})
        try:
            cgroups.join(run.cgroups, process.pid)
            with open(f"/proc/{process.pid}/oom_score_adj", "w") as file:
                file.write("0")
        except (ProcessLookupError, FileNotFoundError):
            return  # ended already; whoever waits for its port notices

    async def _port(self, executor: _Executor) -> int:
        """Wait until it listens, as long as it lives."""
        process = executor.run.life.main
        if process is None:
            raise DriverError("it was not spawned")
        until = self._reactor.seconds() + self._start_timeout
        pause = FIRST_PAUSE
        while True:
            if executor.status is not None:
                raise DriverError(f"it ended before it listened: {describe(executor.status)}")
            port = await self._pool.run(executor_port, process.pid)
            if port is not None:
                return port
            if self._reactor.seconds() > until:
                raise DriverError(f"it listens on no port of {LOOPBACK} after {self._start_timeout:g} s")
            await self._until_ended(executor, pause)
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _until_ended(self, executor: _Executor, seconds: float) -> bool:
        """Wait for its end, ``seconds`` at most; whether it has ended."""
        if executor.status is None:
            over: Deferred[None] = Deferred()

            def end() -> None:
                if not over.called:
                    over.callback(None)

            timer = self._reactor.callLater(seconds, end)
            stop = executor.when_ended(end)
            try:
                await over
            finally:
                stop()
                if timer.active():
                    timer.cancel()
        return executor.status is not None

    async def terminate(self, life: Life) -> None:
        executor = self._executors.get(life.run_id)
        main = executor.run.life.main if executor is not None else None
        if main is not None:
            await self._pool.run(send, main, signal.SIGTERM)

    async def kill(self, life: Life) -> None:
        executor = self._executors.get(life.run_id)
        if executor is not None:
            await self._end(executor)
        else:
            await to_the_end(self._pool.run(self._runs.destroy, life))

    async def _end(self, executor: _Executor) -> None:
        executor.killed = True
        executor.run.close()
        await to_the_end(self._pool.run(self._runs.destroy, executor.run.life))
        # Dead for sure; the reactor may still have to reap it, and a zombie would be seen as something left behind.
        if executor.run.life.main is not None:
            await to_the_end(Deferred.fromCoroutine(self._until_ended(executor, ROTATE_EVERY)))
        self._executors.pop(executor.run.life.run_id, None)

    def alive(self, life: Life) -> bool | None:
        """None when it is no child of this process."""
        executor = self._executors.get(life.run_id)
        return None if executor is None else executor.status is None

    async def inspect(self, life: Life) -> ExitStatus | None:
        executor = self._executors.get(life.run_id)
        if executor is not None:
            return executor.status
        return await self._pool.run(self._runs.inspect, life)

    def watch(self, life: Life, exited: Callable[[ExitStatus], None]) -> Callable[[], None]:
        executor = self._executors.get(life.run_id)
        if executor is not None and executor.status is None:
            child = executor
            return child.when_ended(lambda: exited(child.status or ExitStatus()))
        status = executor.status if executor is not None else None
        soon = self._reactor.callLater(0, exited, status or ExitStatus())

        def stop() -> None:
            if soon.active():
                soon.cancel()

        return stop

    def _rotate(self) -> None:
        paths = [
            executor.run.directory.output for executor in self._executors.values() if executor.run.directory is not None
        ]
        self._rotating = self._pool.run(self._bound, paths)
        self._rotating.addErrback(lambda failure: log.failure("output of executors cannot be rotated", failure))
        self._rotating.addCallback(self._rotated)

    def _bound(self, paths: Sequence[str]) -> None:
        for path in paths:
            output.bound(path, self._settings.log_max_bytes, self._settings.log_keep)

    def _rotated(self, _: object) -> None:
        self._rotating = None
        if not self._closed:
            self._rotation = self._reactor.callLater(ROTATE_EVERY, self._rotate)


def describe(status: ExitStatus) -> str:
    """How a process ended, for a sentence."""
    if status.signal is not None:
        name = signal.Signals(status.signal).name if status.signal in signal.valid_signals() else str(status.signal)
        return f"signal {name}" + (", out of memory" if status.oom else "")
    return f"exit code {status.code}" if status.code is not None else "nobody knows how"
