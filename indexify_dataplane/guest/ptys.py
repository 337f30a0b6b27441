"""The table of terminal sessions and their life after the program or the last viewer has gone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence

from .logs import Log
from .process import Surroundings
from .processes import spawn_refusal
from .pty_session import PtyOrder, PtySession, Viewer
from .refusal import Refusal

MOST_SESSIONS = 64
NO_CLIENT_SECONDS = 300.0
HANG_UP_SECONDS = 5.0
ENDED_SECONDS = 60.0
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"


class Ptys:
    """All sessions: live ones, and ended ones for a minute, so that a viewer who comes late learns how it ended."""

    def __init__(self, *, surroundings: Surroundings, log: Log, no_client_seconds: float = NO_CLIENT_SECONDS) -> None:
        self._surroundings = surroundings
        self._log = log
        self._no_client_seconds = no_client_seconds
        self._sessions: dict[str, PtySession] = {}
        self._timers: dict[PtySession, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.accepting = True

    def all(self) -> list[PtySession]:
        return list(self._sessions.values())

    def find(self, session_id: str) -> PtySession:
        """Raises Refusal 404."""
        session = self._sessions.get(session_id)
        if session is None:
            raise Refusal(404, f"PTY session {session_id} not found", "NOT_FOUND")
        return session

    def create(self, order: PtyOrder) -> PtySession:
        """Raises Refusal: 429 at the limit, before anything is started; 500 when the start fails."""
        if not self.accepting:
            raise Refusal(503, "The sandbox is shutting down", "SHUTTING_DOWN")
        self._make_room()
        session = PtySession(
            session_id="".join(_ALPHABET[byte & 63] for byte in os.urandom(21)),
            token=os.urandom(32).hex(),
            order=order,
            surroundings=self._surroundings,
        )
        try:
            session.start()
        except OSError as error:
            raise spawn_refusal(order.command, error) from error
        self._sessions[session.id] = session
        self._arm(session, self._no_client_seconds, self._abandoned)
        self._run(self._await_end(session))
        self._log.debug("terminal session started", session=session.id, pid=session.pid, command=order.command)
        return session

    def terminate(self, session: PtySession) -> None:
        """Hang up now, kill in five seconds; nothing for one that has ended."""
        if session.alive:
            session.hang_up()
            self._run(self._kill_later(session))

    def attach(self, session: PtySession) -> Viewer:
        self._disarm(session)
        return session.attach()

    def detach(self, session: PtySession, viewer: Viewer) -> None:
        session.detach(viewer)
        if session.alive and not session.viewers:
            self._arm(session, self._no_client_seconds, self._abandoned)
        elif not session.alive and not session.viewers and session.id in self._sessions:
            self._arm(session, ENDED_SECONDS, self._forget)

    async def close(self, within_grace: Callable[[Sequence[asyncio.Future[None]]], Awaitable[None]]) -> None:
        """Hang up all sessions, kill what is left when ``within_grace`` returns."""
        self.accepting = False
        sessions = [session for session in self._sessions.values() if session.alive]
        for session in sessions:
            session.hang_up()
        ends = [asyncio.ensure_future(_over(session)) for session in sessions]
        await within_grace(ends)
        await asyncio.gather(*(session.kill() for session in sessions if session.alive))
        if ends:
            await asyncio.wait(ends, timeout=2.0)
        for task in [*self._tasks, *ends]:
            task.cancel()
        for session in list(self._sessions.values()):
            self._forget(session)

    def _make_room(self) -> None:
        if len(self._sessions) < MOST_SESSIONS:
            return
        for session in self._sessions.values():
            if not session.alive and not session.viewers:
                self._forget(session)
                return
        text = f"Maximum number of concurrent PTY sessions ({MOST_SESSIONS}) reached"
        raise Refusal(429, text, "TOO_MANY_SESSIONS")

    async def _await_end(self, session: PtySession) -> None:
        await session.over.wait()
        self._log.debug("terminal session ended", session=session.id, pid=session.pid, exit_code=session.exit_code)
        if session.terminated:
            self._forget(session)
        elif not session.viewers:
            self._arm(session, ENDED_SECONDS, self._forget)

    async def _kill_later(self, session: PtySession) -> None:
        try:
            async with asyncio.timeout(HANG_UP_SECONDS):
                await session.over.wait()
        except TimeoutError:
            await session.kill()

    def _abandoned(self, session: PtySession) -> None:
        self._log.info("terminal session without clients is killed", session=session.id)
        self._run(session.kill())

    def _forget(self, session: PtySession) -> None:
        self._disarm(session)
        session.close()
        self._sessions.pop(session.id, None)

    def _arm(self, session: PtySession, seconds: float, call: Callable[[PtySession], None]) -> None:
        self._disarm(session)
        self._timers[session] = self._surroundings.loop.call_later(seconds, call, session)

    def _disarm(self, session: PtySession) -> None:
        timer = self._timers.pop(session, None)
        if timer is not None:
            timer.cancel()

    def _run(self, work: Coroutine[object, object, None]) -> None:
        task = self._surroundings.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ran)

    def _ran(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.failure("a terminal session could not be ended", error)


async def _over(session: PtySession) -> None:
    await session.over.wait()
