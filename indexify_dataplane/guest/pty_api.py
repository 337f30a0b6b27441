"""The endpoints under /pty."""

from __future__ import annotations

from .children import Identity
from .logs import Log
from .messages import Answer, Reply, Request, Upgrade, json_reply
from .process_request import requested_identity
from .pty_attachment import PtyAttachment, clamped
from .pty_session import PtyOrder, PtySession
from .ptys import Ptys
from .refusal import Refusal
from .router import Route, token_matches
from .schema import json_fields, unprocessable
from .websocket import accept_headers


class PtyApi:
    """``identity`` is the user of sessions whose request names none."""

    def __init__(self, *, ptys: Ptys, identity: Identity | None, log: Log) -> None:
        self._ptys = ptys
        self._identity = identity
        self._log = log

    def routes(self) -> list[Route]:
        base = "/api/v1/pty"
        return [
            ("POST", base, self.create),
            ("GET", base, self.list),
            ("GET", f"{base}/{{}}", self.get),
            ("DELETE", f"{base}/{{}}", self.terminate),
            ("POST", f"{base}/{{}}/resize", self.resize),
            ("GET", f"{base}/{{}}/ws", self.attach),
        ]

    async def create(self, request: Request) -> Answer:
        fields = await json_fields(request)
        command = fields.text("command")
        if not command:
            raise unprocessable("command", "must not be empty")
        rows, cols = clamped(fields.whole_or("rows", 0, 65535, 24), fields.whole_or("cols", 0, 65535, 80))
        order = PtyOrder(
            command=command,
            args=fields.texts("args", nullable=True),
            env=fields.text_map("env", nullable=True),
            working_dir=fields.text_or_none("working_dir"),
            rows=rows,
            cols=cols,
            identity=requested_identity(fields, self._identity),
        )
        session = self._ptys.create(order)
        return json_reply(201, {"session_id": session.id, "token": session.token})

    async def list(self, request: Request) -> Answer:
        return json_reply(200, {"sessions": [describe(session) for session in self._ptys.all()]})

    async def get(self, request: Request, session_id: str) -> Answer:
        return json_reply(200, describe(self._ptys.find(session_id)))

    async def terminate(self, request: Request, session_id: str) -> Answer:
        self._ptys.terminate(self._ptys.find(session_id))
        return Reply(204)

    async def resize(self, request: Request, session_id: str) -> Answer:
        fields = await json_fields(request)
        rows, cols = clamped(fields.whole("rows", 0, 65535), fields.whole("cols", 0, 65535))
        session = self._ptys.find(session_id)
        try:
            session.resize(rows, cols)
        except OSError as error:
            raise Refusal(500, f"Failed to resize PTY: {error}", "RESIZE_FAILED") from error
        return Reply(204)

    async def attach(self, request: Request, session_id: str) -> Answer:
        headers = accept_headers(request)
        given = request.header("x-pty-token") or request.query.get("token")
        if given is None:
            raise Refusal(400, "The token is missing: header X-PTY-Token or query key 'token'", "BAD_REQUEST")
        session = next((session for session in self._ptys.all() if session.id == session_id), None)
        # An unknown session costs the same comparison and gets the same answer.
        wanted = session.token if session is not None else "0" * 64
        if not token_matches(given.encode("utf-8", "replace"), wanted.encode("ascii")) or session is None:
            raise Refusal(403, "Invalid token", "INVALID_TOKEN")
        return Upgrade(PtyAttachment(session=session, ptys=self._ptys, log=self._log).attend, headers=headers)


def describe(session: PtySession) -> dict[str, object]:
    """PtySessionInfo: never the token; how it ended only when that is known."""
    info: dict[str, object] = {
        "session_id": session.id,
        "pid": session.pid,
        "command": session.order.command,
        "args": list(session.order.args),
        "rows": session.rows,
        "cols": session.cols,
        "created_at": session.created_at,
        "is_alive": session.alive,
        "status": "running" if session.alive else "exited",
        "client_count": len(session.viewers),
    }
    if session.ended_at is not None:
        info["ended_at"] = session.ended_at
    if session.exit_code is not None:
        info["exit_code"] = session.exit_code
    return info
