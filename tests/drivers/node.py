"""A node reduced to its driver, to be killed: starts what the arguments name, says so, and waits."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from indexify_dataplane.reactor import Pool, install

install()

from twisted.internet import reactor  # noqa: E402
from twisted.internet.defer import Deferred  # noqa: E402

from indexify_dataplane.config_model import ForkExec  # noqa: E402
from indexify_dataplane.core.model import Kind  # noqa: E402
from indexify_dataplane.drivers.base import StartOrder  # noqa: E402
from indexify_dataplane.drivers.fork_exec import ForkExecDriver  # noqa: E402

STANDIN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "standin.py")


class DiesAfterSpawn:
    """The reactor, but the process ends in the very moment in which a child was spawned."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def spawnProcess(self, *arguments: Any, **options: Any) -> Any:
        self._inner.spawnProcess(*arguments, **options)
        print("{}", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


async def main(arguments: list[str]) -> None:
    state_dir, executor, *wanted = arguments
    # The harness' signal to the group is not what this is about: the node itself would shut down in order.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    dies = "--die-after-spawn" in wanted
    pool = Pool(reactor, "driver", 4)
    pool.start()
    driver = ForkExecDriver(
        reactor=DiesAfterSpawn(reactor) if dies else reactor,
        state_dir=state_dir,
        executor_id="executor-1",
        settings=ForkExec(),
        pool=pool,
        fe_binary_path=executor,
        daemon_command=[sys.executable, "-I", "-S", STANDIN],
    )
    await driver.open()
    started = {}
    for name in wanted:
        if not name.startswith("--"):
            container_id, _, kind = name.partition(":")
            order = StartOrder(container_id, "executor-1", Kind(kind or "sandbox"))
            started[container_id] = (await driver.start(order)).id
    print(json.dumps(started), flush=True)


def begin() -> None:
    Deferred.fromCoroutine(main(sys.argv[1:])).addErrback(lambda failure: (failure.printTraceback(), reactor.stop()))


reactor.callWhenRunning(begin)
reactor.run()
