"""Snapshots from the server's API to a restored sandbox, on a real engine."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from indexify_dataplane.snapshots.docker import REPOSITORY
from tests.engine import Engine
from tests.snapshots import tree

from .docker_nodes import DockerNodes
from .harness import PROGRAM, Site, until

SNAPSHOTS = "/v1/namespaces/default/snapshots"
LARGE_MIB = 192


@pytest.fixture(params=["runc", "runsc"])
def nodes(request: pytest.FixtureRequest, site: Site, engine: Engine) -> Iterator[DockerNodes]:
    """On each of the engine's runtimes."""
    made = DockerNodes(site, engine, driver={"runtime": request.param})
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def runc(site: Site, engine: Engine) -> Iterator[DockerNodes]:
    made = DockerNodes(site, engine)
    try:
        yield made
    finally:
        made.close()


def order(nodes: DockerNodes, sandbox: str, expected: int = 202) -> str:
    answer = nodes.server.rest.ask("POST", f"{nodes.server.rest.base}/{sandbox}/snapshot", expected=expected)
    return str(answer["snapshot_id"])


def ended(nodes: DockerNodes, snapshot_id: str) -> dict[str, Any]:
    def over() -> dict[str, Any] | None:
        found = dict(nodes.server.rest.get(f"{SNAPSHOTS}/{snapshot_id}"))
        return None if found["status"] == "in_progress" else found

    return dict(until(f"the end of snapshot {snapshot_id}", over, 120))


def blob(snapshot: dict[str, Any]) -> Path:
    return Path(unquote(snapshot["snapshot_uri"].removeprefix("file://")))


def uploads(nodes: DockerNodes) -> list[Path]:
    return list((nodes.site.path / "blobs").rglob("*.upload"))


def put(nodes: DockerNodes, sandbox: str, path: str, content: bytes) -> None:
    assert nodes.node is not None
    headers = {"Tensorlake-Sandbox-Id": sandbox}
    status, answer = nodes.node.proxy.send("PUT", f"/api/v1/files?path={path}", content, headers=headers)
    assert status in (200, 201, 204), answer


def read(nodes: DockerNodes, sandbox: str, path: str) -> bytes:
    assert nodes.node is not None
    headers = {"Tensorlake-Sandbox-Id": sandbox}
    status, answer = nodes.node.proxy.send("GET", f"/api/v1/files?path={path}", headers=headers)
    assert status == 200, answer
    return answer


def grown(nodes: DockerNodes) -> str:
    """A sandbox whose snapshot takes a while."""
    sandbox = nodes.create()
    nodes.server.rest.running(sandbox)
    copy = f"dd if=/dev/urandom of=/large bs=1M count={LARGE_MIB} && touch /done"
    nodes.run(sandbox, "/bin/sh", "-c", copy)
    marks = ["test", "-e", "/done"]
    container = nodes.engine.client.containers.get(f"indexify-{sandbox}")
    until("the large file", lambda: container.exec_run(["/bin/busybox", *marks]).exit_code == 0, 60)
    return sandbox


def restored_images(nodes: DockerNodes) -> list[str]:
    known = set(nodes.server.rest.sandboxes())
    tags = [tag for each in nodes.api.images(name=REPOSITORY) for tag in each["RepoTags"] or ()]
    return [tag for tag in tags if tag.rpartition(":")[2] in known]


def test_a_sandbox_goes_on_in_another_one(nodes: DockerNodes) -> None:
    node, rest = nodes.start(), nodes.server.rest
    first = nodes.create()
    rest.running(first)
    put(nodes, first, "/kept", b"what it wrote\n")
    snapshot = ended(nodes, order(nodes, first))
    assert snapshot["status"] == "completed", snapshot
    assert snapshot["size_bytes"] == blob(snapshot).stat().st_size > 0
    assert snapshot["sandbox_id"] == first
    assert rest.ended(first) == {first: None}
    until("nothing of the first is left", lambda: not nodes.ours())
    (told,) = [each for each in node.events("container is being killed") if "sha256" in each]
    digest = subprocess.run(["sha256sum", blob(snapshot)], capture_output=True, text=True, check=True).stdout.split()[0]
    assert (told["sha256"], told["size_bytes"]) == (digest, snapshot["size_bytes"])
    again = [rest.create(snapshot_id=snapshot["id"], resources={"cpus": 1, "memory_mb": 128}) for _ in range(2)]
    rest.running(*again)
    for sandbox in again:
        assert read(nodes, sandbox, "/kept") == b"what it wrote\n"
    assert len(restored_images(nodes)) == 2
    for sandbox in again:
        rest.delete(sandbox)
    rest.ended(*again)
    until("nothing is left", lambda: not nodes.ours() and not restored_images(nodes))
    assert [each["id"] for each in rest.get(SNAPSHOTS)["snapshots"]] == [snapshot["id"]]
    rest.ask("DELETE", f"{SNAPSHOTS}/{snapshot['id']}")
    assert not blob(snapshot).exists()
    assert rest.send("GET", f"{SNAPSHOTS}/{snapshot['id']}")[0] == 404


def root(nodes: DockerNodes, sandbox: str) -> Path:
    """The sandbox's file system as the host sees it."""
    return Path(nodes.container(sandbox)["GraphDriver"]["Data"]["MergedDir"])


def test_the_file_tree_is_identical(nodes: DockerNodes) -> None:
    node, rest = nodes.start(), nodes.server.rest
    first = nodes.create()
    rest.running(first)
    tree.fill(root(nodes, first))
    before = tree.describe(root(nodes, first))
    assert any(each.attributes for each in before.values())
    snapshot = ended(nodes, order(nodes, first))
    assert snapshot["status"] == "completed", snapshot
    restored = rest.create(snapshot_id=snapshot["id"], resources={"cpus": 1, "memory_mb": 128})
    rest.running(restored)
    assert tree.describe(root(nodes, restored)) == before
    assert not [each for each in node.events() if "attributes" in each.get("message", "")]


def said(nodes: DockerNodes, sandbox: str, script: str) -> list[str]:
    """What a shell inside of the sandbox prints; the daemon starts it and keeps its output."""
    assert nodes.node is not None
    headers = {"Tensorlake-Sandbox-Id": sandbox}
    path = f"/api/v1/processes/{nodes.run(sandbox, '/bin/sh', '-c', script)['pid']}"
    proxy = nodes.node.proxy
    ended = until(
        f"the end of {script!r}",
        lambda: found if (found := proxy.get(path, headers=headers))["status"] != "running" else None,
    )
    assert ended["exit_code"] == 0, (ended, proxy.get(f"{path}/stderr", headers=headers))
    return list(proxy.get(f"{path}/stdout", headers=headers)["lines"])


SHOWN = "cd /; for d in /tmp /kept; do stat -c '%n %a %u' $d; done; find /tmp /kept | sort; cat $(find /tmp -type f)"


def test_what_is_written_from_inside_comes_back(nodes: DockerNodes) -> None:
    """Nothing here is seen or touched through the host: gVisor may keep folders to itself. /tmp is empty first, then it
    is not, then a snapshot brings an empty one again."""
    nodes.start()
    rest = nodes.server.rest

    def follows(sandbox: str) -> str:
        snapshot = ended(nodes, order(nodes, sandbox))
        assert snapshot["status"] == "completed", snapshot
        restored = str(rest.create(snapshot_id=snapshot["id"], resources={"cpus": 1, "memory_mb": 128}))
        rest.running(restored)
        return restored

    first = nodes.create()
    rest.running(first)
    assert said(nodes, first, "find /tmp; stat -c '%a %u' /tmp") == ["/tmp", "1777 0"]
    put(nodes, first, "/tmp/sent", b"through the daemon\n")
    script = (
        "mkdir -p /kept/deep /tmp/deep; echo x > /tmp/x; echo y > /tmp/deep/y; echo z > /kept/deep/z; touch /kept/e"
    )
    said(nodes, first, script)
    before = said(nodes, first, SHOWN)
    assert {"/tmp 1777 0", "/tmp/deep/y", "/tmp/sent", "/kept/deep/z", "x", "y", "through the daemon"} <= set(before)
    second = follows(first)
    assert said(nodes, second, SHOWN) == before
    assert read(nodes, second, "/tmp/sent") == b"through the daemon\n"
    said(nodes, second, "rm -r /tmp/*")
    third = follows(second)
    assert said(nodes, third, "find /tmp; stat -c '%a %u' /tmp; cat /kept/deep/z") == ["/tmp", "1777 0", "z"]
    put(nodes, third, "/tmp/again", b"once more\n")
    assert read(nodes, follows(third), "/tmp/again") == b"once more\n"


def test_an_image_without_tmp_gets_one_under_gvisor(site: Site, engine: Engine) -> None:
    nodes = DockerNodes(site, engine, driver={"runtime": "runsc"})
    try:
        nodes.start()
        rest = nodes.server.rest
        first = nodes.create(image=engine.image("empty"), entrypoint=[])
        rest.running(first)
        put(nodes, first, "/tmp/sent", b"through the daemon\n")
        snapshot = ended(nodes, order(nodes, first))
        assert snapshot["status"] == "completed", snapshot
        again = rest.create(snapshot_id=snapshot["id"], resources={"cpus": 1, "memory_mb": 128})
        rest.running(again)
        assert read(nodes, again, "/tmp/sent") == b"through the daemon\n"
    finally:
        nodes.close()


def test_a_node_killed_during_a_snapshot_takes_it_again(runc: DockerNodes) -> None:
    nodes, rest = runc, runc.server.rest
    node = nodes.start()
    sandbox = grown(nodes)
    snapshot_id = order(nodes, sandbox)
    until("the upload", lambda: [each for each in uploads(nodes) if each.stat().st_size > 1 << 20])
    node.send_signal(signal.SIGKILL)
    node.wait()
    assert len(uploads(nodes)) == 1
    assert nodes.container(sandbox)["State"]["Paused"]
    nodes.start()
    snapshot = ended(nodes, snapshot_id)
    assert snapshot["status"] == "completed", snapshot
    assert snapshot["size_bytes"] > LARGE_MIB << 20
    assert uploads(nodes) == []
    assert rest.ended(sandbox) == {sandbox: None}
    restored = rest.create(snapshot_id=snapshot_id, resources={"cpus": 1, "memory_mb": 128})
    rest.running(restored)
    found = nodes.engine.client.containers.get(f"indexify-{restored}").exec_run(
        ["/bin/busybox", "stat", "-c%s", "/large"]
    )
    assert int(found.output) == LARGE_MIB << 20


def test_what_is_done_to_a_sandbox_during_its_snapshot(runc: DockerNodes) -> None:
    nodes, rest = runc, runc.server.rest
    node = nodes.start()
    deleted, crashed = grown(nodes), grown(nodes)
    first, second = order(nodes, deleted), order(nodes, crashed)
    until("both are being taken", lambda: list(node.containers().values()) == ["snapshotting"] * 2)
    assert rest.send("POST", f"{rest.base}/{crashed}/snapshot")[0] == 400
    headers = {"Tensorlake-Sandbox-Id": crashed}
    assert node.proxy.send("GET", "/api/v1/health", headers=headers)[0] == 503
    rest.delete(deleted)
    nodes.api.kill(nodes.container(crashed)["Id"], signal="SIGKILL")
    for snapshot_id in (first, second):
        snapshot = ended(nodes, snapshot_id)
        assert snapshot["status"] == "completed", snapshot
        assert snapshot["size_bytes"] > LARGE_MIB << 20
    until("nothing is left", lambda: not nodes.ours())


def test_a_place_that_cannot_be_written_fails_the_snapshot_and_keeps_the_sandbox(runc: DockerNodes) -> None:
    nodes, rest = runc, runc.server.rest
    node = nodes.start()
    sandbox = nodes.create()
    rest.running(sandbox)
    (nodes.site.path / "blobs").mkdir(exist_ok=True)
    (nodes.site.path / "blobs" / "snapshots").write_bytes(b"a file where a folder should be")
    snapshot = ended(nodes, order(nodes, sandbox))
    assert snapshot["status"] == "failed"
    assert "Not a directory" in snapshot["error"], snapshot
    assert len(node.events("snapshot will be tried again")) == 4
    rest.ended(sandbox)
    until("nothing is left", lambda: not nodes.ours())


def test_a_node_that_is_given_up_does_not_wait_for_a_snapshot(runc: DockerNodes) -> None:
    nodes = runc
    node = nodes.start()
    sandbox = grown(nodes)
    snapshot_id = order(nodes, sandbox)
    until("it is being taken", lambda: node.containers()[sandbox] == "snapshotting")
    nodes.site.run(PROGRAM, "ctl", "drain", "--config", str(nodes.config))
    assert node.wait() == 0
    assert ended(nodes, snapshot_id)["status"] == "failed"
    assert uploads(nodes) == []
    assert nodes.ours() == []
