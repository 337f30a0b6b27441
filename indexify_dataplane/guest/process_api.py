"""The endpoints under /processes."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

from .children import Identity
from .health_check import HealthCheckOrder
from .messages import Answer, Endpoint, Out, Reply, Request, Stream, json_reply
from .output_log import STDERR, STDOUT
from .output_view import EVENT_STREAM, EventLines, resume_line, write_document
from .process import Order, Process
from .processes import Processes
from .refusal import Refusal
from .router import Route
from .run_stream import RunStream
from .schema import Fields, json_fields, unprocessable
from .stdin_pipe import PENDING_BYTES, StdinClosed
from .supervision import SupervisionOrder
from .users import resolve

INT32 = 2**31
STREAMS = {"stdout": (STDOUT,), "stderr": (STDERR,), "output": (STDOUT, STDERR)}


class ProcessApi:
    """``identity`` is the user of processes whose request names none (None: the daemon's own)."""

    def __init__(self, *, processes: Processes, identity: Identity | None) -> None:
        self._processes = processes
        self._identity = identity

    def routes(self) -> list[Route]:
        base = "/api/v1/processes"
        routes: list[Route] = [
            ("POST", base, self.start),
            ("GET", base, self.list),
            ("POST", f"{base}/run", self.run),
            ("GET", f"{base}/{{}}", self.get),
            ("DELETE", f"{base}/{{}}", self.kill),
            ("POST", f"{base}/{{}}/signal", self.signal),
            ("POST", f"{base}/{{}}/restart", self.restart),
            ("POST", f"{base}/{{}}/stdin", self.write_stdin),
            ("POST", f"{base}/{{}}/stdin/close", self.close_stdin),
        ]
        for name, streams in STREAMS.items():
            routes.append(("GET", f"{base}/{{}}/{name}", _bound(self.output, streams)))
            routes.append(("GET", f"{base}/{{}}/{name}/follow", _bound(self.follow, streams)))
        return routes

    async def start(self, request: Request) -> Answer:
        fields = await json_fields(request)
        supervision = supervision_order(fields)
        order = self._order(fields, managed=supervision is not None)
        process = self._processes.start(order, supervision)
        return json_reply(201, describe(process))

    async def run(self, request: Request) -> Answer:
        fields = await json_fields(request)
        timeout = fields.seconds_or_none("timeout")
        if timeout is None:
            timeout = fields.seconds_or_none("timeout_secs")
        process = self._processes.start(self._order(fields, managed=True))
        stream = RunStream(process=process, processes=self._processes, timeout=timeout)
        return Stream(200, stream.send, headers=EVENT_STREAM, release=stream.release)

    async def list(self, request: Request) -> Answer:
        return json_reply(200, {"processes": [describe(process) for process in self._processes.all()]})

    async def get(self, request: Request, reference: str) -> Answer:
        return json_reply(200, describe(self._processes.find(reference)))

    async def kill(self, request: Request, reference: str) -> Answer:
        self._processes.kill(self._processes.find(reference))
        return Reply(204)

    async def signal(self, request: Request, reference: str) -> Answer:
        number = (await json_fields(request)).whole("signal", -INT32, INT32 - 1)
        self._processes.signal(self._processes.find(reference), number)
        return json_reply(200, {"success": True})

    async def restart(self, request: Request, reference: str) -> Answer:
        process = self._processes.find(reference)
        await self._processes.restart(process)
        return json_reply(200, describe(process))

    async def write_stdin(self, request: Request, reference: str) -> Answer:
        process = self._processes.find(reference)
        if not process.order.stdin or process.stdin is None:
            raise Refusal(400, "Process stdin is not writable", "STDIN_NOT_WRITABLE")
        # A body up to the queue's size goes in whole, so that two writers cannot mix.
        whole = request.length is not None and request.length <= PENDING_BYTES
        try:
            if whole:
                await process.stdin.write(await request.read_all(PENDING_BYTES))
            else:
                while data := await request.read():
                    await process.stdin.write(data)
        except StdinClosed as closed:
            raise Refusal(400, str(closed), "STDIN_NOT_WRITABLE") from None
        return Reply(204)

    async def close_stdin(self, request: Request, reference: str) -> Answer:
        process = self._processes.find(reference)
        if not process.order.stdin or process.stdin is None:
            raise Refusal(400, "Process stdin is not writable")
        process.stdin.close()
        return Reply(204)

    async def output(self, streams: tuple[int, ...], request: Request, reference: str) -> Answer:
        process = self._processes.find_or_none(reference)
        pid = process.pid if process is not None else int(reference) if reference.isdigit() else 0
        log = process.log if process is not None else None

        async def produce(out: Out) -> None:
            await write_document(out, pid=pid, log=log, streams=streams)

        return Stream(200, produce, headers=(("content-type", "application/json"),))

    async def follow(self, streams: tuple[int, ...], request: Request, reference: str) -> Answer:
        process = self._processes.find_or_none(reference)

        async def produce(out: Out) -> None:
            if process is not None:
                log = process.log
                lines = EventLines(log=log, streams=streams, tagged=len(streams) > 1, event="output")
                # Whoever comes after the end gets what is there, even if a descendant holds the pipes open.
                stop = log.next if process.over else None
                await lines.send(out, start=resume_line(request.header("last-event-id"), log), until=lambda: stop)
            await out.write(b"event: eof\ndata: {}\n\n")

        return Stream(200, produce, headers=EVENT_STREAM)

    def _order(self, fields: Fields, *, managed: bool) -> Order:
        command = fields.text("command")
        if not command:
            raise unprocessable("command", "must not be empty")
        return Order(
            command=command,
            args=fields.texts("args"),
            env=fields.text_map("env"),
            working_dir=fields.text_or_none("working_dir"),
            stdin=fields.choice("stdin_mode", ("closed", "pipe"), "closed") == "pipe",
            stdout=fields.choice("stdout_mode", ("capture", "discard"), "capture") == "capture",
            stderr=fields.choice("stderr_mode", ("capture", "discard"), "capture") == "capture",
            identity=self._identity_of(fields),
            group_ends_with_leader=managed,
        )

    def _identity_of(self, fields: Fields) -> Identity | None:
        user = fields.raw("user")
        if user is None:
            return self._identity
        if isinstance(user, dict):
            parts = Fields(user, "user")
            if parts.has("name"):
                user = parts.text("name")
                if ":" in user:
                    raise unprocessable("user.name", "must not contain ':'")
            else:
                user = str(parts.whole("uid", 0, 2**32 - 2))
                if parts.has("gid"):
                    user += f":{parts.whole('gid', 0, 2**32 - 2)}"
        if not isinstance(user, str):
            raise unprocessable("user", "must be a string or an object")
        identity = resolve(user)
        if os.geteuid() != 0 and (identity.uid, identity.gid) != (os.geteuid(), os.getegid()):
            raise Refusal(403, f"This sandbox cannot switch to user {user!r}", "USER_NOT_PERMITTED")
        return identity if os.geteuid() == 0 else None


def supervision_order(fields: Fields) -> SupervisionOrder | None:
    """None unless the request has ``name``, ``restart`` or ``health_check``."""
    if not any(fields.has(name) for name in ("name", "restart", "health_check")):
        return None
    name = fields.text_or_none("name")
    if name is not None and (not name or "/" in name or (name.isascii() and name.isdigit())):
        raise unprocessable("name", "must not be empty, hold a '/' or be a number")
    restart = fields.object_or_none("restart") or Fields({})
    most = 10**9
    return SupervisionOrder(
        name=name,
        policy=restart.choice("policy", ("never", "on_failure", "always"), "on_failure"),
        max_restarts=restart.whole_or_none("max_restarts", 0, most),
        initial_backoff_ms=restart.whole_or("initial_backoff_ms", 0, most, 500),
        max_backoff_ms=restart.whole_or("max_backoff_ms", 0, most, 30_000),
        stop_grace_ms=fields.whole_or("stop_grace_ms", 0, most, 10_000),
        health_check=_health_check_order(fields.object_or_none("health_check")),
    )


def _health_check_order(fields: Fields | None) -> HealthCheckOrder | None:
    if fields is None:
        return None
    path = fields.text_or_none("path")
    if path is not None and (not path.startswith("/") or not path.isprintable() or " " in path):
        raise unprocessable("health_check.path", "must begin with '/' and have no spaces or control characters")
    most = 10**9
    return HealthCheckOrder(
        type=fields.choice("type", ("http", "tcp"), ""),
        port=fields.whole("port", 1, 65535),
        path=path,
        initial_delay_ms=fields.whole_or("initial_delay_ms", 0, most, 5000),
        interval_ms=fields.whole_or("interval_ms", 1, most, 1000),
        timeout_ms=fields.whole_or("timeout_ms", 1, most, 500),
        failure_threshold=fields.whole_or("failure_threshold", 1, most, 3),
    )


def describe(process: Process) -> dict[str, object]:
    """ProcessInfo: every field always there, unknown ones null."""
    ended = process.ended
    status = "running"
    if ended is not None:
        status = "exited" if ended.signal is None else "oom_killed" if ended.oom_killed else "signaled"
    return {
        "pid": process.pid,
        "handle": process.handle,
        "status": status,
        "exit_code": ended.exit_code if ended is not None else None,
        "signal": ended.signal if ended is not None else None,
        "oom_killed": ended is not None and ended.oom_killed,
        "stdin_writable": ended is None and process.stdin is not None and process.stdin.writable,
        "command": process.order.command,
        "args": list(process.order.args),
        "started_at": process.started_at,
        "ended_at": ended.at_ms if ended is not None else None,
        "managed": _describe_managed(process),
    }


def _describe_managed(process: Process) -> dict[str, object] | None:
    supervision = process.supervision
    if supervision is None:
        return None
    order, health, last = supervision.order, supervision.health, supervision.last_exit
    return {
        "id": supervision.id,
        "name": order.name,
        "status": supervision.status,
        "restart_count": supervision.restart_count,
        "restart": {
            "policy": order.policy,
            "max_restarts": order.max_restarts,
            "initial_backoff_ms": order.initial_backoff_ms,
            "max_backoff_ms": order.max_backoff_ms,
        },
        "stop_grace_ms": order.stop_grace_ms,
        "health_check": None if health is None else {name: getattr(health.order, name) for name in _HEALTH_FIELDS},
        "health_status": "disabled" if health is None else health.status,
        "consecutive_health_failures": 0 if health is None else health.consecutive_failures,
        "last_exit": None
        if last is None
        else {
            "exit_code": last.exit_code,
            "signal": last.signal,
            "oom_killed": last.oom_killed,
            "ended_at": last.at_ms,
        },
        "last_error": supervision.last_error,
        "next_restart_at": supervision.next_restart_at,
    }


_HEALTH_FIELDS = ("type", "port", "path", "initial_delay_ms", "interval_ms", "timeout_ms", "failure_threshold")


def _bound(
    endpoint: Callable[[tuple[int, ...], Request, str], Awaitable[Answer]], streams: tuple[int, ...]
) -> Endpoint:
    async def bound(request: Request, reference: str) -> Answer:
        return await endpoint(streams, request, reference)

    return bound
