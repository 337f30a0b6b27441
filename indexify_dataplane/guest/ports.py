"""The daemon's two listening sockets, taken before anything else happens."""

from __future__ import annotations

import json
import os
import socket

from .command_line import Options

BACKLOG = 512


class Ports:
    """Both sockets. The HTTP one takes its port but refuses connections as long as a held start lasts.

    Raises OSError with a sentence that names the port.
    """

    def __init__(self, options: Options) -> None:
        self.grpc = _take(options.address, options.port, "gRPC", listen=True)
        try:
            self.http = _take(options.address, options.http_port, "HTTP", listen=not options.held)
        except OSError:
            self.grpc.close()
            raise

    @property
    def numbers(self) -> dict[str, int]:
        return {"grpc": self.grpc.getsockname()[1], "http": self.http.getsockname()[1]}

    def write(self, path: str) -> None:
        """``{"grpc": N, "http": N, "pid": N}`` at ``path``, complete or not there."""
        temporary = f"{path}.{os.getpid()}"
        with open(temporary, "w", encoding="ascii") as file:
            json.dump({**self.numbers, "pid": os.getpid()}, file)
        os.rename(temporary, path)

    def close(self) -> None:
        self.grpc.close()
        self.http.close()


def _take(address: str, port: int, purpose: str, *, listen: bool) -> socket.socket:
    # Named as TCP, or the event loop does not switch off Nagle's algorithm: 40 ms per answer in several pieces.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if port:
            # Not for a port the kernel chooses: it could choose one that another held daemon has.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        if listen:
            listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {address}:{port} for {purpose}: {error.strerror}") from error
    listener.setblocking(False)
    return listener
