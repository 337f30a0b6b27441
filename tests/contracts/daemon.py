"""The contract of the daemon: what every place that runs one must show. Mix it into a TestCase with a ``place``.

Tests share one daemon per class and touch only what they made themselves.
"""

from __future__ import annotations

import uuid
from typing import Any

from .daemon_wire import Api, DaemonRunner, RunningDaemon


class DaemonContract:
    """Sets up the place and the daemon that the tests of a class share."""

    place_type: type[DaemonRunner]
    """How to make the place; called without arguments once per class."""

    place: DaemonRunner
    daemon: RunningDaemon
    api: Api

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()  # type: ignore[misc]
        cls.place = cls.place_type()
        try:
            cls.daemon = cls.place.start()
        except BaseException:
            cls.place.stop_all()
            raise
        cls.api = Api(cls.daemon.http)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.place.stop_all()
        super().tearDownClass()  # type: ignore[misc]

    def fresh(self, name: str = "") -> str:
        """A path that nothing is at."""
        return f"{self.place.scratch}/{name}{uuid.uuid4().hex[:12]}"

    def sh(self, script: str, **options: Any) -> dict[str, Any]:
        return self.api.start("sh", "-c", script, **options)
