"""Runs in the SDK's environment, against a node that takes snapshots: a sandbox's work goes on in other sandboxes.

python -m tests.system.sdk.restoring --flavour sync --api URL --sandbox-proxy URL --image IMAGE --directory DIR

Unlike the checks of ``every_check`` this needs sandboxes in containers. It ends with 1 and a traceback if a call fails.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
from pathlib import Path
from typing import Any

from .checks import Given, plain, same, until
from .lifecycle import running, status


def work_goes_on_in_other_sandboxes(given: Given, image: str) -> None:
    client = given.client
    sandbox = client.create_and_connect(image=image, cpus=0.2, memory_mb=128, entrypoint=["/bin/sleep", "600"])
    identity = sandbox.sandbox_id
    sandbox.write_file("/work/notes.txt", b"what it wrote\n")
    made = "cd /work && chmod 4750 notes.txt && ln notes.txt hard && ln -s hard soft && mkdir -m 1777 box"
    same(plain(sandbox.run("/bin/sh", ["-c", made])).exit_code, 0)
    listed = plain(sandbox.run("/bin/ls", ["-lna", "/work"])).stdout

    if given.release >= (0, 5):
        given.fails(lambda: client.snapshot(identity, snapshot_type=given.sdk.SnapshotType.MEMORY), 400)
    taken = plain(client.snapshot_and_wait(identity, timeout=120, poll_interval=0.1))
    same((taken.status.value, taken.sandbox_id, taken.base_image), ("completed", identity, image))
    assert taken.size_bytes > 0 and taken.snapshot_uri, taken
    until("the sandbox's end", lambda: status(given, identity) == "terminated")
    snapshot_id = taken.snapshot_id
    same(plain(client.get_snapshot(snapshot_id)).size_bytes, taken.size_bytes)
    assert snapshot_id in [each.snapshot_id for each in client.list_snapshots()]

    restored = client.create_and_connect(snapshot_id=snapshot_id)
    again = restored.sandbox_id
    assert again != identity
    same(bytes(plain(restored.read_file("/work/notes.txt"))), b"what it wrote\n")
    same(plain(restored.run("/bin/ls", ["-lna", "/work"])).stdout, listed)
    found = plain(client.get(again))
    if given.release >= (0, 5, 161):
        same((found.image, found.resources.cpus, found.resources.memory_mb), (image, 0.2, 128))
    other = plain(client.create(snapshot_id=snapshot_id, cpus=0.1, memory_mb=64)).sandbox_id
    running(given, other)
    same(plain(client.get(other)).resources.memory_mb, 64)

    if given.release >= (0, 5):
        restored.write_file("/work/more.txt", b"and more\n")
        only_files = given.sdk.CheckpointType.FILESYSTEM
        second = restored.checkpoint(checkpoint_type=only_files, timeout=120, poll_interval=0.1)
        same(second.sandbox_id, again)
        if given.release >= (0, 5, 161):
            mine = [each.snapshot_id for each in client.list_sandbox_snapshots(again)]
            same(mine, [second.snapshot_id])
            same([each.snapshot_id for each in client.list_sandbox_snapshots(identity)], [snapshot_id])
        third = given.a("Sandbox").create(snapshot_id=second.snapshot_id, api_url=given.api)
        same(bytes(plain(third.read_file("/work/more.txt"))), b"and more\n")
        third.terminate()
        client.delete_snapshot(second.snapshot_id)
    else:
        client.delete(again)
    client.delete(other)
    client.delete_snapshot(snapshot_id)
    assert snapshot_id not in [each.snapshot_id for each in client.list_snapshots()]
    given.fails(lambda: client.get_snapshot(snapshot_id), 404)
    given.fails(lambda: client.create(snapshot_id=snapshot_id), 404)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--flavour", choices=("sync", "async"), required=True)
    parser.add_argument("--api", required=True)
    parser.add_argument("--sandbox-proxy", required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--directory", type=Path, required=True)
    chosen = parser.parse_args()
    release = tuple(int(part) for part in importlib.metadata.version("tensorlake").split("."))
    if release < (0, 5):
        os.environ["TENSORLAKE_SANDBOX_PROXY_URL"] = chosen.sandbox_proxy
    settings: dict[str, Any] = {"release": release, "asyncio": chosen.flavour == "async", "full": False}
    given = Given(api=chosen.api, proxy=chosen.sandbox_proxy, directory=chosen.directory, **settings)
    work_goes_on_in_other_sandboxes(given, chosen.image)
    given.close()


if __name__ == "__main__":
    main()
