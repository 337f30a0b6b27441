"""Calls for what the server of this API does not have: they must fail, at once and in a way that says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .checks import SMALL, Given, check, plain, same, until, valued
from .lifecycle import status

NO_OPERATION = "no such operation in the control plane's API (404)"
NO_SNAPSHOTS = (
    "the default driver, fork-exec, takes no snapshots: the snapshot fails and the SDK says so. With the driver"
    " `docker` they work, checkpoints too (`tests/system/test_sdk_snapshots.py`)"
)
NO_NAMES = "makes a sandbox, but names are not kept: the next call makes another"
NO_RESIZE = "no live resize: no such operation is ever reported"

Act = Callable[[], Any]


@check(since=(0, 4, 41))
def what_the_api_does_not_have_is_refused(given: Given) -> None:
    with given.own_sandbox() as sandbox:
        client, identity = given.client, sandbox.sandbox_id
        mount = {"file_system_id": "f", "mount_path": "/x"}
        now = {"wait": False} if given.release >= (0, 5) else {}
        refused: dict[str, Act] = {
            "SandboxClient.suspend": lambda: client.suspend(identity, **now),
            "SandboxClient.resume": lambda: client.resume(identity, **now),
        }
        if given.release >= (0, 5):
            refused |= {
                "SandboxClient.copy": lambda: client.copy(identity),
                "SandboxClient.list_archived": client.list_archived,
                "SandboxClient.get_archived": lambda: client.get_archived(identity),
                "SandboxClient.get_logs": lambda: client.get_logs(identity),
                "SandboxClient.list_log_processes": lambda: client.list_log_processes(identity),
                "SandboxClient.attach_file_system": lambda: client.attach_file_system(identity, **mount),
                "SandboxClient.detach_file_system": lambda: client.detach_file_system(identity, mount_path="/x"),
                "Sandbox.suspend": lambda: sandbox.suspend(wait=False),
                "Sandbox.resume": lambda: sandbox.resume(wait=False),
                "Sandbox.copy": sandbox.copy,
                "Sandbox.get_logs": sandbox.get_logs,
                "Sandbox.list_log_processes": sandbox.list_log_processes,
                "Sandbox.attach_file_system": lambda: sandbox.attach_file_system(**mount),
                "Sandbox.detach_file_system": lambda: sandbox.detach_file_system(mount_path="/x"),
            }
        for call, act in refused.items():
            given.refuses(call, NO_OPERATION, act, 404, "SandboxNotFoundError")
        if given.release >= (0, 5):
            same(list(sandbox.list_file_systems()), [])
            given.fails(lambda: sandbox.update(name="other"), 422)
        same(status(given, identity), "running")


@check(since=(0, 5, 161))
def what_newer_releases_add_beyond_the_api_is_refused(given: Given) -> None:
    sandbox, client = given.sandbox, given.client
    identity = sandbox.sandbox_id
    same(list(client.list_sandbox_snapshots(identity)), [])
    resize = {"generation": 1, "timeout": 0}
    for call, act in (
        ("SandboxClient.wait_for_resource_resize", lambda: client.wait_for_resource_resize(identity, **resize)),
        ("Sandbox.wait_for_resource_resize", lambda: sandbox.wait_for_resource_resize(**resize)),
    ):
        given.refuses(call, NO_RESIZE, act, "SandboxResizeError")
    made = given.a("Sandbox").get_or_create("agent-1", **SMALL, api_url=given.api)
    same(made.bind_outcome, "created")
    same(valued(made, "info").name, None)
    made.terminate()
    given.refused["Sandbox.get_or_create"] = NO_NAMES


@check(since=(0, 5))
def snapshots_of_a_handle_are_refused(given: Given) -> None:
    with given.own_sandbox() as sandbox:
        same(list(sandbox.list_snapshots()), [])
        act: Act = lambda: sandbox.checkpoint(timeout=20, poll_interval=0.1)  # noqa: E731
        given.refuses("Sandbox.checkpoint", NO_SNAPSHOTS, act, "snapshots not configured")


@check()
def snapshots_are_told_about(given: Given) -> None:
    with given.own_sandbox() as sandbox:
        identity = sandbox.sandbox_id
        snapshot_id = plain(given.client.snapshot(identity)).snapshot_id

        def failed() -> Any:
            found = plain(given.client.get_snapshot(snapshot_id))
            return found if found.status.value == "failed" else None

        found = until("its failure", failed)
        assert "snapshots not configured" in found.error and found.sandbox_id == identity, found
        assert snapshot_id in [each.snapshot_id for each in given.client.list_snapshots()]
        until("the sandbox's end", lambda: status(given, identity) == "terminated")
        if given.release >= (0, 5) and not given.asyncio:
            where: dict[str, Any] = {"api_url": given.api}
            same(given.a("Sandbox").get_snapshot(snapshot_id, **where).snapshot_id, snapshot_id)
            given.a("Sandbox").delete_snapshot(snapshot_id, **where)
        else:
            given.client.delete_snapshot(snapshot_id)
        given.fails(lambda: given.client.get_snapshot(snapshot_id), 404)
        given.fails(lambda: given.client.delete_snapshot(snapshot_id), 404)
    with given.own_sandbox() as sandbox:
        identity = sandbox.sandbox_id
        act: Act = lambda: given.client.snapshot_and_wait(identity, timeout=20, poll_interval=0.1)  # noqa: E731
        given.refuses("SandboxClient.snapshot_and_wait", NO_SNAPSHOTS, act, "snapshots not configured")
        (mine,) = [each.snapshot_id for each in given.client.list_snapshots() if each.sandbox_id == identity]
        given.client.delete_snapshot(mine)


@check()
def a_client_for_the_cloud_works_here_too(given: Given) -> None:
    client = given.a("SandboxClient").for_cloud(api_key="none", api_url=given.api)
    assert isinstance(list(client.list()), list)
    client.close()
