"""The environments of child processes.

Function executors inherit the node's, because their users rely on it, without what looks like a secret of the node;
sandboxes get a minimal one. What the order carries comes last and is never filtered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from ..base import StartOrder
from .processes import MARKER

DENIED = ("AWS_*", "OTEL_*_HEADERS", "*TOKEN*", "*SECRET*", "*PASSWORD*", "INDEXIFY__*")
"""What executors do not inherit unless the configuration says otherwise; case does not matter."""

KEPT = ("PATH", "LANG", "LANGUAGE", "LC_*", "TZ", "TERM", "USER", "LOGNAME", "SHELL", "TMPDIR")
"""What sandboxes inherit."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name.upper(), pattern.upper()) for pattern in patterns)


def for_sandbox(node: Mapping[str, str], order: StartOrder, run_id: str, home: str) -> dict[str, str]:
    """Minimal: where programs are, the language, a home of its own."""
    kept = {name: value for name, value in node.items() if _matches(name, KEPT)}
    return {"PATH": DEFAULT_PATH, "LANG": "C.UTF-8", **kept, "HOME": home, **_own(order, run_id)}


def for_executor(node: Mapping[str, str], denied: Iterable[str], order: StartOrder, run_id: str) -> dict[str, str]:
    """The node's, minus what is denied."""
    patterns = tuple(denied)
    inherited = {name: value for name, value in node.items() if not _matches(name, patterns)}
    identity = {
        "INDEXIFY_EXECUTOR_ID": order.executor_id,
        "INDEXIFY_FE_ID": order.container_id,
        "PYTHONFAULTHANDLER": "1",
    }
    return {**inherited, **identity, **_own(order, run_id)}


def _own(order: StartOrder, run_id: str) -> dict[str, str]:
    # An empty list of devices hides them all: a device that was not given out belongs to somebody else.
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(order.gpus),
        **order.env,
        "INDEXIFY_CONTAINER_ID": order.container_id,
        MARKER: run_id,
    }
