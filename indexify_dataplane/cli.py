"""The console script ``indexify-dataplane``. Without a command it runs the node, in this very process: whoever started
it may signal its pid, and function executors are its direct children.

Nothing heavy is imported before it is known what is wanted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__

if TYPE_CHECKING:
    from .config import Loaded

FAILED = 1
_OMIT: Any = argparse.SUPPRESS


class DevOptions:
    """What ``dev`` adds to a node: the ports of the embedded control plane, all on 127.0.0.1, and the most runs that it
    hands out per slot. Port 0 takes a free one; ``server_addr`` of the configuration is then not yet the control
    plane's address."""

    def __init__(self, *, grpc_port: int, http_port: int, sandbox_proxy_port: int, queue_size: int) -> None:
        self.grpc_port = grpc_port
        self.http_port = http_port
        self.sandbox_proxy_port = sandbox_proxy_port
        self.queue_size = queue_size


class NodeOptions:
    """The node's flags for a ``twisted.python.usage.Options`` subclass that has this as its first base."""

    def __init__(self) -> None:
        self.config_path: str | None = None
        self.functions: list[str] = []
        super().__init__()

    def opt_config(self, path: str) -> None:
        """Load this YAML file; without one all defaults hold."""
        if self.config_path is not None:
            from twisted.python.usage import UsageError

            raise UsageError("--config may be given once")
        self.config_path = path

    def opt_function(self, uri: str) -> None:
        """Run only this function, namespace:application:function[:version]; repeatable, replaces the allowlist."""
        self.functions.append(uri)

    def opt_version(self) -> NoReturn:
        """Print the version and exit."""
        print(f"indexify-dataplane {__version__}")
        sys.exit(0)

    opt_c = opt_config
    opt_f = opt_function
    opt_V = opt_version

    def load(self, environ: Mapping[str, str]) -> Loaded:
        """The configuration these flags ask for; ConfigError when it cannot be used."""
        from .config import load

        return load(self.config_path, environ, self.functions)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Usage errors exit with 2 from here."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.config is not None and hasattr(arguments, "config_after"):
        parser.error("--config may be given once")
    try:
        code = _COMMANDS[arguments.command or "run"](arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter must not fail again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _run(arguments: argparse.Namespace) -> int:
    loaded = _load(arguments)
    if loaded is None:
        return FAILED
    from .tap import run

    return int(run(loaded, dev=None))


def _dev(arguments: argparse.Namespace) -> int:
    flags = {"server_addr": f"http://127.0.0.1:{arguments.grpc_port or 8901}"}
    if arguments.data_dir is not None:
        flags["state_dir"] = arguments.data_dir
        flags["function_executor.code_cache_path"] = os.path.join(arguments.data_dir, "code-cache")
    loopback = {"http_proxy.listen_addr": "127.0.0.1", "monitoring.listen_addr": "127.0.0.1"}
    loaded = _load(arguments, defaults=loopback, flags=flags)
    if loaded is None:
        return FAILED
    from .tap import run

    options = DevOptions(
        grpc_port=arguments.grpc_port,
        http_port=arguments.http_port,
        sandbox_proxy_port=arguments.sandbox_proxy_port,
        queue_size=arguments.queue_size,
    )
    return int(run(loaded, dev=options))


def _config(arguments: argparse.Namespace) -> int:
    if arguments.what == "schema":
        import json

        from .config_schema import schema

        print(json.dumps(schema(), indent=2, ensure_ascii=False))
        return 0
    loaded = _load(arguments)
    if loaded is None:
        return FAILED
    for warning in loaded.warnings:
        print(f"Warning: {warning}", file=sys.stderr)
    if arguments.what == "show":
        from .config_show import show

        sys.stdout.write(show(loaded))
    else:
        print(f"{_path(arguments) or 'the built-in defaults'}: valid")
    return 0


def _ctl(arguments: argparse.Namespace) -> int:
    from .ctl import NotReached, ask

    socket_path: str | None = getattr(arguments, "socket", None)
    if socket_path is None:
        loaded = _load(arguments)
        if loaded is None:
            return FAILED
        socket_path = os.path.join(loaded.config.state_dir, "ctl.sock")
    method, path = {"drain": ("POST", "/drain"), "state": ("GET", "/state"), "leaks": ("GET", "/leaks")}[arguments.what]
    try:
        status, text = ask(socket_path, method, path, timeout=arguments.timeout)
    except NotReached as error:
        print(f"Error: {error}", file=sys.stderr)
        return FAILED
    good = 200 <= status < 300
    if good and arguments.what == "leaks":
        from .ctl import leaks_as_table, no_leaks

        sys.stdout.write(text if arguments.json else leaks_as_table(text))
        return 0 if no_leaks(text) else FAILED
    print(
        text.rstrip("\n") if good else f"Error: the node answered {status}: {text.strip()}",
        file=None if good else sys.stderr,
    )
    return 0 if good else FAILED


def _doctor(arguments: argparse.Namespace) -> int:
    loaded = _load(arguments)
    if loaded is None:
        return FAILED
    from .doctor import as_json, as_table, examine, sound

    findings = list(examine(loaded.config, timeout=arguments.timeout))
    sys.stdout.write(as_json(findings) if arguments.json else as_table(findings))
    return 0 if sound(findings) else FAILED


_COMMANDS = {"run": _run, "dev": _dev, "config": _config, "ctl": _ctl, "doctor": _doctor}


def _load(
    arguments: argparse.Namespace, *, defaults: Mapping[str, str] | None = None, flags: Mapping[str, str] | None = None
) -> Loaded | None:
    """The configuration, or None after everything that is wrong with it has been told."""
    from .config import ConfigError, load

    functions = [*arguments.function, *getattr(arguments, "function_after", [])]
    try:
        return load(_path(arguments), os.environ, functions, defaults=defaults or {}, flags=flags or {})
    except ConfigError as error:
        for problem in error.problems:
            print(f"Error: {problem}", file=sys.stderr)
        return None


def _path(arguments: argparse.Namespace) -> str | None:
    found: str | None = getattr(arguments, "config_after", None) or arguments.config
    return found


class _Once(argparse.Action):
    """A flag that may be given once."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        if getattr(namespace, self.dest, None) is not None:
            parser.error(f"{option} may be given once")
        try:
            values.encode()
        except UnicodeEncodeError:
            parser.error(f"{option}: the path is not valid UTF-8")
        setattr(namespace, self.dest, values)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port (0..65535)")
    return int(text)


MOST_PER_SLOT = 100


def per_slot(text: str) -> int:
    """How many runs a container is handed per slot, as the value of a flag."""
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= MOST_PER_SLOT:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to {MOST_PER_SLOT}")
    return int(text)


def _secs(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def _flags(parser: argparse.ArgumentParser, *, after: bool) -> None:
    """``after`` a command the flags have names of their own, as argparse would else forget those before it."""
    suffix = "_after" if after else ""
    parser.add_argument(
        "-c", "--config", metavar="FILE", action=_Once, dest=f"config{suffix}", default=_OMIT if after else None,
        help="load this YAML file; without one all defaults hold",
    )  # fmt: skip
    parser.add_argument(
        "-f", "--function", metavar="URI", action="append", dest=f"function{suffix}", default=_OMIT if after else [],
        help="run only this function, namespace:application:function[:version]; repeatable, replaces the allowlist",
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="indexify-dataplane",
        description="Runs sandboxes and function executors on one worker node. Without a command the node is run.",
        allow_abbrev=False,
    )
    _flags(parser, after=False)
    parser.add_argument("-V", "--version", action="version", version=f"indexify-dataplane {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    run = commands.add_parser("run", help="run the node (the default)", allow_abbrev=False)
    dev = commands.add_parser("dev", help="run the node with an embedded control plane", allow_abbrev=False)
    dev.add_argument("--data-dir", metavar="DIR", help="keep everything below this directory")
    for name, port, text in (
        ("grpc", 8901, "the node's server address"),
        ("http", 8900, "REST"),
        ("sandbox-proxy", 9443, "the proxy for host names of sandboxes"),
    ):
        dev.add_argument(
            f"--{name}-port", *(["--rest-port"] if name == "http" else []), metavar="PORT", type=_port, default=port,
            help=f"{text} (default {port}, 0: a free one)",
        )  # fmt: skip
    dev.add_argument(
        "--queue-size", metavar="N", type=per_slot, default=1,
        help="hand a function's container up to N runs per slot, so that the next is at hand (default 1)",
    )  # fmt: skip

    config = commands.add_parser("config", help="look at a configuration", allow_abbrev=False)
    whats = config.add_subparsers(dest="what", metavar="WHAT", required=True)
    check = whats.add_parser("check", help="say what is wrong with it", allow_abbrev=False)
    show = whats.add_parser("show", help="print it resolved, with the source of every value", allow_abbrev=False)
    whats.add_parser("schema", help="print a JSON Schema for editors", allow_abbrev=False)

    doctor = commands.add_parser(
        "doctor", help="check what the configuration needs on this host; 1 if something fails", allow_abbrev=False
    )
    doctor.add_argument("--json", action="store_true", help="for programs")
    doctor.add_argument(
        "--timeout", metavar="SECS", type=_secs, default=5.0, help="wait so long for each answer (default 5)"
    )

    ctl = commands.add_parser("ctl", help="talk to the node that runs here", allow_abbrev=False)
    asks = ctl.add_subparsers(dest="what", metavar="WHAT", required=True)
    drain = asks.add_parser("drain", help="take no new work, finish, tell the server, and stop", allow_abbrev=False)
    state = asks.add_parser("state", help="print what the node runs, as JSON", allow_abbrev=False)
    leaks = asks.add_parser(
        "leaks", help="list what is on this host but in no record; 1 if there is anything", allow_abbrev=False
    )
    leaks.add_argument("--json", action="store_true", help="for programs")
    for each in (drain, state, leaks):
        each.add_argument("--socket", metavar="PATH", default=_OMIT, help="default: ctl.sock in state_dir")
        each.add_argument("--timeout", metavar="SECS", type=_secs, default=60.0, help="wait so long (default 60)")
    for each in (run, dev, check, show, drain, state, leaks, doctor):
        _flags(each, after=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
