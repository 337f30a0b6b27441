"""Whether the node's ports can be bound: free, or held by the very node of this configuration."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator

from ..config import Config
from ..ctl import NotReached, ask
from ..store import control_socket, place
from .finding import Finding, failed, ok, warning

ASK_SECS = 5.0


def ports(config: Config) -> Iterator[Finding]:
    running = running_node(config)
    if running:
        yield ok("node", f"is running here as {running}")
    for key, host, port in (
        ("http_proxy.port", config.http_proxy.listen_addr, config.http_proxy.port),
        ("monitoring.port", config.monitoring.listen_addr, config.monitoring.port),
    ):
        yield free(key, host, port, running=bool(running))


def running_node(config: Config) -> str:
    """The executor id of the node that runs with this state directory; empty without one."""
    path = str(control_socket(place(config.state_dir, config.state_file)))
    if not os.path.exists(path):
        return ""
    try:
        status, text = ask(path, "GET", "/state", timeout=ASK_SECS)
        return str(json.loads(text).get("executor_id", "")) if status == 200 else ""
    except (NotReached, ValueError):
        return ""


def free(key: str, host: str, port: int, *, running: bool) -> Finding:
    """Bind it and let it go again."""
    name = f"port {key}"
    if port == 0:
        return ok(name, "a free one is taken at the start")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        where = f"{host}:{port}"
        if error.errno == errno.EADDRINUSE:
            if running:
                return warning(name, f"{where} is in use, probably by the running node", "nothing, if it is that node")
            return failed(
                name,
                f"{where} is in use by another process",
                f"end that process (ss -ltnp 'sport = :{port}'), or change {key}",
            )
        if error.errno == errno.EACCES:
            return failed(
                name, f"{where} needs a privilege", f"use a port above 1023 for {key}, or grant CAP_NET_BIND_SERVICE"
            )
        listen = key.replace(".port", ".listen_addr")
        return failed(name, f"{where}: {error.strerror or error}", f"set {listen} to an address of this host")
    return ok(name, f"{host}:{port} is free")
