"""The driver contract on every driver that ships."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from tests.engine import require
from tests.guestbundle.sources import real_daemon

from .driver import DriverContract, Place
from .driver_docker import DockerPlace
from .driver_fork_exec import ForkExecPlace
from .driver_places import MemoryPlace, ThreadedPlace


class MemoryDriverContract(DriverContract, TestCase):
    def make_place(self) -> Place:
        return MemoryPlace(reactor)


class ThreadedDriverContract(DriverContract, TestCase):
    """Exits are told by the platform."""

    def make_place(self) -> Place:
        return ThreadedPlace(reactor, tells_exits=True)


class PollingDriverContract(DriverContract, TestCase):
    """Exits are only seen by looking."""

    def make_place(self) -> Place:
        return ThreadedPlace(reactor, tells_exits=False)


class ForkExecDriverContract(DriverContract, TestCase):
    def make_place(self) -> Place:
        return ForkExecPlace(reactor)


class DockerDriverContract(DriverContract, TestCase):
    """On runc."""

    def make_place(self) -> Place:
        return DockerPlace(reactor, require(self), real_daemon())


class GVisorDriverContract(DriverContract, TestCase):
    """On gVisor."""

    def make_place(self) -> Place:
        return DockerPlace(reactor, require(self), real_daemon(), runtime="runsc")
