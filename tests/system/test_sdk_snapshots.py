"""Snapshots as users of released SDKs take and restore them, with sandboxes in containers of a real engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine import Engine

from .harness import PROGRAM, Site, until
from .test_sdk import environment

ROOT = Path(__file__).parents[2]
RUNS = [("newest", "sync"), ("newest", "async"), ("0.4.48", "sync")]


@pytest.mark.parametrize(("release", "flavour"), RUNS)
def test_work_goes_on_in_other_sandboxes(site: Site, engine: Engine, release: str, flavour: str) -> None:
    folder = environment(release)
    config = site.config("sdk", sandbox_driver={"type": "docker", "address": engine.address})
    command = [PROGRAM, "dev", "--config", str(config), "--data-dir", str(site.path / "sdk")]
    command += ["--grpc-port", "0", "--http-port", "0", "--sandbox-proxy-port", "0"]
    node = site.node(config, command=command).ready()
    ports = node.event("development control plane is listening")
    site.path.chmod(0o755)
    done = site.run(
        str(folder / "bin/python"), "-m", "tests.system.sdk.restoring", "--flavour", flavour,
        "--api", f"http://127.0.0.1:{ports['rest']}",
        "--sandbox-proxy", f"http://localhost:{ports['sandbox_proxy']}",
        "--image", engine.image("busybox"), "--directory", str(site.path),
        seconds=300, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    until("every sandbox is down", lambda: set(node.containers().values()) <= {"terminated"})
    assert not list((site.path / "sdk").rglob("*.tar.zst")), "blobs of deleted snapshots are left"
