"""The composition root: the API and the entrypoint on ports that are taken already, then an orderly end.

Under a held start the HTTP API refuses connections and the entrypoint waits until the go, which comes over the gRPC
port.
"""

from __future__ import annotations

import _socket
import asyncio
import os
from typing import Any

from . import environment
from .children import Children, Identity
from .command_line import Options
from .daemon_api import DaemonApi
from .descendants import Descendants
from .entrypoint import Entrypoint
from .file_api import FileApi
from .grpc_port import DaemonCalls, GrpcPort
from .http_server import HttpServer
from .logs import Log
from .oom import OomKills, counter_path
from .output_log import OutputStore
from .ports import BACKLOG, Ports, listener
from .process import Surroundings
from .process_api import ProcessApi
from .processes import Processes
from .pty_api import PtyApi
from .ptys import Ptys
from .refusal import Refusal
from .router import Router
from .shutdown import Shutdown
from .terminal import Terminal
from .tunnels import Tunnels
from .users import resolve

VERSION = "0.1.0"
CLOSE_SECONDS = 0.5
DESCRIPTORS = 8192


def run(options: Options, ports: Ports) -> int:
    """Run to the end; the result is the exit code. Raises Refusal for an image user that is not there, OSError for a
    port file that cannot be written."""
    identity = image_identity(options.image_user)
    if options.port_file is not None:
        ports.write(options.port_file)
    name_this_process()
    raise_descriptor_limit()
    with asyncio.Runner() as runner:
        return runner.run(serve(options, ports, identity))


def image_identity(image_user: str | None) -> Identity | None:
    """Whom processes run as by default; None when that is the daemon's own user. Raises Refusal."""
    if image_user is None or os.geteuid() != 0:
        return None
    identity = resolve(image_user)
    return None if identity.uid == 0 and identity.gid == 0 else identity


def name_this_process() -> bool:
    """Show as ``indexify-daemon`` instead of the interpreter; False where that cannot be, and nothing depends on it."""
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as file:
            file.write("indexify-daemon")
    except OSError:
        return False
    return True


def raise_descriptor_limit() -> None:
    """Room for all connections and terminals, where the soft limit has none; children get the same, which is usual."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def serve(options: Options, ports: Ports, identity: Identity | None) -> int:
    """Put the daemon together and run it to its end."""
    loop = asyncio.get_running_loop()
    out, err = Terminal(loop=loop, fd=1), Terminal(loop=loop, fd=2)
    log = Log(write=err.write, level=options.log_level)
    loop.set_exception_handler(lambda _, context: unforeseen(log, context))
    try:
        daemon = Daemon(options=options, ports=ports, identity=identity, loop=loop, out=out, err=err, log=log)
        await daemon.run()
        return 0
    except OSError as error:
        log.error("the daemon cannot go on", error=str(error))
        return 1
    finally:
        out.close()
        err.close()


def unforeseen(log: Log, context: dict[str, Any]) -> None:
    """What the event loop caught because nobody else did."""
    error = context.get("exception")
    if isinstance(error, Exception):
        log.failure(str(context.get("message")), error)
    else:
        log.error(str(context.get("message")), error=error)


class Daemon:
    """All parts and their order of start and end."""

    def __init__(
        self,
        *,
        options: Options,
        ports: Ports,
        identity: Identity | None,
        loop: asyncio.AbstractEventLoop,
        out: Terminal,
        err: Terminal,
        log: Log,
    ) -> None:
        self._loop = loop
        self._log = log
        self._ports = ports
        self._shutdown = Shutdown(loop=loop, timeout=options.shutdown_timeout, log=log)
        self._children = Children(loop=loop, log=log)
        self._store = OutputStore(directory=options.log_dir, log=log)
        self._mark = os.urandom(8).hex()
        surroundings = Surroundings(
            loop=loop,
            children=self._children,
            base_environment=environment.for_children(os.environb),
            oom_kills=OomKills(path=counter_path()),
            mark=self._mark,
        )
        self._processes = Processes(surroundings=surroundings, store=self._store, log=log)
        self._ptys = Ptys(surroundings=surroundings, log=log)
        self._entrypoint = Entrypoint(
            argv=options.entrypoint,
            identity=identity,
            processes=self._processes,
            copies=(out.write, err.write),
            log=log,
        )
        api = DaemonApi(
            processes=self._processes,
            version=VERSION,
            stopping=self._shutdown.asked.is_set,
            go=self._open_once,
            token=options.token is not None,
        )
        parts = (
            api,
            ProcessApi(processes=self._processes, identity=identity),
            FileApi(owner=identity),
            PtyApi(ptys=self._ptys, identity=identity, log=log),
            Tunnels(own_ports=frozenset({9500, 9501, *ports.numbers.values()}), log=log),
        )
        routes = [route for part in parts for route in part.routes()]
        self._http = HttpServer(answer=Router(routes=routes, token=options.token).answer, loop=loop, log=log)
        control = Router(routes=api.control_routes(), token=options.token)
        self._control = HttpServer(answer=control.answer, loop=loop, log=log, most_connections=64)
        self._grpc = GrpcPort(
            calls=DaemonCalls(health=api.health_values, signal=self._entrypoint.send, token=options.token),
            http1=self._control.protocol,
            log=log,
        )
        self._held = options.held
        self._opening: asyncio.Task[None] | None = None
        self._servers: list[asyncio.Server] = []

    async def run(self) -> None:
        """Serve until a signal ends it. Raises OSError when a port cannot be opened after all."""
        self._shutdown.open()
        self._children.open()
        try:
            await self._listen(self._grpc.protocol, self._ports.grpc)
            self._log.info("daemon started", version=VERSION, held=self._held, **self._ports.numbers)
            if not self._held:
                await self._open_once()
            await self._shutdown.asked.wait()
            within_grace = self._shutdown.within_grace
            await asyncio.gather(self._processes.close(within_grace), self._ptys.close(within_grace))
            if os.getpid() != 1:
                # As PID 1 the kernel does it. Elsewhere what left its group would stay behind.
                await Descendants.of_all(self._mark).kill()
        finally:
            for server in self._servers:
                server.close()
            await asyncio.gather(self._http.close(CLOSE_SECONDS), self._control.close(CLOSE_SECONDS))
            self._grpc.close()
            self._ports.close()
            self._children.reap()
            self._children.close()
            self._store.close()
            self._shutdown.close()
        self._log.info("daemon stopped")

    async def _open_once(self) -> None:
        """The go: open the HTTP API and start the entrypoint, once, whoever asks how often."""
        if self._opening is None:
            self._opening = self._loop.create_task(self._open())
        await asyncio.shield(self._opening)

    async def _open(self) -> None:
        if self._shutdown.asked.is_set():
            raise Refusal(503, "The sandbox is shutting down", "SHUTTING_DOWN")
        await self._listen(self._http.protocol, self._ports.http)
        self._entrypoint.start()
        self._log.info("ready")

    async def _listen(self, protocol: object, taken: _socket.socket) -> None:
        at = listener(taken)
        server = await self._loop.create_server(protocol, sock=at, backlog=BACKLOG)  # type: ignore[call-overload]
        self._servers.append(server)
