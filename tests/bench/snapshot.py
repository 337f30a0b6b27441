"""A snapshot of 1 GiB beside the same by hand: ``python -m tests.bench.snapshot [pairs]``, as root.

The container holds 1 GiB of which a half is random and a half is text that compresses well. Ours is what a
node does: export of the frozen container through the compressor into a file of the blob store, synced to the disk. By
hand is ``docker export CONTAINER | zstd -3 -o FILE`` and a ``sync`` of that file, with the container paused as well. In
ABBA order, so that a drift of the machine hits both alike. Wanted: at least 0.80 of the speed by hand.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from indexify_dataplane.blobs.local import LocalStore
from indexify_dataplane.core.model import Handle
from indexify_dataplane.drivers.blocking import Cancelled
from indexify_dataplane.snapshots.archive import Transfer, pack
from indexify_dataplane.snapshots.docker import Exports
from indexify_dataplane.snapshots.pipeline import ahead
from tests.engine import Engine

MIB = 1 << 20
SIZE = 1 << 30
FILES = 64


def fill(root: Path) -> None:
    """1 GiB in 64 files, every second one of words."""
    words = b" ".join(f"line {number} of a log that looks like logs do".encode() for number in range(2000))
    folder = root / "data"
    folder.mkdir()
    for number in range(FILES):
        size = SIZE // FILES
        with open(folder / f"file-{number}", "wb") as file:
            if number % 2:
                file.write((words * (size // len(words) + 1))[:size])
            else:
                for _ in range(size // MIB):
                    file.write(os.urandom(MIB))


def ours(client: Any, handle: Handle, target: Path) -> int:
    transfer = Transfer()
    with Exports(client=client).exported(handle, Cancelled()) as tar:
        return LocalStore().write(f"file://{target}", ahead(pack(ahead(tar), transfer)))


def by_hand(address: str, identity: str, target: Path) -> int:
    docker = f"docker -H {address}"
    command = f"{docker} pause {identity} && {docker} export {identity} | zstd -q -3 -f -o {target}"
    command += f"; sync {target}; {docker} unpause {identity}"
    subprocess.run(["sh", "-c", command], check=True, capture_output=True)
    return target.stat().st_size


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    if shutil.which("zstd") is None:
        raise SystemExit("this bench needs the program zstd (apt-get install zstd)")
    engine = Engine.start()
    api = engine.client.api
    container = api.create_container(engine.image("busybox"), ["/bin/sleep", "100000"])["Id"]
    api.start(container)
    handle = Handle("docker", container, opaque="bench")
    seconds: dict[str, list[float]] = {"ours": [], "by hand": []}
    sizes: dict[str, int] = {}
    try:
        fill(Path(api.inspect_container(container)["GraphDriver"]["Data"]["MergedDir"]))
        subprocess.run(["sync"], check=True)
        with tempfile.TemporaryDirectory(prefix="bench-snapshot-") as directory:
            target = Path(directory, "snapshot.tar.zst")
            for number in range(pairs):
                order = ("ours", "by hand") if number % 2 == 0 else ("by hand", "ours")
                for who in order:
                    began = time.perf_counter()
                    if who == "ours":
                        sizes[who] = ours(api, handle, target)
                    else:
                        sizes[who] = by_hand(engine.address, container, target)
                    seconds[who].append(time.perf_counter() - began)
                    target.unlink()
    finally:
        api.remove_container(container, force=True, v=True)
    print("| | median s | MiB/s | stored MiB |")
    print("|---|---|---|---|")
    for who, taken in seconds.items():
        median = statistics.median(taken)
        print(f"| {who} | {median:.2f} | {SIZE / MIB / median:.0f} | {sizes[who] / MIB:.0f} |")
    ratios = [hand / mine for mine, hand in zip(seconds["ours"], seconds["by hand"], strict=True)]
    print(f"\nspeed of ours / by hand: {statistics.median(ratios):.2f} (median of {pairs} pairs; wanted: 0.80)")


if __name__ == "__main__":
    main()
