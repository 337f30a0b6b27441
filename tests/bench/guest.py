"""Every figure that the guest daemon is held to, each beside its limit:

    .venv/bin/python -m tests.bench.guest [--only containers|traffic] [--repetitions 10]

As root, on an idle machine, about two minutes. ``containers`` starts the daemon from its bundle in containers of a
private engine, under runc and gVisor (``guest_start``); ``traffic`` drives a sandbox of a real node through its proxy
(``guest_traffic``). Files go to /dev/shm, where only the product is timed, and to --directory, where the disk is: there
a plain copy of the same size runs in between, and on a disk that gives less than the limit the limit is the disk's own
rate. MB are 10^6 bytes, MiB 2^20. Ends with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path

from attrs import frozen

from indexify_dataplane.guestbundle import build
from tests.engine import Engine

from .guest_start import memory, start_times
from .guest_traffic import Sandbox, Transfer, plain_copy, run_latency, run_rate, sandbox, terminals

MB = 1e6
MIB = 1 << 20


@frozen
class Row:
    """``limit`` None: told beside the others, held to nothing. ``sign`` says how it limits."""

    what: str
    value: float
    unit: str
    limit: float | None = None
    sign: str = "<="

    @property
    def held(self) -> bool:
        if self.limit is None:
            return True
        return {"<=": self.value <= self.limit, ">=": self.value >= self.limit, "=": self.value == self.limit}[
            self.sign
        ]

    def __str__(self) -> str:
        limit = "" if self.limit is None else f"{self.sign} {self.limit:g}"
        verdict = "" if self.limit is None else "held" if self.held else "MISSED"
        return f"{self.what:58}{self.value:9.1f} {self.unit:5}{limit:>10}  {verdict}"


def containers(repetitions: int) -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bench-guest-") as directory:
        began = time.perf_counter()
        bundle = build(Path(directory, "bundles"))
        rows.append(Row("bundle: build", time.perf_counter() - began, "s"))
        rows.append(Row("bundle: size", bundle.size / MB, "MB", 25))
        engine = Engine.start()
        for runtime, most_resident in (("runc", 21), ("runsc", 35)):
            name = "gVisor" if runtime == "runsc" else runtime
            judged = runtime == "runc"
            resident, (charged, bare) = memory(engine, bundle, runtime)
            rows.append(Row(f"{name}: resident at rest", resident / MB, "MB", most_resident))
            rows.append(Row(f"{name}: charged at rest, cold host", charged / MB, "MB", 24 if judged else None))
            rows.append(Row(f"{name}: the same, bare", bare / MB, "MB"))
            ours, peer = start_times(engine, bundle, runtime, repetitions)
            rows.append(Row(f"{name}: start to first 200", ours * 1000, "ms"))
            rows.append(Row(f"{name}: the same, static busybox httpd", peer * 1000, "ms"))
            rows.append(Row(f"{name}: start over busybox httpd", (ours - peer) * 1000, "ms", 120 if judged else None))
    return rows


def traffic(repetitions: int, directory: str) -> list[Row]:
    rows: list[Row] = []
    with sandbox() as place:
        for where in ("/dev/shm", directory):
            rows += files(place, where, repetitions)
    with sandbox() as place:
        p50, p99, peer = run_latency(place, 100 * repetitions)
        rows.append(Row("run /bin/true: p50", p50 * 1000, "ms", 8))
        rows.append(Row("run /bin/true: p99", p99 * 1000, "ms"))
        rows.append(Row("run /bin/true: the same, Python's subprocess.run", peer * 1000, "ms"))
        for clients in (1, 4):
            rate, slowest = run_rate(place, 10, clients)
            rows.append(Row(f"run /bin/true: {clients} at a time", rate, "/s", 200, ">="))
            rows.append(Row(f"run /bin/true: {clients} at a time, slowest second", slowest, "/s"))
        whole, refused, took = terminals(place)
        rows.append(Row("64 terminals, 1,000 lines each: whole and in order", whole, "", 64, "="))
        rows.append(Row("64 terminals: the 65th is refused with", refused, "", 429, "="))
        rows.append(Row("64 terminals: time for all", took, "s"))
    return rows


def files(place: Sandbox, where: str, repetitions: int) -> list[Row]:
    """Uploads, downloads and plain copies by turns; medians of the rates, the largest growth of memory."""
    path = f"{where}/bench-{uuid.uuid4().hex}"
    up: list[Transfer] = []
    down: list[Transfer] = []
    disk: list[float] = []
    for _ in range(max(3, repetitions // 2)):
        up.append(Transfer(place, "PUT", path))
        down.append(Transfer(place, "GET", path))
        place.api.call("DELETE", f"/files?path={path}")
        disk.append(plain_copy(path))
    peer = statistics.median(disk) / MB
    rows = [Row(f"1 GiB: written and synced by itself, {where}", peer, "MB/s")]
    for name, limit, seen in (("upload", min(400, peer), up), ("download", 400, down)):
        rate = statistics.median(each.rate for each in seen) / MB
        rows.append(Row(f"1 GiB {name}, {where}", rate, "MB/s", limit, ">="))
        for whose in ("proxy", "daemon"):
            growth = max(getattr(each, whose) for each in seen) / MIB
            rows.append(Row(f"1 GiB {name}, {where}: growth of the {whose}", growth, "MiB", 8))
    return rows


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", choices=("containers", "traffic"))
    options.add_argument("--repetitions", type=int, default=10)
    options.add_argument("--directory", default="/var/tmp", help="where the files go that are to be on a disk")
    chosen = options.parse_args()
    rows: list[Row] = []
    if chosen.only in (None, "traffic"):
        rows += traffic(chosen.repetitions, chosen.directory)
    if chosen.only in (None, "containers"):
        rows += containers(chosen.repetitions)
    for row in rows:
        print(row)
    return 0 if all(row.held for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
