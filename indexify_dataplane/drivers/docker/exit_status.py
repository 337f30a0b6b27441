"""How a container ended, from the engine's ``State``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.model import ExitStatus

SIGNALLED = 128
"""An engine tells a death by signal n as exit code 128 + n, and cannot tell it from an exit with that code."""


def is_running(state: Mapping[str, Any]) -> bool:
    """A paused one runs, too."""
    return bool(state.get("Running"))


def exit_status(state: Mapping[str, Any], *, oom_told: bool = False, told_by_others: bool = False) -> ExitStatus | None:
    """None while it runs. ``oom_told``: the engine's event stream told of an OOM kill in it. ``told_by_others``: it
    ends with 0 only when it is told to, and this node has not told it.

    The engine's OOM flag is set by any process of the container that was killed for memory, also one long before the
    end; only an end by SIGKILL can have that cause.
    """
    if is_running(state):
        return None
    if state.get("Status") == "created":
        return ExitStatus()
    code = int(state.get("ExitCode") or 0)
    signal = code - SIGNALLED if SIGNALLED < code < SIGNALLED + 65 else None
    if code == 0 and told_by_others:
        # An operator's stop, or an engine that shuts down or comes back after a crash: both send SIGTERM.
        signal = 15
    oom = (bool(state.get("OOMKilled")) or oom_told) and signal == 9
    return ExitStatus(code=None if signal is not None else code, signal=signal, oom=oom)
