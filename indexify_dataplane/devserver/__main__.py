"""``python -m indexify_dataplane.devserver``: the development control plane as a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from shutil import rmtree
from typing import Any

from indexify_dataplane.cli import per_slot


def options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m indexify_dataplane.devserver",
        description="A control plane for development. Its state is in memory and gone when it stops.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--grpc-port", type=int, default=8901, help="for executors; 0 takes a free one")
    parser.add_argument("--rest-port", "--http-port", type=int, default=8900, help="for clients; 0 takes a free one")
    parser.add_argument("--sandbox-proxy-port", type=int, default=9443, help="for SDKs; 0 takes a free one, -1 none")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="host name REST answers to")
    parser.add_argument("--blob-dir", type=Path, help="directory for blobs (default: a temporary one)")
    parser.add_argument("--snapshot-base", help="URI below which snapshots are stored (default: the blob directory)")
    parser.add_argument("--long-poll-secs", type=float, default=300.0, help="how long polls are held (default: 300)")
    parser.add_argument("--idle-container-secs", type=float, default=60.0, help="life of an idle function container")
    parser.add_argument("--queue-size", type=per_slot, default=1, metavar="N", help="runs handed out per slot (1)")
    parser.add_argument("--port-file", type=Path, help="write the bound ports here, as JSON, when all are listening")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGINT or SIGTERM. Exit code 1 when a port cannot be had."""
    chosen = options(sys.argv[1:] if arguments is None else arguments)
    from indexify_dataplane.reactor import install

    install()
    from twisted.internet.defer import Deferred
    from twisted.internet.task import react

    from indexify_dataplane import logs

    pipe = logs.start("local", os.environ, sys.stderr)
    try:
        react(lambda reactor: Deferred.fromCoroutine(serve(reactor, chosen)))
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return int(end.code or 0)
    finally:
        pipe.stop()
    return 0


async def serve(reactor: Any, chosen: argparse.Namespace) -> None:
    from twisted.internet.defer import Deferred, maybeDeferred

    from .service import DevServer

    made = None if chosen.blob_dir else tempfile.mkdtemp(prefix="indexify-dev-")
    blob_dir: str | Path = chosen.blob_dir or str(made)
    server = DevServer(
        reactor,
        host=chosen.host,
        grpc_port=chosen.grpc_port,
        rest_port=chosen.rest_port,
        sandbox_proxy_port=None if chosen.sandbox_proxy_port < 0 else chosen.sandbox_proxy_port,
        allowed_hosts=tuple(chosen.allow_host),
        blob_dir=blob_dir,
        snapshot_base=chosen.snapshot_base,
        long_poll_secs=chosen.long_poll_secs,
        idle_container_secs=chosen.idle_container_secs,
        queue_size=chosen.queue_size,
    )
    stopping: Deferred[None] = Deferred()
    finished: Deferred[None] = Deferred()

    def shut_down() -> Deferred[None]:
        """The reactor waits until everything is closed."""
        if not stopping.called:
            stopping.callback(None)
        return finished

    reactor.addSystemEventTrigger("before", "shutdown", shut_down)
    server.startService()
    try:
        ports = await server.listening()
        told = json.dumps(ports)
        if chosen.port_file is not None:
            unfinished = chosen.port_file.with_name(f".{chosen.port_file.name}.part")
            unfinished.write_text(told)
            unfinished.rename(chosen.port_file)
        print(told, flush=True)
        await stopping
    except OSError as error:
        raise SystemExit(f"indexify-dataplane devserver: {error}") from error
    finally:
        await maybeDeferred(server.stopService)
        if made is not None:
            rmtree(made)
        finished.callback(None)


if __name__ == "__main__":
    sys.exit(main())
