"""The OpenAPI 3.1 document of the HTTP API, put together when somebody asks for it."""

from __future__ import annotations

from collections.abc import Mapping

Json = dict[str, object]

TEXT: Json = {"type": "string"}
GIVEN: Json = {"type": "string", "pattern": "^[^\\x00]*$"}
COUNT: Json = {"type": "integer", "minimum": 0}
TIME: Json = {"type": "integer", "minimum": 0, "description": "milliseconds since the epoch"}
FLAG: Json = {"type": "boolean"}


def document(version: str, token: bool) -> Json:
    """``token``: whether requests must carry one."""
    described: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "Sandbox daemon",
            "version": version,
            "description": "Processes, terminals, files and tunnels of one sandbox.",
        },
        "servers": [{"url": "/"}],
        "paths": {**_daemon_paths(), **_process_paths(), **_file_paths(), **_pty_paths(), **_tunnel_paths()},
        "components": {"schemas": _schemas(), "securitySchemes": _security()},
    }
    if token:
        described["security"] = [{"sandboxToken": []}]
    return described


def _security() -> Json:
    return {"sandboxToken": {"type": "apiKey", "in": "header", "name": "X-Indexify-Sandbox-Token"}}


def _object(required: Mapping[str, object], optional: Mapping[str, object] | None = None) -> Json:
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(schema: Json) -> Json:
    return {"type": "array", "items": schema}


def _range(least: int, most: int) -> Json:
    return {"type": "integer", "minimum": least, "maximum": most}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _operation(
    summary: str,
    answers: Mapping[int, tuple[str, object]],
    *,
    parameters: list[Json] | None = None,
    body: Json | None = None,
    raw_body: bool = False,
    open_to_all: bool = False,
) -> Json:
    """``answers``: status to (content type or "", schema); 400 to 507 are always possible errors."""
    responses: Json = {}
    for status, (kind, schema) in answers.items():
        responses[str(status)] = {"description": summary} | ({"content": {kind: {"schema": schema}}} if kind else {})
    responses["default"] = {"description": "Refused", "content": {"application/json": {"schema": _ref("Error")}}}
    operation: Json = {"summary": summary, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    if raw_body:
        operation["requestBody"] = {"content": {"application/octet-stream": {"schema": {"format": "binary"}}}}
    if open_to_all:
        operation["security"] = []
    return operation


def _json(schema: Json) -> tuple[str, Json]:
    return "application/json", schema


NOTHING = ("", None)
EVENTS = (
    "text/event-stream",
    {
        "type": "object",
        "properties": {"event": TEXT, "data": {"type": "string", "description": "a JSON object"}, "id": TEXT},
    },
)
BYTES = ("application/octet-stream", {"format": "binary"})


def _parameter(name: str, place: str, schema: Json, description: str) -> Json:
    return {
        "name": name,
        "in": place,
        "required": place == "path" or name in ("path", "port"),
        "schema": schema,
        "description": description,
    }


def _daemon_paths() -> Json:
    healthy = _object({"healthy": FLAG})
    return {
        "/api/v1/health": {
            "get": _operation("Whether the daemon serves", {200: _json(healthy)}, open_to_all=True),
        },
        "/api/v1/info": {"get": _operation("Version and counts", {200: _json(_ref("DaemonInfo"))})},
        "/api/v1/openapi.json": {"get": _operation("This document", {200: _json({"type": "object"})})},
    }


def _process_paths() -> Json:
    reference = [_parameter("process", "path", {"type": "string", "minLength": 1}, "pid, or name or id of a managed")]
    resume = _parameter("Last-Event-ID", "header", TEXT, "go on behind the event with this id")
    base = "/api/v1/processes"
    one = base + "/{process}"
    paths: Json = {
        base: {
            "post": _operation("Start a process", {201: _json(_ref("Process"))}, body=_ref("StartProcess")),
            "get": _operation("All processes", {200: _json(_object({"processes": _list(_ref("Process"))}))}),
        },
        base + "/run": {
            "post": _operation(
                "Start a process and stream started, output and exit events", {200: EVENTS}, body=_ref("RunProcess")
            )
        },
        one: {
            "get": _operation("One process", {200: _json(_ref("Process"))}, parameters=reference),
            "delete": _operation("Kill a process and its descendants", {204: NOTHING}, parameters=reference),
        },
        one + "/signal": {
            "post": _operation(
                "Signal the process group",
                {200: _json(_object({"success": FLAG}))},
                parameters=reference,
                body=_object({"signal": _range(-(2**31), 2**31 - 1)}),
            )
        },
        one + "/restart": {
            "post": _operation("Restart a managed process", {200: _json(_ref("Process"))}, parameters=reference)
        },
        one + "/stdin": {
            "post": _operation("Write to standard input", {204: NOTHING}, parameters=reference, raw_body=True)
        },
        one + "/stdin/close": {"post": _operation("End standard input", {204: NOTHING}, parameters=reference)},
    }
    for name in ("stdout", "stderr", "output"):
        paths[f"{one}/{name}"] = {
            "get": _operation(f"All lines of {name} so far", {200: _json(_ref("Output"))}, parameters=reference)
        }
        paths[f"{one}/{name}/follow"] = {
            "get": _operation(
                f"Lines of {name}, old and new, until the process has ended",
                {200: EVENTS},
                parameters=[*reference, resume],
            )
        }
    return paths


def _file_paths() -> Json:
    path = [
        _parameter("path", "query", {"type": "string", "pattern": "^[^\\x00]+$"}, "absolute, or below the daemon's own")
    ]
    byte_range = _parameter("Range", "header", TEXT, "one range of bytes")
    listing = _object({"path": TEXT, "entries": _list(_ref("Entry"))})
    return {
        "/api/v1/files": {
            "get": _operation("Read a file", {200: BYTES, 206: BYTES}, parameters=[*path, byte_range]),
            "put": _operation("Write a file, whole or not at all", {204: NOTHING}, parameters=path, raw_body=True),
            "delete": _operation("Delete a file", {204: NOTHING}, parameters=path),
        },
        "/api/v1/files/list": {"get": _operation("List a directory", {200: _json(listing)}, parameters=path)},
    }


def _pty_paths() -> Json:
    session = [_parameter("session", "path", {"type": "string", "minLength": 1}, "session_id")]
    tokens = [
        _parameter("token", "query", TEXT, "the session's token"),
        _parameter("X-PTY-Token", "header", TEXT, "the session's token; goes before the query"),
    ]
    size = _object({"rows": _range(0, 65535), "cols": _range(0, 65535)})
    return {
        "/api/v1/pty": {
            "post": _operation(
                "Start a program on a terminal",
                {201: _json(_object({"session_id": TEXT, "token": TEXT}))},
                body=_ref("StartPty"),
            ),
            "get": _operation("All terminal sessions", {200: _json(_object({"sessions": _list(_ref("Pty"))}))}),
        },
        "/api/v1/pty/{session}": {
            "get": _operation("One terminal session", {200: _json(_ref("Pty"))}, parameters=session),
            "delete": _operation("Hang up, kill after five seconds", {204: NOTHING}, parameters=session),
        },
        "/api/v1/pty/{session}/resize": {
            "post": _operation("Change the size", {204: NOTHING}, parameters=session, body=size),
        },
        "/api/v1/pty/{session}/ws": {
            "get": _operation("Attach by WebSocket", {101: NOTHING}, parameters=[*session, *tokens]),
        },
    }


def _tunnel_paths() -> Json:
    port = [_parameter("port", "query", _range(1, 65535), "a port of the sandbox")]
    operation = _operation("A TCP connection to 127.0.0.1 by WebSocket", {101: NOTHING}, parameters=port)
    return {"/api/v1/tunnels/tcp": {"get": operation}}


def _schemas() -> Json:
    names: Json = {"pattern": "^[^=\\x00]+$"}
    texts: Json = {"type": "object", "additionalProperties": GIVEN, "propertyNames": names}
    command: Json = {"type": "string", "pattern": "^[^\\x00]+$"}
    number = _range(0, 2**32 - 2)
    user: Json = {
        "anyOf": [
            GIVEN,
            _object({"name": {"type": "string", "pattern": "^[^:\\x00]+$"}}),
            _object({"uid": number}, {"gid": _or_null(number), "name": {"type": "null"}}),
            {"type": "null"},
        ]
    }
    common: Json = {"args": _list(GIVEN), "env": texts, "working_dir": _or_null(GIVEN), "user": user}
    seconds = _or_null({"type": "number", "minimum": 0, "maximum": 10**9})
    status: Json = {"type": "string", "enum": ["running", "exited", "signaled", "oom_killed"]}
    return {
        "Error": _object({"error": TEXT}, {"code": TEXT}),
        "DaemonInfo": _object(
            {"version": TEXT, "uptime_secs": COUNT, "running_processes": COUNT, "total_processes": COUNT}
        ),
        "StartProcess": _object({"command": command}, {**common, **_modes(), **_management()}),
        "RunProcess": _object(
            {"command": command}, {**common, **_modes(), "timeout": seconds, "timeout_secs": seconds}
        ),
        "Process": _object(
            {
                "pid": COUNT,
                "handle": COUNT,
                "status": status,
                "exit_code": _or_null({"type": "integer"}),
                "signal": _or_null({"type": "integer"}),
                "oom_killed": FLAG,
                "stdin_writable": FLAG,
                "command": TEXT,
                "args": _list(TEXT),
                "started_at": TIME,
                "ended_at": _or_null(TIME),
                "managed": _or_null({"type": "object"}),
            }
        ),
        "Output": _object({"pid": COUNT, "lines": _list(TEXT), "line_count": COUNT}, {"lost_lines": COUNT}),
        "Entry": _object(
            {"name": TEXT, "is_dir": FLAG, "size": _or_null(COUNT), "modified_at": _or_null({"type": "integer"})}
        ),
        "StartPty": _object(
            {"command": command},
            {
                **common,
                "args": _or_null(_list(GIVEN)),
                "env": _or_null(texts),
                "rows": _or_null(_range(0, 65535)),
                "cols": _or_null(_range(0, 65535)),
            },
        ),
        "Pty": _object(
            {
                "session_id": TEXT,
                "pid": COUNT,
                "command": TEXT,
                "args": _list(TEXT),
                "rows": _range(1, 500),
                "cols": _range(1, 1000),
                "created_at": TIME,
                "is_alive": FLAG,
                "status": {"type": "string", "enum": ["running", "exited"]},
            },
            {"client_count": COUNT, "ended_at": TIME, "exit_code": {"type": "integer"}},
        ),
    }


def _modes() -> Json:
    return {
        "stdin_mode": {"type": "string", "enum": ["closed", "pipe"]},
        "stdout_mode": {"type": "string", "enum": ["capture", "discard"]},
        "stderr_mode": {"type": "string", "enum": ["capture", "discard"]},
    }


def _management() -> Json:
    number = _or_null(_range(0, 10**9))
    positive = _or_null(_range(1, 10**9))
    restart = _object(
        {},
        {
            "policy": {"type": "string", "enum": ["never", "on_failure", "always"]},
            "max_restarts": number,
            "initial_backoff_ms": number,
            "max_backoff_ms": number,
        },
    )
    health_check = _object(
        {"type": {"type": "string", "enum": ["http", "tcp"]}, "port": _range(1, 65535)},
        {
            "path": _or_null({"type": "string", "pattern": "^/[!-~]*$"}),
            "initial_delay_ms": number,
            "interval_ms": positive,
            "timeout_ms": positive,
            "failure_threshold": positive,
        },
    )
    return {
        "name": _or_null({"type": "string", "minLength": 1, "pattern": "^[^/\\x00]*[^/0-9\\x00][^/\\x00]*$"}),
        "restart": _or_null(restart),
        "health_check": _or_null(health_check),
        "stop_grace_ms": number,
    }
