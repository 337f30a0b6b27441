"""The operator's way in: HTTP on ``ctl.sock`` in the state directory, for whoever may open it (mode 0600).

A socket left by a killed node is replaced, one behind which somebody answers is not. Two nodes that start at the same
moment in one directory cannot both get here: the store's lock is taken before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from attrs import asdict
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from .leaks.found import Listing
from .monitoring import Answers
from .web_site import Listener, answer, bare_errors, compact, readable, site

log = Logger()

NAME = "ctl.sock"
LONGEST = 100
"""Bytes of a path that fit into a socket address everywhere (108 on Linux)."""


class ControlSocketError(Exception):
    """The socket cannot be made; the text says why and what would help."""


def routes(*, answers: Answers, drain: Callable[[], object], leaks: Callable[[], Coroutine[Any, Any, Listing]]) -> Any:
    """The klein application; see ``monitoring.routes``."""
    from klein import Klein

    app = Klein()

    @app.route("/state", methods=["GET"])
    def state(request: Any) -> bytes:
        return answer(request, readable(answers.state()))

    @app.route("/leaks", methods=["GET"])
    def list_leaks(request: Any) -> Deferred[bytes]:
        async def listed() -> bytes:
            return answer(request, readable(asdict(await leaks())))

        return Deferred.fromCoroutine(listed())

    @app.route("/drain", methods=["POST"])
    def start_draining(request: Any) -> bytes:
        log.info("drain ordered on the control socket")
        drain()
        return answer(request, compact({"draining": True}) + "\n", status=202)

    bare_errors(app)
    return app.resource()


class ControlSocket(Service):
    """Owns ``path`` from ``start`` to ``stop``. ``drain`` begins the drain and returns at once; it may be called
    again. ``leaks`` searches the host."""

    name = "control-socket"

    def __init__(
        self,
        *,
        reactor: Any,
        path: Path,
        answers: Answers,
        drain: Callable[[], object],
        leaks: Callable[[], Coroutine[Any, Any, Listing]],
    ) -> None:
        self._reactor = reactor
        self._path = path
        self._answers = answers
        self._drain = drain
        self._leaks = leaks
        self._directory: int | None = None
        self._listener: Listener | None = None

    async def start(self) -> Path:
        """Bind and listen. Raises ControlSocketError."""
        if len(os.fsencode(self._path.name)) > LONGEST // 2:
            raise ControlSocketError(f"the name of the control socket {self._path} is too long for a socket address")
        try:
            # Through the directory's descriptor the address is short however deep the directory is.
            self._directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ControlSocketError(f"the directory of the control socket {self._path}: {error.strerror}") from error
        address = str(self._path)
        if len(os.fsencode(address)) > LONGEST:
            address = f"/proc/self/fd/{self._directory}/{self._path.name}"
        try:
            self._make_room(address)
            listener = Listener(site(routes(answers=self._answers, drain=self._drain, leaks=self._leaks)))
            listener.port = self._reactor.listenUNIX(address, listener.factory, mode=0o600)
        except Exception as error:
            self._close_directory()
            if isinstance(error, ControlSocketError):
                raise
            raise ControlSocketError(f"the control socket {self._path} cannot be made: {error}") from error
        self._listener = listener
        return self._path

    async def stop(self) -> None:
        """Close and remove the socket. Harmless when it is closed."""
        listener, self._listener = self._listener, None
        if listener is not None:
            try:
                await listener.stop()
            except FileNotFoundError:
                log.warn("the control socket was removed by somebody else", path=str(self._path))
        self._close_directory()

    def stopService(self) -> Deferred[None]:
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self.stop())

    def _make_room(self, address: str) -> None:
        try:
            found = os.lstat(address)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise ControlSocketError(f"{self._path} is there and is no socket")
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
            probe.setblocking(False)
            try:
                probe.connect(address)
            except OSError as error:
                if error.errno == errno.ECONNREFUSED:
                    os.unlink(address)
                    return
                if error.errno == errno.ENOENT:
                    return
                if error.errno != errno.EAGAIN:
                    raise
        raise ControlSocketError(f"another process listens on the control socket {self._path}")

    def _close_directory(self) -> None:
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None
