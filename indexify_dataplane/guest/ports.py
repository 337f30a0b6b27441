"""The daemon's two listening sockets, taken before anything else happens, the import of most modules included: from
then on the kernel lets in whoever knocks, and nobody has to ask again and again whether the daemon is there.

So nothing is imported here that takes time; ``socket`` itself brings ``enum`` and ``collections`` along.
"""

from __future__ import annotations

import os
from _socket import AF_INET, IPPROTO_TCP, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET
from _socket import socket as RawSocket

from .command_line import Options

TYPE_CHECKING = False  # spares the daemon the typing module
if TYPE_CHECKING:
    import socket

BACKLOG = 512


class Ports:
    """Both sockets. The HTTP one takes its port but refuses connections as long as a held start lasts. ``numbers`` are
    the ports, by ``grpc`` and ``http``.

    Raises OSError with a sentence that names the port.
    """

    def __init__(self, options: Options) -> None:
        self.grpc = _take(options.address, options.port, "gRPC", listen=True)
        try:
            self.http = _take(options.address, options.http_port, "HTTP", listen=not options.held)
        except OSError:
            self.grpc.close()
            raise
        self.numbers: dict[str, int] = {"grpc": self.grpc.getsockname()[1], "http": self.http.getsockname()[1]}

    def write(self, path: str) -> None:
        """``{"grpc": N, "http": N, "pid": N}`` at ``path``, complete or not there."""
        temporary = f"{path}.{os.getpid()}"
        with open(temporary, "w", encoding="ascii") as file:
            file.write(f'{{"grpc": {self.numbers["grpc"]}, "http": {self.numbers["http"]}, "pid": {os.getpid()}}}')
        os.rename(temporary, path)

    def close(self) -> None:
        self.grpc.close()
        self.http.close()


def listener(taken: RawSocket) -> socket.socket:
    """The socket as the event loop wants it; ``taken`` is empty afterwards."""
    import socket

    # Named as TCP, or the event loop does not switch off Nagle's algorithm: 40 ms per answer in several pieces.
    return socket.socket(AF_INET, SOCK_STREAM, IPPROTO_TCP, fileno=taken.detach())


def _take(address: str, port: int, purpose: str, *, listen: bool) -> RawSocket:
    taken = RawSocket(AF_INET, SOCK_STREAM, IPPROTO_TCP)
    try:
        if port:
            # Not for a port the kernel chooses: it could choose one that another held daemon has.
            taken.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        taken.bind((address, port))
        if listen:
            taken.listen(BACKLOG)
    except OSError as error:
        taken.close()
        raise OSError(f"cannot listen on {address}:{port} for {purpose}: {error.strerror}") from error
    taken.setblocking(False)
    return taken
