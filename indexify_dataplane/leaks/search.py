"""Looks for leaks in all places that a configuration uses, and sweeps those that nothing else sweeps.

Interleaving that matters: containers come and go while the host is searched. What has a record before or after the
search is no leak, so neither a container that began meanwhile is one, nor one that was being removed.

Orphaned containers and run directories are ended by recovery, chains by the firewall and restored images by the
snapshots when a node starts; what is left to sweep are things that exist for moments, if the node was killed in them.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..config import Config, DockerDriver
from ..drivers.base import DriverError
from ..reactor import Calls
from . import files
from .found import Found, Listing, sort

log = Logger()

SWEPT = ("container", "image", "volume", "cgroup")


class Search(Service):
    """``mine`` gives this node's executor ids, ``recorded`` the ids of its containers that are not over; both are asked
    in the reactor's thread. ``calls`` is a pool of its own, which ends with the service: an engine that hangs delays
    only this."""

    name = "leaks"

    def __init__(
        self,
        *,
        config: Config,
        calls: Calls,
        mine: Callable[[], Collection[str]],
        recorded: Callable[[], Collection[str]],
    ) -> None:
        self._config = config
        self._calls = calls
        self._mine = mine
        self._recorded = recorded
        self._sweeping: Deferred[Listing] | None = None

    def startService(self) -> None:
        """Begin to sweep; the node does not wait for it."""
        super().startService()  # type: ignore[no-untyped-call]
        self._calls.start()
        self._sweeping = Deferred.fromCoroutine(self.sweep())
        self._sweeping.addErrback(self._not_swept)

    def stopService(self) -> None:
        super().stopService()  # type: ignore[no-untyped-call]
        if self._sweeping is not None:
            self._sweeping.cancel()
        # Joining blocks, and a call in a hung engine would keep the process.
        threading.Thread(target=self._calls.stop, name="leaks stop", daemon=True).start()

    @staticmethod
    def _not_swept(failure: Failure) -> None:
        if not failure.check(CancelledError):
            log.failure("what was left over cannot be swept", failure)

    async def look(self) -> Listing:
        """What is there now."""
        mine, before = tuple(self._mine()), set(self._recorded())
        found, problems = await self._calls.run(self._search, mine, before)
        return sort(found, problems, mine=mine, recorded=before | set(self._recorded()))

    async def sweep(self) -> Listing:
        """Remove leaks that are nobody's; what was there before. Each removal is logged once."""
        listing = await self.look()
        nobodys = [
            each for each in listing.leaks if each.executor_id is None and each.kind in SWEPT and not each.by_name
        ]
        if nobodys:
            await self._calls.run(self._remove, nobodys)
        return listing

    def _search(self, mine: Collection[str], recorded: Collection[str]) -> tuple[list[Found], list[str]]:
        found, problems = files.things(self._config.state_dir)
        for address in self._engines():
            try:
                with _client(address) as (client, place):
                    from . import engine

                    found += engine.things(client, place, bundle=self._bundle())
            except DriverError as error:
                problems.append(str(error))
        if self._engines():
            from . import chains

            more, wrong = chains.things(mine, recorded)
            found, problems = found + more, problems + wrong
        return found, problems

    def _remove(self, leaks: Collection[Found]) -> None:
        for leak in leaks:
            if leak.kind == files.CGROUP:
                self._told(leak, files.remove_cgroup(leak))
        others = [each for each in leaks if each.kind != files.CGROUP]
        for address in self._engines() if others else ():
            from . import engine

            with _client(address) as (client, place):
                for leak in others:
                    if leak.place == place:
                        self._told(leak, engine.remove(client, leak))

    @staticmethod
    def _told(leak: Found, problem: str | None) -> None:
        if problem is None:
            log.info("left over by an earlier life, removed", kind=leak.kind, name=leak.name)
        else:
            log.warn("left over by an earlier life, cannot be removed", kind=leak.kind, name=leak.name, error=problem)

    def _engines(self) -> list[str | None]:
        sections = (self._config.sandbox_driver, self._config.function_driver)
        return list(dict.fromkeys(each.address for each in sections if isinstance(each, DockerDriver)))

    def _bundle(self) -> str | None:
        from .. import guestbundle

        try:
            there = guestbundle.locate(Path(self._config.state_dir).absolute())
        except guestbundle.BundleError as error:
            log.debug("the guest bundle cannot be looked at", error=str(error))
            return None
        return there.digest if there is not None else None


@contextlib.contextmanager
def _client(address: str | None) -> Any:
    """A connection of its own, and the engine's address in words."""
    from ..drivers.docker import connection

    client = connection.connect(address)
    with contextlib.closing(client):
        yield client, connection.shown(address)
