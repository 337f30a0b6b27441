"""What is known of one key of the configuration, and the attrs field that carries it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
from attrs import NOTHING, frozen

from .config_kinds import AnyKind, Section

_KEY = "key"


@frozen
class Key:
    """What is known of one key. ``example`` is YAML for a key without default; ``derived`` says in words what stands in
    for a default that is not a constant; ``inactive`` says why a key has no effect."""

    name: str
    kind: AnyKind
    text: str
    default: Any
    example: str = ""
    derived: str = ""
    inactive: str = ""

    @property
    def optional(self) -> bool:
        """Whether nothing is a value: an empty value is then the same as leaving the key out."""
        return self.default is None

    @property
    def required(self) -> bool:
        return self.default is NOTHING


def key(
    kind: AnyKind, text: str, default: Any = NOTHING, *, example: str = "", derived: str = "", inactive: str = ""
) -> Any:
    if isinstance(kind, Section):
        default = kind.cls()
    return attrs.field(
        default=default, kw_only=True, metadata={_KEY: Key("", kind, text, default, example, derived, inactive)}
    )


def keys(cls: type[Any]) -> Iterator[Key]:
    """The keys of a section in the order of the model."""
    for attribute in attrs.fields(cls):
        found = attribute.metadata.get(_KEY)
        if found is not None:
            yield attrs.evolve(found, name=attribute.name)
