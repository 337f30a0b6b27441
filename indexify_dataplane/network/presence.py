"""Whether the node that a chain belongs to is there: it holds a name as long as it lives.

The name is that of an abstract unix socket, made from the node's chain. The kernel keeps those names apart by network
namespace, exactly as it does the rules, whatever container or mount namespace a process is in, and takes a name back
in the moment in which its process is gone, however it ended.

Interleaving that matters: a node starts while another one removes what an earlier life of it left. Who removes a dead
node's chains holds that node's name meanwhile (``borrowed``), and a node takes its own name before it looks at the
kernel (``take``, which waits): so either the chains are gone before it looks, or it is alive and nobody touches them.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Iterable, Iterator

from .sockets import made_in
from .tables import FirewallError, Namespace

PREFIX = "indexify-dataplane/"
TAKE_SECONDS = 35.0
"""How long a node waits for its name: longer than an iptables program of another one may run."""
_AGAIN_SECONDS = 0.05


def hold(namespace: Namespace, chain: str) -> socket.socket | None:
    """Take the name of a node at once; it is held until the socket is closed. None: somebody else has it. Raises
    FirewallError where no name can be taken at all."""
    return made_in(namespace, lambda: _bound(chain))


def take(namespace: Namespace, chain: str, executor_id: str, seconds: float = TAKE_SECONDS) -> socket.socket:
    """Take the own name, and wait for one who has borrowed it. Raises FirewallError."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        held = hold(namespace, chain)
        if held is not None:
            return held
        if time.monotonic() > deadline:
            raise FirewallError(
                f"another process keeps the chain {chain} of executor {executor_id} in this network namespace: only one"
                " node of an executor id can run on a host; stop the other one, or give one of them another executor_id"
            )
        pause.wait(_AGAIN_SECONDS)


@contextlib.contextmanager
def borrowed(namespace: Namespace, chains: Iterable[str]) -> Iterator[set[str]]:
    """Context that gives those of ``chains`` whose node is not there, and keeps these nodes from starting meanwhile.
    Raises FirewallError."""
    with contextlib.ExitStack() as stack:
        dead: set[str] = set()
        for chain in chains:
            held = hold(namespace, chain)
            if held is not None:
                stack.enter_context(held)
                dead.add(chain)
        yield dead


def present(namespace: Namespace, chains: Iterable[str]) -> set[str]:
    """Those of ``chains`` whose node is there, without touching their names."""
    listed = namespace.read("/proc/self/net/unix") or ""
    names = {line.rpartition(" ")[2] for line in listed.splitlines()}
    return {chain for chain in chains if f"@{PREFIX}{chain}" in names}


def _bound(chain: str) -> socket.socket | None:
    made: socket.socket | None = None
    try:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        made.bind(f"\0{PREFIX}{chain}".encode())
    except OSError as error:
        if made is not None:
            made.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise FirewallError(
            f"the name of the node's chain {chain} cannot be held, so other nodes could take it away: {error.strerror}"
        ) from error
    return made
