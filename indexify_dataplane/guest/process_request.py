"""What a request to start a process asks for, from its JSON body."""

from __future__ import annotations

import os

from .children import Identity
from .health_check import HealthCheckOrder
from .process import Order
from .refusal import Refusal
from .schema import Fields, unprocessable
from .supervision import SupervisionOrder
from .users import resolve


def requested_order(fields: Fields, default: Identity | None, *, ends_with_leader: bool) -> Order:
    """What to run; ``default`` is the user when the request names none."""
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
        identity=requested_identity(fields, default),
        group_ends_with_leader=ends_with_leader,
    )


def requested_identity(fields: Fields, default: Identity | None) -> Identity | None:
    """``user`` as a name, a uid, uid:gid, or an object. Raises Refusal 403 where the daemon cannot switch."""
    user = fields.raw("user")
    if user is None:
        return default
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


LONGEST_NAME = 255
_NOT_NAMES = ("run", ".", "..")
"""They cannot be addressed: a route of their own, and what clients resolve before they send."""


def requested_supervision(fields: Fields) -> SupervisionOrder | None:
    """None unless the request has ``name``, ``restart`` or ``health_check``. Raises Refusal 422."""
    stop_grace_ms = fields.whole_or("stop_grace_ms", 0, 10**9, 10_000)
    if not any(fields.has(name) for name in ("name", "restart", "health_check")):
        return None
    name = fields.text_or_none("name")
    if name is not None and (not name or "/" in name or (name.isascii() and name.isdigit())):
        raise unprocessable("name", "must not be empty, hold a '/' or be a number")
    if name in _NOT_NAMES or (name is not None and len(name) > LONGEST_NAME):
        raise unprocessable("name", f"must not be 'run', '.' or '..' or longer than {LONGEST_NAME} characters")
    restart = fields.object_or_none("restart") or Fields({})
    most = 10**9
    return SupervisionOrder(
        name=name,
        policy=restart.choice("policy", ("never", "on_failure", "always"), "on_failure"),
        max_restarts=restart.whole_or_none("max_restarts", 0, most),
        initial_backoff_ms=restart.whole_or("initial_backoff_ms", 0, most, 500),
        max_backoff_ms=restart.whole_or("max_backoff_ms", 0, most, 30_000),
        stop_grace_ms=stop_grace_ms,
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
