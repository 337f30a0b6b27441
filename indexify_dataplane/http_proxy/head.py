"""HTTP/1.1 heads: parsed strictly, sorted into what goes on and what concerns this hop alone. No I/O.

httptools goes over the fields and refuses bare line feeds, folded lines, white space before a colon, control
characters, and contradicting lengths. It is lenient about the first line (several spaces, other protocols, HTTP/0.9),
so that is matched here, and everything about the meaning of fields is decided here.
"""

from __future__ import annotations

import re

import httptools

from .replies import HeadRefused, bad_request
from .routes import TOKEN_HEADER

MAX_HEAD = 64 * 1024
"""Bytes of a head, first line included. Common servers stop at 8 to 64 KiB."""

MAX_TARGET = 16 * 1024
MAX_FIELDS = 256

MEMO = 2048
"""Bytes up to which a connection remembers its last head as parsed: who polls says the same over and over."""

CHUNKED = -1
"""Length of a body in chunks."""

UNTIL_CLOSE = -2
"""Length of a response body that ends with its connection."""

SECRET_HEADER = "X-Tensorlake-Proxy-Secret"
"""Carries the secret shared with the outer proxy, where one is configured."""

_REQUEST_LINE = re.compile(rb"([A-Z][A-Z0-9_-]{0,31}) ([\x21-\x7e]+) HTTP/1\.([01])\r\n")
_VERSIONED = re.compile(rb"[^ ]+ [^ ]+ HTTP/(\d)\.(\d)\r\n")
_ABSOLUTE = re.compile(rb"http://([^/?#]+)((?:[/?].*)?)", re.IGNORECASE)
_HOST = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+;=:\[\]]*")
_THIS_MACHINE = re.compile(rb"Host: (?:localhost|127\.0\.0\.1)(?::\d+)?")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_ENCODING = re.compile(rb"\r\ntransfer-encoding:[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)", re.IGNORECASE)
_BARE_LF = re.compile(rb"(?<!\r)\n")


class Field:
    """Fields that mean something to this hop. Plain numbers: an enumeration's members cost a lookup each."""

    HOST = 1
    SANDBOX_ID = 2
    SANDBOX_PORT = 3
    CONNECTION = 4
    LENGTH = 5
    ENCODING = 6
    TYPE = 7
    UPGRADE = 8
    EXPECT = 9
    TE = 10
    FORWARDED_FOR = 11
    FORWARDED_PROTO = 12
    FORWARDED_HOST = 13
    ORIGIN = 14
    PREFLIGHT = 15
    CREDENTIAL = 16
    SECRET = 17
    DROP = 18


_REQUEST_FIELDS = {
    b"host": Field.HOST,
    b"tensorlake-sandbox-id": Field.SANDBOX_ID,
    b"x-tensorlake-sandbox-id": Field.SANDBOX_ID,
    b"tensorlake-sandbox-port": Field.SANDBOX_PORT,
    b"x-tensorlake-sandbox-port": Field.SANDBOX_PORT,
    b"connection": Field.CONNECTION,
    b"content-length": Field.LENGTH,
    b"transfer-encoding": Field.ENCODING,
    b"content-type": Field.TYPE,
    b"upgrade": Field.UPGRADE,
    b"expect": Field.EXPECT,
    b"te": Field.TE,
    b"x-forwarded-for": Field.FORWARDED_FOR,
    b"x-forwarded-proto": Field.FORWARDED_PROTO,
    b"x-forwarded-host": Field.FORWARDED_HOST,
    b"origin": Field.ORIGIN,
    b"access-control-request-method": Field.PREFLIGHT,
    b"authorization": Field.CREDENTIAL,
    b"x-forwarded-organization-id": Field.CREDENTIAL,
    b"x-forwarded-project-id": Field.CREDENTIAL,
    SECRET_HEADER.lower().encode(): Field.SECRET,
    TOKEN_HEADER.lower().encode(): Field.DROP,
    b"x-tensorlake-route-hint": Field.DROP,
    b"keep-alive": Field.DROP,
    b"proxy-connection": Field.DROP,
    b"proxy-authorization": Field.DROP,
    b"http2-settings": Field.DROP,
}

_HOST_FIELD, _ID_FIELD = Field.HOST, Field.SANDBOX_ID
_NEVER_TRAILERS = frozenset(_REQUEST_FIELDS) | {b"trailer", b"content-encoding", b"content-range", b"cookie"}
_NEVER_NAMED = frozenset({b"host", b"content-length"})

IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"})


class Nobody:
    """For httptools, which splits a head fast but calls back for every field slowly: it only checks."""


NOBODY = Nobody()


class RequestHead:
    """One request's head. ``lines`` are the fields that go on, as ``Name: value`` in their order."""

    # Defaults live in the class: setting them all costs as much as parsing a head.
    credentials: list[bytes] | tuple[()] = ()
    host: bytes | None = None
    hosts = 0
    length: int = 0
    encodings: bytes | None = None
    connection: bytes | None = None
    upgrade: bytes | None = None
    expects_continue = False
    expects_other = False
    te_trailers = False
    grpc = False
    forwarded = 0
    origin: bytes | None = None
    preflight = False
    secret: bytes | None = None
    sandbox_id: bytes | None = None
    id_conflict = False
    sandbox_port: bytes | None = None
    port_conflict = False

    def __init__(self, method: bytes, target: bytes, minor: int) -> None:
        self.method = method
        self.target = target
        self.minor = minor
        self.keep_alive = minor == 1
        self.lines: list[bytes] = []

    @property
    def path(self) -> str:
        """For logs: without the query, which may hold secrets."""
        return self.target.partition(b"?")[0].decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field that was read by somebody else: HTTP/2, or twisted.web."""
        field = _REQUEST_FIELDS.get(name.lower())
        if field is None:
            self.lines.append(name + b": " + value)
        else:
            self.special(field, name, value.strip(b" \t"))

    def special(self, field: int, name: bytes, value: bytes) -> None:
        """A field that means something here, its value without white space around it."""
        if field == _HOST_FIELD:
            self.hosts += 1
            self.host = value
            self.lines.append(b"Host: " + value)
        elif field == _ID_FIELD:
            if self.sandbox_id is not None and self.sandbox_id != value:
                self.id_conflict = True
            self.sandbox_id = value
        else:
            self._special(field, name, value)

    def _special(self, field: int, name: bytes, value: bytes) -> None:
        match field:
            case Field.SANDBOX_PORT:
                if self.sandbox_port is not None and self.sandbox_port != value:
                    self.port_conflict = True
                self.sandbox_port = value
            case Field.CONNECTION:
                value = value.lower()
                self.connection = value if self.connection is None else self.connection + b"," + value
            case Field.LENGTH:
                self.length = int(value)
                self.lines.append(b"Content-Length: " + value)
            case Field.ENCODING:
                value = value.lower()
                self.encodings = value if self.encodings is None else self.encodings + b"," + value
            case Field.UPGRADE:
                self.upgrade = value if self.upgrade is None else self.upgrade + b", " + value
            case Field.EXPECT:
                if value.lower() == b"100-continue":
                    self.expects_continue = True
                else:
                    self.expects_other = True
            case Field.TE:
                self.te_trailers = self.te_trailers or b"trailers" in value.lower()
            case Field.CREDENTIAL:
                self.credentials = [*self.credentials, name + b": " + value]
            case Field.SECRET:
                self.secret = value
            case Field.DROP:
                pass
            case _:
                self._noted(field, value)
                self.lines.append(name + b": " + value)

    def _noted(self, field: int, value: bytes) -> None:
        match field:
            case Field.TYPE:
                kind = value.lower()
                self.grpc = kind.startswith(b"application/grpc") and not kind.startswith(b"application/grpc-web")
            case Field.FORWARDED_FOR:
                self.forwarded |= 1
            case Field.FORWARDED_PROTO:
                self.forwarded |= 2
            case Field.FORWARDED_HOST:
                self.forwarded |= 4
            case Field.ORIGIN:
                self.origin = value
            case Field.PREFLIGHT:
                self.preflight = True

    def check(self) -> None:
        """Everything that is wrong across fields. Raises HeadRefused."""
        target = self.target
        if target[0] != 47 or b"#" in target:
            self._other_target()
        if self.hosts != 1 and (self.hosts or self.minor) and not self._proxy_named_too():
            raise bad_request("A request needs one Host field, and no more")
        if self.host is not None and not _HOST.fullmatch(self.host):
            raise bad_request("The Host field is not a host")
        if self.encodings is not None:
            self.check_encoding()
        if self.expects_other:
            raise HeadRefused(417, "EXPECTATION_FAILED", "100-continue is the only expectation that can be met")
        if self.connection is not None or self.upgrade is not None:
            self._apply_connection()
        if self.minor == 0:
            self.expects_continue = False

    def _proxy_named_too(self) -> bool:
        """Whether this opens a WebSocket and names this proxy before the sandbox, which then is the host.

        The terminals of SDKs from 0.4.41 to 0.5.97 at least do that when the proxy is on their own machine. No server
        in front of this one can have routed by the first name, so the two cannot mean different things to two hops.
        """
        if self.hosts != 2 or self.upgrade is None or self.upgrade.lower() != b"websocket":
            return False
        first = next(line for line in self.lines if line.startswith(b"Host: "))
        if not _THIS_MACHINE.fullmatch(first):
            return False
        self.lines.remove(first)
        self.hosts = 1
        return True

    def _other_target(self) -> None:
        if self.target == b"*" and self.method == b"OPTIONS":
            return
        absolute = _ABSOLUTE.fullmatch(self.target)
        if b"#" in self.target or absolute is None:
            raise bad_request("The request target must be a path")
        authority, rest = absolute.groups()
        if self.host is None or authority.lower() != self.host.lower():
            raise bad_request("The request target and the Host field name different hosts")
        self.target = rest if rest[:1] == b"/" else b"/" + rest

    def check_encoding(self) -> None:
        assert self.encodings is not None
        if self.minor == 0:
            raise bad_request("HTTP/1.0 has no Transfer-Encoding")
        if self.encodings != b"chunked":
            codings = [coding.strip(b" \t") for coding in self.encodings.split(b",")]
            if all(re.fullmatch(rb"[a-z0-9-]+", coding) for coding in codings) and b"chunked" not in codings[:-1]:
                raise HeadRefused(501, "NOT_IMPLEMENTED", "chunked is the only transfer coding that is understood")
            raise bad_request("The Transfer-Encoding field cannot be read")
        if self.length or any(line.startswith(b"Content-Length:") for line in self.lines):
            raise bad_request("Content-Length and Transfer-Encoding exclude each other")
        self.length = CHUNKED

    def _apply_connection(self) -> None:
        tokens = {token.strip(b" \t") for token in (self.connection or b"").split(b",")}
        self.keep_alive = b"close" not in tokens if self.minor else b"keep-alive" in tokens and b"close" not in tokens
        if self.upgrade is not None:
            if b"upgrade" not in tokens or not self.minor or self.upgrade.lower().startswith(b"h2c"):
                self.upgrade = None
            elif self.length:
                raise bad_request("A request that asks for an upgrade cannot have a body")
        tokens -= {b"", b"close", b"keep-alive", b"upgrade", b"te", b"transfer-encoding"}
        if tokens:
            if tokens & _NEVER_NAMED:
                raise bad_request("The Connection field names a field that belongs to the request")
            self.lines = without(self.lines, tokens)
            self.credentials = without([*self.credentials], tokens)


def without(lines: list[bytes], names: set[bytes] | frozenset[bytes]) -> list[bytes]:
    """The lines whose names (lower case) are not among ``names``."""
    return [line for line in lines if line[: line.index(b":")].lower() not in names]


def parse_request(head: bytes) -> RequestHead:
    """``head`` ends with its empty line. Raises HeadRefused."""
    first = _REQUEST_LINE.match(head)
    if first is None:
        raise _bad_request_line(head)
    method, target, minor = first.groups()
    if len(target) > MAX_TARGET:
        raise HeadRefused(414, "URI_TOO_LONG", f"A request target may have {MAX_TARGET} bytes")
    if len(head) > MAX_HEAD or head.count(b"\r\n") > MAX_FIELDS + 2:
        raise too_large()
    if method in (b"CONNECT", b"TRACE"):
        raise HeadRefused(501, "NOT_IMPLEMENTED", f"{method.decode()} is not supported")
    # Its list of methods is closed, and a method means nothing to it beyond CONNECT; ours is checked already.
    feed = head if method in _COMMON else b"POST / HTTP/1.%b\r\n%b" % (minor, head[first.end() :])
    try:
        httptools.HttpRequestParser(NOBODY).feed_data(feed)
    except (httptools.HttpParserUpgrade, httptools.HttpParserError) as error:
        # HttpParserUpgrade says that the head is complete and asks for an upgrade.
        if not isinstance(error, httptools.HttpParserUpgrade):
            raise _unreadable(head, error) from error
    parsed = RequestHead(method, target, 1 if minor == b"1" else 0)
    plain, special = parsed.lines, parsed.special
    for line in head[first.end() : -4].split(b"\r\n"):
        name, _, value = line.partition(b":")
        field = _REQUEST_FIELDS.get(name.lower())
        if field is None:
            if line:
                plain.append(line)
        else:
            special(field, name, value.strip(b" \t"))
    parsed.check()
    return parsed


def _unreadable(head: bytes, error: Exception) -> HeadRefused:
    codings = _ENCODING.findall(head)
    if codings and "Transfer-Encoding" in str(error) and "Content-Length" not in str(error):
        told = RequestHead(b"POST", b"/", 0 if head.startswith(b"HTTP/1.0\r", head.index(b"HTTP/")) else 1)
        told.encodings = b",".join(codings).lower()
        told.check_encoding()
    return bad_request(f"The head cannot be read: {error}")


_COMMON = frozenset({b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH"})


def _bad_request_line(head: bytes) -> HeadRefused:
    line = head[: head.find(b"\r\n") + 2]
    if len(line) > MAX_TARGET:
        return HeadRefused(414, "URI_TOO_LONG", f"A request target may have {MAX_TARGET} bytes")
    versioned = _VERSIONED.fullmatch(line)
    if versioned and versioned.groups() not in ((b"1", b"0"), (b"1", b"1")):
        return HeadRefused(505, "HTTP_VERSION_NOT_SUPPORTED", "HTTP/1.0, HTTP/1.1 and HTTP/2 are supported")
    if versioned and re.match(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+ [\x21-\x7e]+ ", line):
        return HeadRefused(501, "NOT_IMPLEMENTED", "The method is not supported")
    return bad_request("The request line cannot be read")


def too_large() -> HeadRefused:
    return HeadRefused(431, "HEADERS_TOO_LARGE", f"A head may have {MAX_FIELDS} fields and {MAX_HEAD} bytes")


def check_beginning(data: bytes) -> None:
    """Refuse as soon as possible what cannot become a head, so that nothing broken waits for a timeout."""
    if not data[:1].isalpha():
        raise bad_request("This is not HTTP")
    if b"\r\n" not in data[: MAX_TARGET + 64] and len(data) > MAX_TARGET + 64:
        raise HeadRefused(414, "URI_TOO_LONG", f"A request target may have {MAX_TARGET} bytes")
    if len(data) > MAX_HEAD:
        raise too_large()
    if _BARE_LF.search(data):
        raise bad_request("A line ends without a carriage return")


def parse_trailer(line: bytes) -> bytes | None:
    """A trailer line to pass on; None for one that must not be a trailer. Raises ValueError."""
    match = _FIELD.fullmatch(line)
    if match is None:
        raise ValueError("a trailer cannot be read")
    name, value = match.groups()
    return None if name.lower() in _NEVER_TRAILERS else name + b": " + value.rstrip(b" \t")
