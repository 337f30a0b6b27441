"""What the guest daemon costs a sandbox: bundle, memory at rest, time to the first answer. See ``guest``.

Start: from the call that starts the container to the first 200 of the health route, beside a static busybox httpd that
gives the same answer from the same image; interleaved, medians, and their difference, which is the daemon's share.
Memory at rest: resident as ``/proc/1/status`` says in the sandbox, and charged as the memory cgroup says on the host
(``memory.usage_in_bytes`` or ``memory.current``: private pages, pages of files that the sandbox touched first, kernel
objects), after all caches of the host were dropped. The node reads the bundle before each start (``Bundle.warm``), so
its pages are the node's; *bare* is the same without that, as ``docker run`` by hand would be charged.
"""

from __future__ import annotations

import http.client
import os
import statistics
import threading
import time
from pathlib import Path

from indexify_dataplane.guestbundle import Bundle
from tests.engine import Engine
from tests.guestbundle.containers import Guest, until

PAUSE = threading.Event()


class StaticServer(Guest):
    """The same container with busybox httpd in the daemon's place."""

    def __init__(self, engine: Engine, image: str, **options: object) -> None:
        api = engine.client.api
        self._engine = engine
        self.id = api.create_container(
            image,
            entrypoint=["/bin/busybox", "httpd", "-f", "-p", "9501", "-h", "/www"],
            host_config=api.create_host_config(**options),
        )["Id"]


def seconds_to_first_answer(guest: Guest) -> float:
    began = time.perf_counter()
    guest.start()
    while True:
        try:
            connection = http.client.HTTPConnection(guest.address, 9501, timeout=5)
            connection.request("GET", "/api/v1/health")
            answered = connection.getresponse().status == 200
            connection.close()
        except OSError:
            answered = False
        if answered:
            return time.perf_counter() - began
        if time.perf_counter() - began > 60:
            raise AssertionError(f"no answer within 60 s: {guest.logs()}")
        PAUSE.wait(0.001)


def start_times(engine: Engine, bundle: Bundle, runtime: str, repetitions: int) -> tuple[float, float]:
    """Medians in seconds: the daemon's and the static server's."""
    image = engine.image("busybox")
    ours: list[float] = []
    peer: list[float] = []
    for index in range(repetitions + 1):
        pair = [
            (ours, Guest(engine, bundle, image, runtime=runtime)),
            (peer, StaticServer(engine, image, runtime=runtime)),
        ]
        for times, guest in pair if index % 2 else reversed(pair):
            try:
                times.append(seconds_to_first_answer(guest))
            finally:
                guest.remove()
    return statistics.median(ours[1:]), statistics.median(peer[1:])


def status_bytes(guest: Guest, field: str) -> int:
    connection = http.client.HTTPConnection(guest.address, 9501, timeout=5)
    connection.request("GET", "/api/v1/files?path=/proc/1/status")
    text = connection.getresponse().read().decode()
    connection.close()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(field + ":"))


def charged_bytes(engine: Engine, guest: Guest) -> int:
    process = engine.client.api.inspect_container(guest.id)["State"]["Pid"]
    for line in Path(f"/proc/{process}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return int(Path(f"/sys/fs/cgroup/memory{path}/memory.usage_in_bytes").read_text())
        if not controllers and Path("/sys/fs/cgroup/cgroup.controllers").exists():
            return int(Path(f"/sys/fs/cgroup{path}/memory.current").read_text())
    raise AssertionError(f"no memory cgroup for {process}")


def memory(engine: Engine, bundle: Bundle, runtime: str) -> tuple[int, list[int]]:
    """Resident bytes of the daemon at rest; the bytes charged, as the node starts it and bare."""
    charged = []
    resident = 0
    for bare in (False, True):
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
        if not bare:
            bundle.warm()
        guest = Guest(engine, bundle, engine.image("busybox"), runtime=runtime)
        try:
            guest.start()
            until(guest.healthy, "health", 60)
            charged.append(charged_bytes(engine, guest))
            resident = status_bytes(guest, "VmRSS")
        finally:
            guest.remove()
    return resident, charged
