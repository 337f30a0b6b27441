"""The daemon's command line and the two variables of its environment, read by hand: argparse is 0.6 MB resident, and
what is imported here, dataclasses included, delays the moment at which the ports are taken."""

from __future__ import annotations

import os

USAGE = """\
usage: indexify-container-daemon [FLAGS] [-- COMMAND ARG...]

Runs as the first process of a sandbox: starts COMMAND, serves gRPC and an HTTP API to control the sandbox.

  --port N                    gRPC port (9500; 0 = any free one)
  --http-port N               HTTP API port (9501; 0 = any free one)
  --address A                 IPv4 address both ports listen on (0.0.0.0)
  --port-file PATH            write {"grpc": N, "http": N, "pid": N} there once both ports are taken
  --log-dir PATH              where output of processes is kept (/var/log/indexify)
  --shutdown-timeout-secs N   time between SIGTERM and SIGKILL for children at shutdown (30, never more than 8)
  --token-file PATH           file with the token that every request must carry
                              (else the variable INDEXIFY_SANDBOX_TOKEN)
  --held                      start nothing and open no HTTP API before POST /api/v1/go on the gRPC port
  --image-user USER[:GROUP]   the user that processes run as unless a request names another
  --remove PATH               a file to remove before anything else; one that is not there is no error
  --help                      this text

INDEXIFY_DAEMON_LOG sets the level of the daemon's own log: debug, info (default), warn, error.
"""

TOKEN_VARIABLE = "INDEXIFY_SANDBOX_TOKEN"


class UsageError(Exception):
    """A command line that cannot be understood; the daemon exits with 2."""


class Options:
    """The command line as values. Sizes and times in bytes and seconds."""

    def __init__(
        self,
        *,
        port: int = 9500,
        http_port: int = 9501,
        address: str = "0.0.0.0",
        port_file: str | None = None,
        log_dir: str = "/var/log/indexify",
        shutdown_timeout: float = 30.0,
        token: bytes | None = None,
        held: bool = False,
        image_user: str | None = None,
        remove: str | None = None,
        entrypoint: tuple[str, ...] = (),
        log_level: str = "info",
        help: bool = False,
    ) -> None:
        self.port = port
        self.http_port = http_port
        self.address = address
        self.port_file = port_file
        self.log_dir = log_dir
        self.shutdown_timeout = shutdown_timeout
        self.token = token
        self.held = held
        self.image_user = image_user
        self.remove = remove
        self.entrypoint = entrypoint
        self.log_level = log_level
        self.help = help


def parse(arguments: list[str], environment: dict[str, str]) -> Options:
    """Options from ``--flag value`` and ``--flag=value``; raises UsageError with a sentence that names the flag."""
    values: dict[str, str] = {}
    held = False
    entrypoint: tuple[str, ...] = ()
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            entrypoint = tuple(rest)
            break
        if argument in ("--help", "-h"):
            return Options(help=True)
        if argument == "--held":
            held = True
            continue
        flag, equals, value = argument.partition("=")
        if flag not in _VALUED:
            raise UsageError(f"unexpected argument {argument!r}")
        if not equals:
            if not rest:
                raise UsageError(f"{flag} needs a value")
            value = rest.pop(0)
        values[flag] = value
    return Options(
        port=_number(values, "--port", 9500, 65535),
        http_port=_number(values, "--http-port", 9501, 65535),
        address=_address(values.get("--address", "0.0.0.0")),
        port_file=values.get("--port-file"),
        log_dir=values.get("--log-dir", "/var/log/indexify"),
        shutdown_timeout=float(_number(values, "--shutdown-timeout-secs", 30, 2**63)),
        token=_token(values.get("--token-file"), environment),
        held=held,
        image_user=values.get("--image-user") or None,
        remove=values.get("--remove"),
        entrypoint=entrypoint,
        log_level=environment.get("INDEXIFY_DAEMON_LOG", "info"),
    )


_VALUED = frozenset(
    {
        "--port",
        "--http-port",
        "--address",
        "--port-file",
        "--log-dir",
        "--shutdown-timeout-secs",
        "--token-file",
        "--image-user",
        "--remove",
    }
)


def _number(values: dict[str, str], flag: str, default: int, largest: int) -> int:
    text = values.get(flag)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= largest):
        raise UsageError(f"{flag} must be a whole number from 0 to {largest}, not {text!r}")
    return int(text)


def _address(text: str) -> str:
    parts = text.split(".")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() and int(part) < 256 for part in parts):
        raise UsageError(f"--address must be an IPv4 address, not {text!r}")
    return text


def _token(path: str | None, environment: dict[str, str]) -> bytes | None:
    if path is None:
        text = environment.get(TOKEN_VARIABLE, "")
        return os.fsencode(text) or None
    try:
        with open(path, "rb") as file:
            token = file.read(4096).strip()
    except OSError as error:
        raise UsageError(f"--token-file {path}: {error.strerror}") from error
    if not token:
        raise UsageError(f"--token-file {path} is empty")
    return token
