"""NVIDIA GPUs, as ``nvidia-smi`` lists them.

The server refuses a node that reports an unknown model or no device of one, and it knows one model per node. So what
it does not know is left out, and of several models the one with the most devices is reported.
"""

from __future__ import annotations

import enum
import re
import shutil
from collections.abc import Iterable
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

log = Logger()

ARGUMENTS = ("--query-gpu=index,name,uuid,memory.total", "--format=csv,noheader,nounits")


class GpuModel(enum.IntEnum):
    """``GPUModel`` of the wire, without its UNKNOWN."""

    A100_40GB = 1
    A100_80GB = 2
    H100_80GB = 3
    TESLA_T4 = 4
    A6000 = 5
    A10 = 6


@frozen
class Gpu:
    """One device. ``memory_mib`` is None where the tool did not tell."""

    name: str
    uuid: str
    memory_mib: int | None = None


@frozen
class GpuGroup:
    """Devices of one model, in the order of the tool."""

    model: GpuModel
    uuids: tuple[str, ...]


def parse(output: str) -> tuple[Gpu, ...]:
    """The tool's CSV: index, name, uuid and, if it has it, memory in MiB. Lines that are none are skipped; a device
    that is listed twice counts once."""
    found: dict[str, Gpu] = {}
    for line in output.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) < 3 or not fields[1] or not fields[2]:
            continue
        memory = re.match(r"([0-9]+)(\s*MiB)?$", fields[3], re.ASCII) if len(fields) > 3 else None
        found.setdefault(fields[2], Gpu(fields[1], fields[2], int(memory[1]) if memory else None))
    return tuple(found.values())


def model(gpu: Gpu) -> GpuModel | None:
    """The wire's name for this product, by whole words of its name; None if the wire has none.

    The size comes from the name where it is part of it (``A100-SXM4-80GB``), else from the memory (``H100 PCIe``).
    """
    words = set(re.split(r"[^A-Z0-9]+", gpu.name.upper()))
    if "A100" in words:
        return {40: GpuModel.A100_40GB, 80: GpuModel.A100_80GB}.get(_size(words, gpu.memory_mib))
    if "H100" in words:
        return GpuModel.H100_80GB if _size(words, gpu.memory_mib) == 80 else None
    for word, found in (("T4", GpuModel.TESLA_T4), ("A6000", GpuModel.A6000), ("A10", GpuModel.A10)):
        if word in words:
            return found
    # Amazon's variant of the A10; jobs that ask for an A10 run on it.
    return GpuModel.A10 if "A10G" in words else None


def _size(words: set[str], memory_mib: int | None) -> int:
    """Gigabytes by name, else the nominal size whose memory is that of the device; 0 when neither tells."""
    for word in words:
        named = re.fullmatch(r"([0-9]+)GB", word)
        if named:
            return int(named[1])
    for nominal in (40, 80):
        # The tool shows 40,960 (40,536 with ECC) for 40 GB, 81,920 (81,251, 81,559) for 80 GB; an H100 NVL 95,830.
        if memory_mib is not None and 0.97 <= memory_mib / (nominal * 1024) <= 1.0:
            return nominal
    return 0


def group(gpus: Iterable[Gpu]) -> GpuGroup | None:
    """The devices to report: the model with the most of them, the first listed among equals. Warns once about every
    kind that is left out."""
    groups: dict[GpuModel, list[str]] = {}
    unknown: dict[str, int] = {}
    for gpu in gpus:
        known = model(gpu)
        if known is None:
            unknown[gpu.name] = unknown.get(gpu.name, 0) + 1
        else:
            groups.setdefault(known, []).append(gpu.uuid)
    if unknown:
        log.warn("GPUs of a model the server does not know are not offered", gpus=unknown)
    if not groups:
        return None
    chosen = max(groups, key=lambda known: len(groups[known]))
    if len(groups) > 1:
        log.warn(
            "GPUs of several models, only one can be offered",
            offered=chosen.name,
            left_out={known.name: len(uuids) for known, uuids in groups.items() if known is not chosen},
        )
    return GpuGroup(chosen, tuple(groups[chosen]))


class _Listing(ProcessProtocol):
    """Collects what the tool prints until it has ended; killed when its Deferred is cancelled."""

    def __init__(self) -> None:
        self.ended: Deferred[str] = Deferred(self._kill)
        self._out: list[bytes] = []
        self._error: list[bytes] = []

    def outReceived(self, data: bytes) -> None:
        self._out.append(data)

    def errReceived(self, data: bytes) -> None:
        self._error.append(data)

    def processEnded(self, reason: Failure = Failure(ProcessDone(None))) -> None:
        if self.ended.called:
            return
        if reason.check(ProcessDone):
            self.ended.callback(b"".join(self._out).decode(errors="replace"))
        else:
            said = b"".join(self._error or self._out).decode(errors="replace").strip()
            self.ended.errback(OSError(f"{reason.getErrorMessage()} {said}".strip()))

    def _kill(self, _: Deferred[str]) -> None:
        if self.transport is not None and self.transport.pid is not None:
            self.transport.signalProcess("KILL")  # type: ignore[call-arg, misc]


async def discover(*, reactor: Any, timeout: float = 10.0, tool: str = "nvidia-smi") -> GpuGroup | None:
    """Ask the tool once; None when it is missing (a host without GPUs), fails, or takes longer than ``timeout``
    seconds."""
    path = shutil.which(tool)
    if path is None:
        log.debug("no GPUs: the tool is not installed", tool=tool)
        return None
    listing = _Listing()
    reactor.spawnProcess(listing, path, (path, *ARGUMENTS), env=None)
    listing.ended.addTimeout(timeout, reactor)
    try:
        output = await listing.ended
    except Exception as error:
        log.warn("GPUs cannot be listed, none are offered", tool=path, error=str(error) or type(error).__name__)
        return None
    return group(parse(output))
