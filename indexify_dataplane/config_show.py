"""The resolved configuration for people and for the log, without secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .config_kinds import Section, Tagged, masked
from .config_load import Loaded
from .config_model import Config, Key, keys

_ODD = re.compile(r"[^\x20-\x7e\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")


def show(loaded: Loaded) -> str:
    """YAML that gives the same configuration again; behind each value that is no default, where it was written."""
    lines = ["# what is set, and where; everything else is a default"]
    lines += _section(loaded.config, "", loaded.sources, "")
    return "\n".join(lines) + "\n"


def flat(config: Config) -> Mapping[str, Any]:
    """Every value by its dotted path, for the log; nothing that is not set."""
    return {path: value for path, value in _flat(config, "") if value not in (None, ()) and value != {}}


def yaml(value: Any) -> str:
    """A value as flow YAML that reads back as itself."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) and value == int(value) else str(value)
    if isinstance(value, str):
        text = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + _ODD.sub(lambda match: f"\\U{ord(match[0]):08x}", text) + '"'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{yaml(name)}: {yaml(inner)}" for name, inner in value.items()) + "}"
    return "[" + ", ".join(yaml(item) for item in value) + "]"


def shown(value: Any) -> Any:
    """The value with what may be secret in it masked."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {name: shown(inner) for name, inner in value.items()}
    return tuple(map(shown, value)) if isinstance(value, tuple) else value


def _section(section: Any, path: str, sources: Mapping[str, str], indent: str) -> Iterator[str]:
    for key, full in _keys(section, path):
        value = getattr(section, key.name)
        if isinstance(key.kind, Section | Tagged):
            yield f"{indent}{key.name}:"
            if isinstance(key.kind, Tagged):
                yield _line(indent + "  ", "type", value.type, sources.get(f"{full}.type"))
            yield from _section(value, full, sources, indent + "  ")
        else:
            yield _line(indent, key.name, value, sources.get(full))


def _line(indent: str, name: str, value: Any, source: str | None) -> str:
    return f"{indent}{name}: {yaml(shown(value))}" + (f"  # {source}" if source else "")


def _flat(section: Any, path: str) -> Iterator[tuple[str, Any]]:
    for key, full in _keys(section, path):
        value = getattr(section, key.name)
        if isinstance(key.kind, Section | Tagged):
            if isinstance(key.kind, Tagged):
                yield f"{full}.type", value.type
            yield from _flat(value, full)
        else:
            yield full, shown(value)


def _keys(section: Any, path: str) -> Iterator[tuple[Key, str]]:
    """Without ``driver``, whose meaning is already in the two drivers."""
    for key in keys(type(section)):
        if path or key.name != "driver":
            yield key, f"{path}.{key.name}" if path else key.name
