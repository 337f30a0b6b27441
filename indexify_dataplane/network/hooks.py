"""Whether packets come to a node's chain before anything else, asked of nftables itself.

``iptables`` can tell only whether a rule is there, not whether it is the first. To take it out and put it in first is
an answer too, but what deletes rules waits until no processor uses them any more: 14 ms of each start. The kernel's own
list of one chain takes microseconds. Its messages are those of ``linux/netfilter/nf_tables.h``.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping

from twisted.logger import Logger

from .chains import PREFIX
from .policy import Family
from .sockets import made_in
from .tables import FirewallError, Namespace

_NETFILTER = 12
_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_GET_RULE, _NEW_RULE = 0x0A07, 0x0A06
_REQUEST_DUMP = 0x0301
_INTERRUPTED = 0x0010
_ERROR, _DONE, _OVERRUN = 2, 3, 4
_TABLE, _CHAIN, _EXPRESSIONS = 1, 2, 4
_NAME, _DATA = 1, 2
_VERDICT_DATA, _VERDICT, _VERDICT_CODE, _VERDICT_CHAIN = 2, 2, 1, 2
_JUMP = -3
_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_TRIES = 20
ANSWER_SECS = 2.0

log = Logger()


def hooks(namespace: Namespace, node: str) -> Hooks | None:
    """None, which the log tells, where this process may not ask, although the iptables programs may."""
    made = None
    try:
        made = Hooks(namespace)
        made.lead({Family.IPV4: ("INPUT",)}, node)
        return made
    except FirewallError as error:
        if made is not None:
            made.close()
        log.warn("whether the node's chains are asked first is found out by putting them first", error=str(error))
        return None


class Hooks:
    """Asks in one network namespace. Blocking; not for several threads at once. Raises FirewallError, as do all
    methods but ``close``."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._socket: socket.socket | None = made_in(namespace, _connected)
        self._sequence = 0

    def close(self) -> None:
        """Idempotent; a later question opens it again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def lead(self, places: Mapping[Family, tuple[str, ...]], node: str) -> bool:
        """Whether each of the ``places`` leads to the chain ``node`` first, and FORWARD to DOCKER-USER if that is one
        of them."""
        return all(
            self._leads(family, chain, node) and (chain != "DOCKER-USER" or self._leads(family, "FORWARD", chain))
            for family, chains in places.items()
            for chain in chains
        )

    def _leads(self, family: Family, chain: str, target: str) -> bool:
        for _ in range(_TRIES):
            found = self._rules(family, chain)
            if found is not None:
                break
        else:
            raise FirewallError(f"the rules of {chain} cannot be read: others change them all the time")
        for jump, always in map(_jump, found):
            if jump == target and always:
                return True
            if not jump.startswith(PREFIX):
                return False
        return False

    def _rules(self, family: Family, chain: str) -> list[bytes] | None:
        """The attributes of each rule of the chain; none for a chain that is not there. None if the rules were changed
        meanwhile."""
        self._sequence += 1
        body = _GENERIC.pack(_FAMILIES[family], 0, 0) + _text(_TABLE, "filter") + _text(_CHAIN, chain)
        size = _HEADER.size + len(body)
        found: list[bytes] = []
        interrupted = False
        if self._socket is None:
            self._socket = made_in(self._namespace, _connected)
        try:
            self._socket.send(_HEADER.pack(size, _GET_RULE, _REQUEST_DUMP, self._sequence, 0) + body)
            while True:
                for kind, flags, sequence, payload in _messages(self._socket.recv(1 << 17)):
                    if sequence != self._sequence:
                        continue  # of a question that was given up
                    interrupted = interrupted or bool(flags & _INTERRUPTED)
                    if kind == _OVERRUN:
                        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
                    if kind in (_ERROR, _DONE):
                        code = -struct.unpack_from("=i", payload)[0] if len(payload) >= 4 else 0
                        if code not in (0, errno.ENOENT):
                            raise OSError(code, os.strerror(code))
                        return None if interrupted else found
                    if kind == _NEW_RULE:
                        found.append(payload[_GENERIC.size :])
        except OSError as error:
            self.close()  # the kernel may go on telling the rest, and refuse other questions until it is through
            raise FirewallError(f"the rules of {chain} cannot be read from the kernel: {error}") from error


def _connected() -> socket.socket:
    try:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER)
        made.settimeout(ANSWER_SECS)
        return made
    except OSError as error:
        raise FirewallError(f"nftables cannot be asked for its rules: {error}") from error


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
        yield kind, flags, sequence, data[at + _HEADER.size : at + size]
        at += (size + 3) & ~3 if size else len(data)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        yield kind & 0x3FFF, data[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3 if size else len(data)


def _text(kind: int, text: str) -> bytes:
    data = text.encode() + b"\0"
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(data), kind) + data + bytes(-len(data) % 4)


def _jump(rule: bytes) -> tuple[str, bool]:
    """Where a rule jumps, "" if it does not, and whether it does so always."""
    target, always = "", True
    for _, one in _attributes(dict(_attributes(rule)).get(_EXPRESSIONS, b"")):
        parts = dict(_attributes(one))
        name = parts.get(_NAME, b"").rstrip(b"\0")
        if name == b"immediate":
            verdict = dict(_attributes(dict(_attributes(parts.get(_DATA, b""))).get(_VERDICT_DATA, b"")))
            code = dict(_attributes(verdict.get(_VERDICT, b"")))
            if struct.unpack("!i", code.get(_VERDICT_CODE, bytes(4)))[0] == _JUMP:
                target = code.get(_VERDICT_CHAIN, b"").rstrip(b"\0").decode(errors="replace")
        elif name != b"counter":
            always = False
    return target, always
