"""Which process listens on which TCP port, by the inodes of sockets. Blocking.

``/proc/net/tcp`` names the inode of every socket, ``/proc/PID/fd`` the inodes that a process holds.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable

from attrs import frozen

_LISTEN = "0A"


@frozen
class Listener:
    """A listening socket; ``address`` is an IP address without scope."""

    inode: int
    address: str
    port: int

    @property
    def reachable_at(self) -> str:
        """Where this host connects to it."""
        address = ipaddress.ip_address(self.address)
        if address.is_unspecified:
            # An unspecified IPv6 socket takes IPv4 as well unless told not to, which nobody can see from outside;
            # its own family always works.
            return "127.0.0.1" if address.version == 4 else "::1"
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return self.address


def read_table(text: str) -> list[Listener]:
    """The listening sockets in the text of ``/proc/net/tcp`` or ``tcp6``; lines it does not understand are no
    sockets of ours."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] != _LISTEN:
            continue
        address, _, port = fields[1].partition(":")
        try:
            listener = Listener(int(fields[9]), _address(address), int(port, 16))
        except ValueError:
            continue
        if listener.port and listener.inode:
            found.append(listener)
    return found


def _address(text: str) -> str:
    """Hexadecimal words of 32 bits in the host's byte order."""
    if len(text) not in (8, 32):
        raise ValueError(text)
    words = [int(text[at : at + 8], 16).to_bytes(4, "little") for at in range(0, len(text), 8)]
    return str(ipaddress.ip_address(b"".join(words)))


def listeners() -> list[Listener]:
    """All listening TCP sockets of this network namespace, IPv4 first."""
    found: list[Listener] = []
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}", encoding="ascii", errors="replace") as file:
                found += read_table(file.read())
        except FileNotFoundError:
            continue  # a kernel without IPv6
    return found


def socket_inodes(pids: Iterable[int]) -> set[int]:
    """Inodes of the sockets these processes hold; processes that are gone hold none."""
    inodes = set()
    for pid in pids:
        directory = f"/proc/{pid}/fd"
        try:
            names = os.listdir(directory)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        for name in names:
            try:
                link = os.readlink(f"{directory}/{name}")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if link.startswith("socket:["):
                inodes.add(int(link[8:-1]))
    return inodes


def executor_port(pid: int) -> int | None:
    """The port on the IPv4 loopback that this process listens on; of several the one it opened first."""
    inodes = socket_inodes([pid])
    if not inodes:
        return None
    own = [found for found in listeners() if found.inode in inodes and found.reachable_at == "127.0.0.1"]
    return min(own, key=lambda found: found.inode).port if own else None


def find_listener(pids: Iterable[int], port: int) -> Listener | None:
    """The socket on ``port`` that one of these processes listens on; IPv4 is preferred."""
    candidates = [found for found in listeners() if found.port == port]
    if not candidates:
        return None
    inodes = socket_inodes(pids)
    return next((found for found in candidates if found.inode in inodes), None)
