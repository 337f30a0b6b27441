"""The endpoints under /processes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from .children import Identity
from .messages import Answer, Endpoint, Out, Reply, Request, Stream, json_reply
from .output_log import STDERR, STDOUT
from .output_view import EVENT_STREAM, EventLines, resume_line, write_document
from .process_request import requested_order, requested_supervision
from .process_view import describe
from .processes import Processes
from .refusal import Refusal
from .router import Route
from .run_stream import RunStream
from .schema import json_fields
from .stdin_pipe import PENDING_BYTES, StdinClosed

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
        supervision = requested_supervision(fields)
        order = requested_order(fields, self._identity, ends_with_leader=supervision is not None)
        process = self._processes.start(order, supervision)
        return json_reply(201, describe(process))

    async def run(self, request: Request) -> Answer:
        fields = await json_fields(request)
        timeout = fields.seconds_or_none("timeout")
        if timeout is None:
            timeout = fields.seconds_or_none("timeout_secs")
        process = self._processes.start(requested_order(fields, self._identity, ends_with_leader=True))
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
            if not reads_end_as_line(request.header("user-agent")):
                await out.write(b"event: eof\ndata: {}\n\n")

        return Stream(200, produce, headers=EVENT_STREAM)


def reads_end_as_line(user_agent: str | None) -> bool:
    """SDKs up to 0.4.23 take the data of every event for a line of output and fail at ``{}``.

    For them the end of the stream is the end of the body alone.
    """
    product, _, release = (user_agent or "").partition("/")
    numbers = release.split(".")
    if product != "Tensorlake Cloud SDK" or not all(each.isdecimal() and len(each) < 9 for each in numbers):
        return False
    return [int(each) for each in numbers] < [0, 4, 24]


def _bound(
    endpoint: Callable[[tuple[int, ...], Request, str], Awaitable[Answer]], streams: tuple[int, ...]
) -> Endpoint:
    async def bound(request: Request, reference: str) -> Answer:
        return await endpoint(streams, request, reference)

    return bound
