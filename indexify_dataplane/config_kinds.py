"""What a value of the configuration may look like: how it is read, what is allowed in words and as JSON Schema."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from attrs import frozen

BIGGEST = 2**64 - 1
SCALAR: Mapping[str, Any] = {"type": ["string", "number", "boolean"]}
"""An unquoted ``1.10`` or ``on`` for a string key is that text, so a JSON Schema has to let it through."""

_HOST = re.compile(r"(?=.{1,253}\.?$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\.?$")
_NUMBER = re.compile(r"0x[0-9a-fA-F_]*[0-9a-fA-F]|0o[0-7_]*[0-7]|0b[01_]*[01]|[0-9]([0-9_]*[0-9])?")
_REGION = re.compile(r"(?![0-9]+$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
"""A label of a host name, which is what clients of AWS make of it; other stores have free names for theirs."""
_TOKEN = r"[^:*\s]([^:*]*[^:*\s])?"
_TRUE = ("true", "yes", "on", "y")
_FALSE = ("false", "no", "off", "n")
_USER = re.compile(r"(?<=//)[^/@?#]*@")


class Wrong(ValueError):
    """The text is no value of the kind; ``allowed`` says what would be."""

    def __init__(self, text: str, allowed: str) -> None:
        super().__init__(text)
        self.allowed = allowed


@frozen
class Kind:
    """One sort of scalar. ``parse`` raises Wrong."""

    name: str
    parse: Callable[[str], Any]
    json: Mapping[str, Any] = SCALAR


@frozen
class ListOf:
    """A list of scalars. ``empty_by_null`` says whether a key with nothing behind it is an empty list."""

    item: Kind
    empty_by_null: bool = True

    @property
    def name(self) -> str:
        return f"list of {self.item.name}"


@frozen
class MapOf:
    """Names to scalars; the names are free."""

    item: Kind

    @property
    def name(self) -> str:
        return f"map of names to {self.item.name}"


@frozen
class Section:
    """Keys of their own; ``cls`` is an attrs class made of ``key``s."""

    cls: type[Any]

    @property
    def name(self) -> str:
        return "section"


@frozen
class Tagged:
    """One of several sections, told apart by its key ``type``."""

    variants: Mapping[str, type[Any]]

    @property
    def name(self) -> str:
        return f"section by type: {', '.join(self.variants)}"


AnyKind = Kind | ListOf | MapOf | Section | Tagged


def masked(text: str) -> str:
    """The text without what may be a secret in it: user and password, and the query, of an address."""
    if "://" not in text:
        return text
    hidden = _USER.sub("***@", text)
    return re.sub(r"\?[^#]*", "?***", hidden)


def host(text: str) -> str:
    """An IP address or a host name, without brackets; Wrong otherwise."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        address = None
    if address is None and (bare != text or not _HOST.match(bare) or re.fullmatch(r"[0-9.]+", bare)):
        raise Wrong("no address to listen on", "an IPv4 or IPv6 address, or a host name, without port")
    return bare


def joined(name: str, port: int) -> str:
    """``host:port``, with brackets where the host is an IPv6 address."""
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def split(text: str) -> tuple[str, int]:
    """``host:port`` in two; Wrong unless both are there and can be real."""
    allowed = "host:port without a scheme, an IPv6 host in brackets, port 1..65535"
    name, colon, port = text.rpartition(":")
    if not colon or "://" in text or (":" in name and not name.startswith("[")):
        raise Wrong("no address of the form host:port", allowed)
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise Wrong("no usable port", allowed)
    try:
        return host(name), int(port)
    except Wrong as error:
        raise Wrong("no usable host", allowed) from error


def integer(low: int = 0, high: int = BIGGEST, unit: str = "") -> Kind:
    """Whole numbers, also with ``_``, ``0x``, ``0o``, ``0b``, or in quotes."""
    name = f"integer {low}..{high}" if high != BIGGEST else f"integer, {low} or more"
    allowed = f"an {name}{' ' + unit if unit else ''}"

    def parse(text: str) -> int:
        if not _NUMBER.fullmatch(text):
            raise Wrong("not a whole number", allowed)
        digits = text.replace("_", "")
        value = int(digits, 0 if digits[:2] in ("0x", "0o", "0b") else 10)
        if not low <= value <= high:
            raise Wrong("out of range", allowed)
        return value

    number = {"type": "integer", "minimum": low} | ({"maximum": high} if high != BIGGEST else {})
    return Kind(
        name + (f" ({unit})" if unit else ""),
        parse,
        {"anyOf": [number, {"type": "string", "pattern": f"^({_NUMBER.pattern})$"}]},
    )


def seconds(low: float = 0.0) -> Kind:
    """A length of time; decimals are fine."""
    allowed = f"a number of seconds, {'more than 0' if low else '0 or more'}, such as 10 or 0.5"

    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or len(text) > 12:
            raise Wrong("not a number of seconds", allowed)
        if float(text) < low:
            raise Wrong("too short", allowed)
        return float(text)

    return Kind(
        "seconds",
        parse,
        {"anyOf": [{"type": "number", "minimum": low}, {"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?$"}]},
    )


def choice(*values: str) -> Kind:
    allowed = ", ".join(values)

    def parse(text: str) -> str:
        if text not in values:
            raise Wrong("unknown value", allowed)
        return text

    return Kind(f"one of {allowed}", parse, {"enum": list(values)})


def _boolean(text: str) -> bool:
    lower = text.lower()
    if lower not in (*_TRUE, *_FALSE):
        raise Wrong("not a boolean", "true or false (also yes/no, on/off, y/n)")
    return lower in _TRUE


def _any_case(words: tuple[str, ...]) -> str:
    return "|".join("".join(f"[{c}{c.upper()}]" for c in word) for word in words)


def _text(text: str) -> str:
    return text


def _name(text: str) -> str:
    if not text.strip() or not text.isprintable() or len(text) > 256:
        raise Wrong("empty, too long, or not printable", "1 to 256 printable characters")
    return text


def _path(text: str) -> str:
    if not text or "\0" in text:
        raise Wrong("not a path", "a path that is not empty")
    return text


def _absolute(text: str) -> str:
    if not text.startswith("/") or "\0" in text:
        raise Wrong("not an absolute path", "a path that begins with /")
    return text


def _server(text: str) -> str:
    allowed = "http://host[:port] or https://host[:port]"
    if not text.startswith(("http://", "https://")):
        raise Wrong(f"must include a scheme: {masked(text)}", allowed)
    return _address(text, allowed)


def _address(text: str, allowed: str) -> str:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise Wrong(f"not an address: {error}", allowed) from error
    if parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise Wrong("only scheme, host and port have a meaning here", allowed)
    if port == 0 or not parts.hostname or not text.isprintable() or parts.netloc.endswith(":"):
        raise Wrong("no usable host and port", allowed)
    try:
        host(parts.hostname)
    except Wrong as error:
        raise Wrong("no usable host", allowed) from error
    return text


def _collector(text: str) -> str | None:
    allowed = "http://host:port or https://host:port"
    if not text:
        return None
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as error:
        raise Wrong(f"not an address: {error}", allowed) from error
    if not usable or not text.isprintable():
        raise Wrong("not an address", allowed)
    return text


def _engine(text: str) -> str:
    allowed = "unix:///path, /path, tcp://host:port, http://host:port or https://host:port"
    if text.startswith("/") or (text.startswith("unix:///") and len(text) > 8):
        return text
    scheme = text.partition("://")[0]
    if scheme not in ("tcp", "http", "https") or "://" not in text:
        raise Wrong("not the address of an engine", allowed)
    return _address(text, allowed)


def _host_port(text: str) -> str:
    split(text)
    return text


def _host_entry(text: str) -> str:
    allowed = "name:address, such as registry.internal:10.0.0.5, or name:host-gateway"
    name, colon, address = text.partition(":")
    if not colon or not _HOST.match(name):
        raise Wrong("not a line for a hosts file", allowed)
    if address != "host-gateway":
        try:
            ipaddress.ip_address(address.strip("[]"))
        except ValueError as error:
            raise Wrong("no address behind the name", allowed) from error
    return text


def _ipv4(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError as error:
        raise Wrong("not an IPv4 address", "an IPv4 address such as 192.168.30.1") from error


def _netmask(text: str) -> str:
    try:
        mask = str(ipaddress.IPv4Network(f"0.0.0.0/{_ipv4(text)}").netmask)
    except ValueError:
        mask = ""
    if mask != text:
        raise Wrong("not a netmask", "an IPv4 netmask such as 255.255.255.0")
    return text


def _suffix(text: str) -> str:
    if not text.startswith(".") or not _HOST.match(text[1:]):
        raise Wrong("not the end of a host name", "a dot and a host name, such as .sandboxes.example.com")
    return text.lower().rstrip(".")


def _function(text: str) -> str:
    tokens = text.split(":")
    allowed = "namespace:application:function or namespace:application:function:version"
    if len(tokens) not in (3, 4) or not all(tokens) or not text.isprintable():
        raise Wrong("malformed, and skipping it would allow other functions", allowed)
    literally = f"{allowed}, names as they are: no spaces around them, no * (without version: any version)"
    if any(token != token.strip() for token in tokens):
        raise Wrong("a space around a name belongs to no function's name, so this allows none", literally)
    if "*" in text:
        raise Wrong("* stands for itself here, so this allows no function", literally)
    return text


def _region(text: str) -> str:
    if not _REGION.fullmatch(text):
        raise Wrong("not a region", "1 to 63 letters, digits and inner hyphens, not digits alone, such as eu-central-1")
    return text


BOOLEAN = Kind(
    "boolean",
    _boolean,
    {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": f"^({_any_case(_TRUE)}|{_any_case(_FALSE)})$"}]},
)
TEXT = Kind("string", _text)
NAME = Kind("string, not empty", _name)
PATH = Kind("path", _path)
ABSOLUTE = Kind("absolute path", _absolute, {"type": "string", "pattern": "^/"})
PORT = integer(0, 65535)
HOST = Kind("address to listen on", host)
HOST_PORT = Kind("host:port", _host_port)
SERVER = Kind("http:// or https:// address", _server, {"type": "string", "pattern": "^https?://"})
COLLECTOR = Kind("http:// or https:// address", _collector, {"type": "string", "pattern": "^(https?://.*)?$"})
ENGINE = Kind("engine address", _engine, {"type": "string", "pattern": "^(/|unix:///|tcp://|https?://)"})
HOST_ENTRY = Kind("name:address", _host_entry, {"type": "string", "pattern": "^[^:]+:.+$"})
IPV4 = Kind("IPv4 address", _ipv4, {"type": "string", "pattern": "^[0-9.]+$"})
NETMASK = Kind("IPv4 netmask", _netmask, {"type": "string", "pattern": "^[0-9.]+$"})
SUFFIX = Kind("host name suffix", _suffix, {"type": "string", "pattern": "^\\."})
REGION = Kind("region", _region, {"type": "string", "pattern": f"^{_REGION.pattern}$"})
FUNCTION = Kind(
    "namespace:application:function[:version]",
    _function,
    {"type": "string", "pattern": f"^{_TOKEN}:{_TOKEN}:{_TOKEN}(:{_TOKEN})?$"},
)
