"""Which log events are wanted: directives like ``info,indexify_dataplane::http_proxy=debug``.

Directives written for the reference name its modules. ``REFERENCE`` says which of ours does the work of each, so that
they still select the right events.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping

from attrs import frozen

OFF, ERROR, WARN, INFO, DEBUG, TRACE = range(6)
LEVELS = {"off": OFF, "error": ERROR, "warn": WARN, "info": INFO, "debug": DEBUG, "trace": TRACE}
CRATE = "indexify_dataplane"
PROXY = f"{CRATE}::http_proxy"

_FUNCTION_EXECUTOR = tuple(
    f"function_executor::{name}"
    for name in (
        "allocation_runner", "allocation_prep", "allocation_finalize", "blob_reconciler", "function_call_reconciler",
        "state_ops", "health_checker", "fe_client",
    )
)  # fmt: skip
_LIFE = (
    "function_container_manager::lifecycle",
    "function_container_manager::health",
    "allocation_controller::container_lifecycle",
)

REFERENCE: Mapping[str, tuple[str, ...]] = {
    "alarms": ("service",),
    "blobs": ("blob_ops",),
    "control": ("service", "retry"),
    "control::heartbeat": ("service", "state_reporter"),
    "control::outbox": ("service", "state_reporter"),
    "core": ("service", "state_reconciler"),
    "daemon_client": ("daemon_client",),
    "drivers::docker": ("driver::docker",),
    "drivers::firecracker": ("driver::firecracker",),
    "drivers::fork_exec": ("driver::fork_exec",),
    "executor": _FUNCTION_EXECUTOR,
    "executor::blobs": ("function_executor::blob_reconciler", "blob_ops"),
    "executor::client": ("function_executor::fe_client",),
    "executor::code_cache": ("code_cache",),
    "guestbundle": ("daemon_binary",),
    "host::gpus": ("gpu_allocator", "resources"),
    "host": ("resources",),
    "network": ("network_rules",),
    "perform": (*_LIFE, "allocation_controller::allocation_lifecycle"),
    "perform::allocations": ("allocation_controller::allocation_lifecycle", *_FUNCTION_EXECUTOR),
    "perform::containers": _LIFE,
    "perform::executors": ("allocation_controller::container_lifecycle", *_FUNCTION_EXECUTOR),
    "perform::snapshots": ("snapshotter::docker_snapshotter", "snapshotter::firecracker_snapshotter"),
    "perform::watch": ("function_container_manager::health", "function_executor::health_checker"),
    "reconciliation": ("service", "state_reconciler", "function_container_manager", "allocation_controller"),
    "records": ("state_file",),
    "snapshots": ("snapshotter::docker_snapshotter", "snapshotter::firecracker_snapshotter"),
    "snapshots::docker": ("snapshotter::docker_snapshotter",),
    "snapshots::firecracker": ("snapshotter::firecracker_snapshotter",),
    "store": ("state_file",),
    "tap": ("service",),
}
"""Our modules, below the package, to the reference's targets, below its crate; those of the same name are left out."""

_TARGET = re.compile(r"[A-Za-z0-9_.:\-]+")


@frozen
class Directives:
    """``levels`` holds (prefix of a target, most verbose level wanted), the longest prefix first; the empty prefix is
    everything. A target that no prefix fits is silent."""

    levels: tuple[tuple[str, int], ...]

    def level(self, namespace: str) -> int:
        """The most verbose level wanted of a module, by its dotted name."""
        names = selectors(namespace)
        for prefix, level in self.levels:
            if any(name.startswith(prefix) for name in names):
                return level
        return OFF

    @property
    def most(self) -> int:
        """The most verbose level that anything may log at."""
        return max((level for _, level in self.levels), default=OFF)


def target(namespace: str) -> str:
    """How the module is called in a log line: its path with ``::``; the proxy's modules are one target."""
    path = namespace.replace(".", "::")
    return PROXY if path.startswith(f"{PROXY}::") else path


def selectors(namespace: str) -> tuple[str, ...]:
    """All names under which directives may select the module."""
    path = namespace.replace(".", "::")
    names = [target(namespace), path]
    below = path.removeprefix(f"{CRATE}::")
    if below != path:
        while below:
            if below in REFERENCE:
                names += [f"{CRATE}::{name}" for name in REFERENCE[below]]
                break
            below = below.rpartition("::")[0]
    return tuple(dict.fromkeys(names))


def from_environment(environ: Mapping[str, str]) -> tuple[Directives, tuple[str, ...]]:
    """The directives of INDEXIFY_LOG, else RUST_LOG, else info; and what has to be said about them."""
    for name in ("INDEXIFY_LOG", "RUST_LOG"):
        if name in environ:
            return parse(environ[name], name)
    return Directives((("", INFO),)), ()


def parse(text: str, name: str) -> tuple[Directives, tuple[str, ...]]:
    """The directives in ``text`` and warnings. One that cannot be read makes all of them ``info``: too much in the log
    is better than nothing."""
    if not text.strip():
        return Directives(()), ()
    levels: dict[str, int] = {}
    spans = []
    for directive in _split(text):
        prefix, bracket, rest = directive.partition("[")
        if bracket:
            spans.append(directive)
            if "]" not in rest:
                return _unreadable(name, directive)
            continue
        prefix, equals, word = (part.strip() for part in directive.partition("="))
        level = _level(word if equals else prefix)
        if not equals and level is not None:
            levels[""] = level
        elif not _TARGET.fullmatch(prefix) or (equals and level is None) or (not equals and _misspelt(prefix)):
            return _unreadable(name, directive)
        else:
            levels[prefix.replace("::", ".").replace(".", "::")] = TRACE if level is None else level
    warnings: tuple[str, ...] = ()
    if spans:
        warnings = (f"{name}: directives for spans are ignored: {', '.join(spans)}",)
        if not levels:
            levels[""] = INFO
    return Directives(tuple(sorted(levels.items(), key=lambda entry: -len(entry[0])))), warnings


def _unreadable(name: str, directive: str) -> tuple[Directives, tuple[str, ...]]:
    allowed = "level, target=level or target, where level is off, error, warn, info, debug, trace or 0..5"
    return Directives((("", INFO),)), (f"{name}: cannot read {directive!r}, logging at info (allowed {allowed})",)


def _level(word: str) -> int | None:
    if len(word) == 1 and word in "012345":
        return int(word)
    return LEVELS.get(word.lower())


def _misspelt(word: str) -> bool:
    """Whether a level was meant: as a target it would silence everything else."""
    if word.isdigit():
        return True
    return "::" not in word and "." not in word and bool(difflib.get_close_matches(word.lower(), LEVELS, 1, 0.75))


def _split(text: str) -> Iterator[str]:
    """At commas, but not inside of [ ] or { }."""
    depth, start = 0, 0
    for index, character in enumerate(f"{text},"):
        depth += (character in "[{") - (character in "]}")
        if character == "," and (depth <= 0 or index == len(text)):
            if text[start:index].strip():
                yield text[start:index].strip()
            start, depth = index + 1, 0
