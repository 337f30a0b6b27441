"""The model as a JSON Schema, for editors that check a configuration while it is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from .config_kinds import SCALAR, AnyKind, Kind, ListOf, MapOf, Section, Tagged
from .config_model import Config, Key, keys

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """A schema that accepts what ``config.load`` accepts, but for keys it would only warn of, which editors should
    mark, and for what cannot be told from one key alone."""
    return {
        "$schema": DIALECT,
        "title": "Indexify Dataplane",
        "description": "Configuration of one worker node. Everything is optional.",
        **_section(Config),
    }


def _section(cls: type[Any], *, tag: str | None = None) -> dict[str, Any]:
    properties = {key.name: _key(key) for key in keys(cls)}
    required = [key.name for key in keys(cls) if key.required]
    if tag is not None:
        properties = {"type": {"const": tag, "description": (cls.__doc__ or "").strip()}, **properties}
        required = ["type", *required]
    made: dict[str, Any] = {
        "type": ["object", "null"] if tag is None else "object",
        "properties": properties,
        "additionalProperties": False,
    }
    if required:
        made["required"] = required
    return made


def _key(key: Key) -> dict[str, Any]:
    made: dict[str, Any] = {"description": described(key)}
    if key.inactive:
        made["deprecated"] = True
    default = plain(key.default)
    if default is not None:
        made["default"] = default
    inner = _kind(key.kind)
    if key.optional:
        inner = {"anyOf": [inner, {"type": "null"}]}
    return made | inner


def _kind(kind: AnyKind) -> dict[str, Any]:
    if isinstance(kind, Section):
        return _section(kind.cls)
    if isinstance(kind, Tagged):
        return {"oneOf": [_section(cls, tag=tag) for tag, cls in kind.variants.items()]}
    if isinstance(kind, ListOf):
        return {"type": ["array", "null"] if kind.empty_by_null else "array", "items": dict(kind.item.json)}
    if isinstance(kind, MapOf):
        return {"type": ["object", "null"], "additionalProperties": dict(kind.item.json or SCALAR)}
    assert isinstance(kind, Kind)
    return dict(kind.json)


def described(key: Key) -> str:
    """The key's meaning in one or two sentences, with what stands in for its default."""
    return key.text + (f" Default: {key.derived}." if key.derived else "")


def plain(default: Any) -> Any:
    """A default as JSON; None where it is none that can be written down."""
    if default is attrs.NOTHING or default is None:
        return None
    if attrs.has(type(default)):
        return {"type": default.type} if hasattr(default, "type") else None
    if isinstance(default, tuple):
        return list(default)
    return dict(default) if isinstance(default, Mapping) else default
