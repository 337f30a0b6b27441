"""JSON bodies to values, with the status that each kind of mistake gets."""

from __future__ import annotations

import json

from .messages import Request
from .refusal import Refusal

LARGEST_JSON = 2 * 1024 * 1024


class Fields:
    """The members of one JSON object; a wrong one is refused with 422 and its path. Unknown ones are ignored."""

    def __init__(self, value: object, path: str = "") -> None:
        if not isinstance(value, dict):
            raise unprocessable(path or "the body", "must be an object")
        self._value: dict[str, object] = value
        self._path = path

    def has(self, name: str) -> bool:
        return self._value.get(name) is not None

    def text(self, name: str) -> str:
        return self._text(self._value.get(name), self._name(name), required=name in self._value)

    def text_or_none(self, name: str) -> str | None:
        return self.text(name) if self.has(name) else None

    def texts(self, name: str, *, nullable: bool = False) -> tuple[str, ...]:
        value = self._value.get(name, [])
        if value is None and nullable:
            return ()
        if not isinstance(value, list):
            raise unprocessable(self._name(name), "must be a list of strings")
        return tuple(self._text(item, f"{self._name(name)}[{place}]") for place, item in enumerate(value))

    def text_map(self, name: str, *, nullable: bool = False) -> dict[str, str]:
        value = self._value.get(name, {})
        if value is None and nullable:
            return {}
        if not isinstance(value, dict):
            raise unprocessable(self._name(name), "must be an object with string values")
        for key in value:
            if not key or "=" in key:
                raise unprocessable(self._name(name), f"has the impossible name {key!r}")
        return {
            self._text(key, self._name(name)): self._text(item, f"{self._name(name)}.{key}")
            for key, item in value.items()
        }

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        value = self._value.get(name, default)
        if value not in choices:
            raise unprocessable(self._name(name), f"must be one of {', '.join(choices)}")
        return str(value)

    def whole(self, name: str, least: int, most: int) -> int:
        value = self._value.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON knows one kind of number
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise unprocessable(self._name(name), f"must be a whole number from {least} to {most}")
        return value

    def whole_or(self, name: str, least: int, most: int, default: int) -> int:
        return self.whole(name, least, most) if self.has(name) else default

    def whole_or_none(self, name: str, least: int, most: int) -> int | None:
        return self.whole(name, least, most) if self.has(name) else None

    def seconds_or_none(self, name: str) -> float | None:
        value = self._value.get(name)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 10**9:
            raise unprocessable(self._name(name), "must be a number of seconds, not negative")
        return float(value)

    def object_or_none(self, name: str) -> Fields | None:
        return Fields(self._value[name], self._name(name)) if self.has(name) else None

    def raw(self, name: str) -> object:
        return self._value.get(name)

    def _name(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def _text(self, value: object, name: str, required: bool = True) -> str:
        if not isinstance(value, str):
            raise unprocessable(name, "must be a string" if required else "is required")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise unprocessable(name, "must be valid Unicode") from None
        if "\0" in value:
            raise unprocessable(name, "must not contain a NUL")
        return value


def unprocessable(name: str, problem: str) -> Refusal:
    return Refusal(422, f"{name} {problem}", "UNPROCESSABLE")


async def json_fields(request: Request) -> Fields:
    """The JSON object in the body. Refusals: 415 content type, 413 size, 400 syntax, 422 shape."""
    kind = (request.header("content-type") or "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise Refusal(415, "Expected a request with content-type application/json", "UNSUPPORTED_MEDIA_TYPE")
    data = await request.read_all(LARGEST_JSON)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"Invalid JSON: {error}", "BAD_REQUEST") from None
    return Fields(value)
