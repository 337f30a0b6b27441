"""What the children of the daemon find in their environment."""

from __future__ import annotations

from collections.abc import Mapping

from .children import Identity
from .command_line import TOKEN_VARIABLE

MARK = b"INDEXIFY_PROCESS_MARK"
"""Set to a value of its own for each started process and inherited by all that it starts: how descendants that left
group, session and parent are still found when the process is killed."""

_OWN = (TOKEN_VARIABLE.encode(), b"INDEXIFY_DAEMON_LOG", MARK)


def for_children(environ: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """The daemon's environment without what is meant for the daemon alone."""
    return {name: value for name, value in environ.items() if name not in _OWN}


def for_process(
    base: Mapping[bytes, bytes], *, wanted: Mapping[str, str], identity: Identity | None, mark: str
) -> dict[bytes, bytes]:
    """One process's environment: the base, its user's names, what its request sets, and its mark."""
    environment = dict(base)
    if identity is not None:
        environment[b"HOME"] = (identity.home or "/").encode("utf-8", "surrogateescape")
        if identity.name is not None:
            environment[b"USER"] = environment[b"LOGNAME"] = identity.name.encode("utf-8", "surrogateescape")
    for name, value in wanted.items():
        environment[name.encode("utf-8", "surrogateescape")] = value.encode("utf-8", "surrogateescape")
    environment[MARK] = mark.encode("ascii")
    return environment
