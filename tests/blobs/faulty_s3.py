"""moto's server behind a front that does to single requests what networks and busy stores do: holds them, performs
them and holds the answer, refuses them, cuts what they read or changes it. What a test itself reads and writes goes to
``moto_server.endpoint`` and is not disturbed."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

CREATE = r"POST \S*\?uploads"
COMPLETE = r"POST \S*\?uploadId"
ABORT = r"DELETE \S*\?uploadId"
PUT_PART = r"PUT \S*\?.*partNumber"
HEAD = r"HEAD "
GET = r"GET "


class Fault:
    """What happens to the next ``times`` requests whose line matches ``pattern``, until it is lifted."""

    def __init__(
        self,
        pattern: str,
        *,
        times: int = 1 << 30,
        hold: bool = False,
        first: bool = False,
        status: str = "",
        change: Callable[[bytes], bytes] | None = None,
        cut: bool = False,
    ) -> None:
        self._pattern = re.compile(pattern)
        self._times = times
        self._hold = hold
        self._first = first
        self._status = status
        self._change = change
        self._cut = cut
        self._lifted = threading.Event()
        self._met = threading.Condition()
        self.met: list[str] = []

    def takes(self, line: str) -> bool:
        with self._met:
            if self._lifted.is_set() or len(self.met) >= self._times or not self._pattern.search(line):
                return False
            self.met.append(line)
            self._met.notify_all()
            return True

    def wait(self, count: int = 1, seconds: float = 30.0) -> None:
        """Until so many requests met it."""
        with self._met:
            if not self._met.wait_for(lambda: len(self.met) >= count, seconds):
                raise AssertionError(f"{count} requests like {self._pattern.pattern!r} were not seen: {self.met}")

    def lift(self) -> None:
        """What is held goes on; nothing more is taken."""
        self._lifted.set()

    def apply(self, serve: Callable[[], tuple[str, list[tuple[str, str]], bytes]]) -> Any:
        if self._hold and not self._first:
            self._lifted.wait()
        if self._status:
            return self._status, [], b""
        status, headers, body = serve()
        if self._hold and self._first:
            self._lifted.wait()
        return status, headers, self._change(body) if self._change else body

    def send(self, body: bytes) -> Iterator[bytes]:
        if not self._cut:
            yield body
            return
        yield body[: len(body) // 2]
        raise ConnectionResetError("cut off by the test")


class FaultyS3:
    """Listens until it is closed; closing lifts every fault."""

    def __init__(self) -> None:
        self._backend = DomainDispatcherApplication(create_backend_app)
        self._faults: list[Fault] = []
        self._server = make_server("127.0.0.1", 0, self._serve, True, request_handler=MotoRequestHandler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="faulty S3", daemon=True)
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        for fault in self._faults:
            fault.lift()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def hold(self, pattern: str, times: int = 1 << 30) -> Fault:
        """Requests arrive and are carried out only when it is lifted."""
        return self._add(Fault(pattern, times=times, hold=True))

    def hold_answer(self, pattern: str, times: int = 1 << 30) -> Fault:
        """Requests are carried out, and their answers wait."""
        return self._add(Fault(pattern, times=times, hold=True, first=True))

    def refuse(self, pattern: str, status: str = "503 Slow Down", times: int = 1 << 30) -> Fault:
        return self._add(Fault(pattern, times=times, status=status))

    def cut(self, pattern: str, times: int = 1 << 30) -> Fault:
        """Answers end after half of what their heads announce."""
        return self._add(Fault(pattern, times=times, cut=True))

    def change(self, pattern: str, change: Callable[[bytes], bytes]) -> Fault:
        """Answers carry other bytes."""
        return self._add(Fault(pattern, change=change))

    def _add(self, fault: Fault) -> Fault:
        self._faults.append(fault)
        return fault

    def _serve(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        line = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        fault = next((each for each in self._faults if each.takes(line)), None)
        if fault is None:
            return self._backend(environ, start)

        def serve() -> tuple[str, list[tuple[str, str]], bytes]:
            told: list[Any] = []
            body = b"".join(self._backend(environ, lambda status, headers, *_: told.extend((status, headers))))
            return told[0], told[1], body

        status, headers, body = fault.apply(serve)
        kept = [(name, value) for name, value in headers if name.lower() != "content-length" or fault._cut]
        start(status, kept if fault._cut else [*kept, ("Content-Length", str(len(body)))])
        return fault.send(body)
