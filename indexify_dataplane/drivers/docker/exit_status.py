"""How a container ended, from the engine's ``State`` or an exit code."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ...core.model import ExitStatus

SIGNALLED = 128
"""An engine tells a death by signal n as exit code 128 + n, and cannot tell it from an exit with that code."""
KILLED = 9


def standing(state: str) -> tuple[bool, bool]:
    """Whether a container lives, and whether it counts as started, from the one word of the engine's list.

    One that is being removed does not: a node that was killed in a start had ordered that to start it anew, or its next
    life does, for which the old one was not started either.
    """
    return state in ("running", "paused", "restarting"), state not in ("created", "removing", "dead")


def is_running(state: Mapping[str, Any]) -> bool:
    """A paused one runs, too."""
    return bool(state.get("Running"))


def finished_at(state: Mapping[str, Any]) -> float | None:
    """When it last ended, in seconds on the engine's clock; None if it never has. A container that runs and has ended
    before was started anew."""
    try:
        seconds = datetime.fromisoformat(str(state.get("FinishedAt") or "")).timestamp()
    except (ValueError, OverflowError):
        return None
    return seconds if seconds > 0 else None


def exit_status(
    state: Mapping[str, Any], *, oom: bool | None = None, told_by_others: bool = False
) -> ExitStatus | None:
    """None while it runs. ``oom``: whether the end came with an OOM kill; None takes the engine's flag, which any
    process of the container sets that is killed for memory, also one long before the end. ``told_by_others``: it ends
    with 0 only when it is told to, and this node has not told it.
    """
    if is_running(state):
        return None
    if state.get("Status") == "created":
        return ExitStatus()
    return status_of_code(
        int(state.get("ExitCode") or 0),
        oom=bool(state.get("OOMKilled")) if oom is None else oom,
        told_by_others=told_by_others,
    )


def status_of_code(code: int, *, oom: bool, told_by_others: bool = False) -> ExitStatus:
    """Only an end by SIGKILL can have lack of memory as its cause."""
    signal = code - SIGNALLED if SIGNALLED < code < SIGNALLED + 65 else None
    if code == 0 and told_by_others:
        # An operator's stop, or an engine that shuts down or comes back after a crash: both send SIGTERM.
        signal = 15
    return ExitStatus(code=None if signal is not None else code, signal=signal, oom=oom and signal == KILLED)
