"""What the twistd plugin knows: installs the reactor, then names ``Options`` and ``makeService``.

The reactor must be there before klein or anything else imports the default one, hence first of all.
"""

from __future__ import annotations

from .reactor import install

install()

import os  # noqa: E402
import sys  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

from twisted.application.twist._options import TwistOptions  # noqa: E402
from twisted.python import usage  # noqa: E402

from .cli import NodeOptions  # noqa: E402
from .config import ConfigError  # noqa: E402

if TYPE_CHECKING:
    from .cli import DevOptions
    from .config import Loaded
    from .service import Root


class Options(NodeOptions, usage.Options):
    """The flags of the console script, for twistd and twist."""

    synopsis = "[options]"

    def __init__(self) -> None:
        super().__init__()
        self.loaded: Loaded | None = None

    def postOptions(self) -> None:
        try:
            self.loaded = self.load(os.environ)
        except ConfigError as error:
            # Not a UsageError: twistd and twist would each tell it in a way and with an exit code of their own.
            for problem in error.problems:
                print(f"Error: {problem}", file=sys.stderr)
            raise SystemExit(1) from error
        parent: Any = getattr(self, "parent", None)
        if parent is None:
            return
        if parent.get("pidfile") == "twistd.pid":
            # A stale file of that name in the working directory must never refuse a start; the store has its own lock.
            parent["pidfile"] = ""
        if isinstance(parent, TwistOptions):
            parent["fileLogObserverFactory"] = self._observer

    def _observer(self, stream: Any) -> Any:
        from .service import pipe_for

        assert self.loaded is not None
        return pipe_for(self.loaded.config)


def makeService(options: Options) -> Root:
    """The service of one node. Nothing is opened, bound or started before its ``startService``."""
    from .service import Root

    assert options.loaded is not None
    return Root(loaded=options.loaded, dev=None, owns_process=False)


def run(loaded: Loaded, dev: DevOptions | None) -> int:
    """Run a node in this process until it is told to stop; returns the exit code."""
    from .service import run

    return run(loaded, dev)
