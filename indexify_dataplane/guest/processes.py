"""The table of processes: starts, finds and forgets them, and ends all of them at shutdown."""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence

from .logs import Log
from .output_log import OutputStore
from .process import Ended, Order, Process, Surroundings
from .refusal import Refusal
from .supervision import Supervision, SupervisionOrder

KEPT_ENDED = 1000


class Processes:
    """All processes, by start and by pid; the newest holder of a pid or name counts."""

    def __init__(self, *, surroundings: Surroundings, store: OutputStore, log: Log) -> None:
        self._surroundings = surroundings
        self._store = store
        self._log = log
        self._by_handle: dict[int, Process] = {}
        self._by_pid: dict[int, Process] = {}
        self._supervised: dict[str, Process] = {}  # by name and by id
        self._ended: deque[Process] = deque()
        self._last_handle = 0
        self._watchers: dict[Process, asyncio.Task[None]] = {}
        self._sweeps: set[asyncio.Task[None]] = set()
        self.entrypoint: Process | None = None
        self.accepting = True

    def all(self) -> list[Process]:
        return list(self._by_handle.values())

    def running(self) -> list[Process]:
        return [process for process in self._by_handle.values() if process.running]

    def find(self, reference: str) -> Process:
        """By pid (digits only) or by name. Raises Refusal 404, or 400 for a number that is no pid."""
        if reference.isascii() and reference.isdigit():
            if len(reference) > 10 or int(reference) >= 2**32:
                raise Refusal(400, f"Invalid process id {reference!r}", "BAD_REQUEST")
            process = self._by_pid.get(int(reference))
        elif reference:
            process = self._supervised.get(reference)
        else:
            raise Refusal(400, "Empty process id", "BAD_REQUEST")
        if process is None:
            raise Refusal(404, f"Process {reference} not found", "NOT_FOUND")
        return process

    def find_or_none(self, reference: str) -> Process | None:
        try:
            return self.find(reference)
        except Refusal as refusal:
            if refusal.status == 404:
                return None
            raise

    def start(self, order: Order, supervision: SupervisionOrder | None = None) -> Process:
        """Start and enter a process. Raises Refusal 500 SPAWN_FAILED with the system's reason, 409 for a taken name."""
        if not self.accepting:
            raise Refusal(503, "The sandbox is shutting down", "SHUTTING_DOWN")
        if supervision is not None and supervision.name is not None:
            self._free_name(supervision.name)
        self._last_handle += 1
        handle = self._last_handle
        process = Process(
            handle=handle, order=order, log=self._store.create(str(handle)), surroundings=self._surroundings
        )
        try:
            if supervision is not None:
                process.supervision = Supervision(
                    order=supervision, process=process, restarted=self._enter_pid, log=self._log
                )
                process.supervision.open()
            else:
                process.start()
        except OSError as error:
            process.log.drop()
            raise spawn_refusal(order.command, error) from error
        self._by_handle[handle] = process
        self._enter_pid(process)
        if process.supervision is not None:
            for name in (process.supervision.id, process.supervision.order.name):
                if name is not None:
                    self._supervised[name] = process
        self._watchers[process] = self._surroundings.loop.create_task(self._watch(process))
        self._log.debug("process started", pid=process.pid, command=order.command)
        return process

    def kill(self, process: Process) -> None:
        """SIGKILL for the tree; a supervised one is stopped for good, gently first. Returns at once.

        Raises Refusal 500 (the status that clients know) when it has ended; what it left behind is killed all the same.
        """
        if process.supervision is not None:
            if not process.supervision.active:
                self._keep(process.left_behind.kill())
                raise Refusal(500, f"Process {process.pid} is not running", "NOT_RUNNING")
            self._keep(process.supervision.stop())
            return
        if not process.alive:
            self._keep(process.left_behind.kill())
            raise Refusal(500, f"Process {process.pid} is not running", "NOT_RUNNING")
        descendants = process.descendants
        descendants.look_while_leader_lives()
        process.signal_group(signal.SIGKILL)
        self._keep(descendants.kill())

    def signal(self, process: Process, number: int) -> None:
        """Signal the group; SIGKILL also reaches descendants that left it. Raises Refusal 400."""
        if not process.alive:
            raise Refusal(400, f"Process {process.pid} is not running", "NOT_RUNNING")
        if not 1 <= number <= 31:
            raise Refusal(400, "Invalid signal number", "INVALID_SIGNAL")
        descendants = process.descendants
        if number == signal.SIGKILL:
            descendants.look_while_leader_lives()
        try:
            process.signal_group(number)
        except OSError as error:
            text = f"Failed to send signal to pid {process.pid}: {error.strerror}"
            raise Refusal(400, text, "SIGNAL_FAILED") from error
        if number == signal.SIGKILL:
            self._keep(descendants.kill())

    async def restart(self, process: Process) -> None:
        """Stop and start a managed process. Raises Refusal 400 for another one, 500 SPAWN_FAILED."""
        supervision = process.supervision
        if supervision is None:
            raise Refusal(400, f"Process {process.pid} is not managed", "NOT_MANAGED")
        was_over = not supervision.active
        try:
            await supervision.restart()
        except OSError as error:
            raise spawn_refusal(process.order.command, error) from error
        if was_over:
            self._ended.remove(process)
            self._watchers[process] = self._surroundings.loop.create_task(self._watch(process))

    async def close(self, within_grace: Callable[[Sequence[asyncio.Future[Ended]]], Awaitable[None]]) -> None:
        """End everything: SIGTERM to each group, SIGKILL to what is left when ``within_grace`` returns."""
        self.accepting = False
        processes = [process for process in self._by_handle.values() if process.alive or process.running]
        for process in self._by_handle.values():
            if process.supervision is not None:
                process.supervision.give_up()
        for process in processes:
            if process.alive:
                try:
                    process.signal_group(signal.SIGTERM)
                except OSError as error:
                    self._log.warn("SIGTERM failed", pid=process.pid, error=error.strerror)
        await within_grace([process.end for process in processes if not process.end.done()])
        survivors = [process for process in processes if process.alive]
        if survivors:
            self._log.warn("processes outlived the grace time and are killed", count=len(survivors))
            await asyncio.gather(*(process.kill_tree() for process in survivors))
            await asyncio.wait([process.end for process in survivors], timeout=2.0)
        for task in [*self._watchers.values(), *self._sweeps]:
            task.cancel()
        for process in self._by_handle.values():
            process.close()

    def _free_name(self, name: str) -> None:
        holder = self._supervised.get(name)
        if holder is None or holder.supervision is None:
            return
        if holder.supervision.active:
            raise Refusal(409, f"A process named {name!r} is there already", "NAME_IN_USE")
        del self._supervised[name]

    def _enter_pid(self, process: Process) -> None:
        self._by_pid[process.pid] = process

    async def _watch(self, process: Process) -> None:
        """Wait for the last end of a process, then keep it among the ended ones."""
        if process.supervision is not None:
            await process.supervision.over.wait()
        else:
            ended = await process.end
            self._log.debug("process ended", pid=process.pid, exit_code=ended.exit_code, signal=ended.signal)
        del self._watchers[process]
        self._ended.append(process)
        while len(self._ended) > KEPT_ENDED:
            self._forget(self._ended.popleft())

    def _forget(self, process: Process) -> None:
        process.close()
        process.log.drop()
        del self._by_handle[process.handle]
        for pid in [pid for pid, holder in self._by_pid.items() if holder is process]:
            del self._by_pid[pid]
        for name in [name for name, holder in self._supervised.items() if holder is process]:
            del self._supervised[name]
        if self.entrypoint is process:
            self.entrypoint = None

    def _keep(self, sweep: Coroutine[object, object, None]) -> None:
        task = self._surroundings.loop.create_task(sweep)
        self._sweeps.add(task)
        task.add_done_callback(self._swept)

    def _swept(self, task: asyncio.Task[None]) -> None:
        self._sweeps.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.failure("a tree of processes could not be swept", error)


def spawn_refusal(command: str, error: OSError) -> Refusal:
    """500, as clients expect it, but with the reason."""
    reason = error.strerror or str(error)
    where = error.filename if error.filename is not None else command
    if isinstance(where, bytes):
        where = where.decode("utf-8", "replace")
    return Refusal(500, f"Failed to spawn process: {where}: {reason}", "SPAWN_FAILED")
