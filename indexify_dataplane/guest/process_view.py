"""Processes as JSON."""

from __future__ import annotations

from .process import Process


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
