"""Limits of a container in the engine's words, clamped to what the engine grants.

What an engine grants can only be found out by asking for it: a resource limit above its own hard limit is refused when
the container starts, a disk size when it is created. So everything is asked for, a refusal is remembered for the life
of the node and told in one warning, and the start is done again without it.
"""

from __future__ import annotations

import math
import re
import resource
import threading
from collections.abc import Mapping
from typing import Any

from twisted.logger import Logger

from ...core.model import Resources
from .connection import EngineFacts

log = Logger()

GIB = 1 << 30
CPU_PERIOD = 20_000
"""Microseconds."""
SMALLEST_QUOTA = 1_000
"""Microseconds; the engine refuses less, which is 50 thousandths of a CPU."""
SHM_BYTES = GIB
ULIMITS: Mapping[str, int] = {"core": 0, "memlock": GIB, "stack": GIB, "msgqueue": GIB, "nofile": 1_000_000}
_NUMBERS = {3: "stack", 4: "core", 7: "nofile", 8: "memlock", 12: "msgqueue"}
_REFUSED = re.compile(r"rlimit type (\d+)|setting rlimit", re.IGNORECASE)
_NO_DISK = re.compile(r"storage-opt|storage.?opt|StorageOpt|pquota", re.IGNORECASE)
_NO_QUOTA = re.compile(r"cpu cfs|CPU cfs|cpu.cfs", re.IGNORECASE)


class Grants:
    """What the engine with one runtime grants, as far as it is known. Used from several threads."""

    def __init__(self, *, facts: EngineFacts, runtime: str | None) -> None:
        self._lock = threading.Lock()
        self._runtime = runtime or facts.default_runtime
        self._ulimits: dict[str, int] = dict(ULIMITS)
        self._disk = True
        self._memory = facts.memory_limit
        self._cpu = facts.cpu_quota
        self._pids = facts.pids_limit
        missing = [
            name
            for name, there in (("memory", self._memory), ("cpu", self._cpu), ("pids", self._pids))
            if not there
        ]  # fmt: skip
        if missing:
            log.warn("the engine cannot limit everything; containers run without these limits", missing=missing)

    def host_config(self, resources: Resources, pids_limit: int) -> dict[str, Any]:
        """The part of ``HostConfig`` that limits. ``pids_limit`` 0 is none."""
        made: dict[str, Any] = {"ShmSize": SHM_BYTES, "Ulimits": self._limits()}
        if resources.memory_bytes and self._memory:
            # The same number for memory and swap together: no swap.
            made["Memory"] = made["MemorySwap"] = resources.memory_bytes
        if resources.cpu_ms_per_sec and self._cpu:
            quota = math.ceil(resources.cpu_ms_per_sec * CPU_PERIOD / 1000)
            made["CpuPeriod"], made["CpuQuota"] = CPU_PERIOD, max(SMALLEST_QUOTA, quota)
        if pids_limit and self._pids:
            made["PidsLimit"] = pids_limit
        if resources.disk_bytes and self._disk:
            made["StorageOpt"] = {"size": str(resources.disk_bytes)}
        return made

    def _limits(self) -> list[dict[str, Any]]:
        return [{"Name": name, "Soft": value, "Hard": value} for name, value in self._ulimits.items()]

    def learn(self, sentence: str, body: Mapping[str, Any]) -> bool:
        """Whether the engine's refusal of ``body`` was for a limit, so that a next try asks for less."""
        asked = body["HostConfig"]
        with self._lock:
            refused = _REFUSED.search(sentence)
            if refused is not None and asked["Ulimits"]:
                return self._clamp(_NUMBERS.get(int(refused[1] or -1)), asked["Ulimits"])
            if "StorageOpt" in asked and _NO_DISK.search(sentence):
                if self._disk:
                    self._disk = False
                    log.warn("the engine cannot limit disk space; containers run without that limit", said=sentence)
                return True
            if "CpuQuota" in asked and _NO_QUOTA.search(sentence):
                if self._cpu:
                    self._cpu = False
                    log.warn("the engine cannot limit CPU time; containers run without that limit", said=sentence)
                return True
        return False

    def _clamp(self, name: str | None, asked: list[dict[str, Any]]) -> bool:
        """All at first to what this process has itself, for an engine mostly has the same; then without it."""
        if asked != self._limits():
            return True  # another start has learnt it meanwhile
        before = dict(self._ulimits)
        for each, wanted in before.items():
            hard = resource.getrlimit(getattr(resource, f"RLIMIT_{each.upper()}", _MSGQUEUE))[1]
            if hard != resource.RLIM_INFINITY:
                self._ulimits[each] = min(wanted, hard)
        if self._ulimits == before:
            if name not in self._ulimits:
                name = next(iter(self._ulimits))
            del self._ulimits[name]
        clamped = {
            each: self._ulimits.get(each, "the engine's own")
            for each, wanted in ULIMITS.items()
            if self._ulimits.get(each) != wanted
        }
        log.warn("the engine grants less than is usual; containers get these limits", runtime=self._runtime, **clamped)
        return True


_MSGQUEUE = 12
"""RLIMIT_MSGQUEUE of Linux, which Python has no name for."""
