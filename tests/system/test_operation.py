"""What an operator does with a running node: look, drain, upgrade, rename, stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from .harness import PROGRAM, Site, until


def test_restart_adopts_and_routes_again(site: Site, tell: Callable[[str], None]) -> None:
    """An upgrade seen from a client: the sandbox and its processes go on, and the proxy finds it again."""
    server = site.server()
    config = site.config(server_addr=f"http://127.0.0.1:{server.grpc_port}")
    node = site.node(config).ready()
    sandboxes = [server.rest.create() for _ in range(3)]
    server.rest.running(*sandboxes)
    until("all routed", lambda: all(node.answers(each) for each in sandboxes))
    before, executor_id = site.processes(), node.executor_id
    assert node.stop() == 0
    assert site.processes() == before
    began = time.monotonic()
    node = site.node(config).ready()
    started = time.monotonic() - began
    until("all routed again", lambda: all(node.answers(each) for each in sandboxes))
    tell(f"routable again {time.monotonic() - began:.2f} s after the new node's start (ready after {started:.2f} s)")
    assert node.executor_id == executor_id
    assert site.processes() == before
    assert {each["status"] for each in server.rest.sandboxes().values()} == {"running"}
    for each in sandboxes:
        server.rest.delete(each)
    until("no process is left", lambda: not site.processes())
    until("no run directory is left", lambda: not site.run_directories())
    assert node.stop() == 0
    until("the server was told", lambda: not server.rest.executors())


def test_ctl_state_and_drain(site: Site) -> None:
    server = site.server()
    config = site.config(server_addr=f"http://127.0.0.1:{server.grpc_port}")
    node = site.node(config).ready()
    sandboxes = [server.rest.create() for _ in range(2)]
    server.rest.running(*sandboxes)
    state = site.run(PROGRAM, "ctl", "state", "--config", str(config))
    assert state.returncode == 0, state
    assert all(each in state.stdout for each in (*sandboxes, node.executor_id)), state
    drained = site.run(PROGRAM, "ctl", "drain", "--config", str(config))
    assert drained.returncode == 0, drained
    assert node.wait() == 0
    assert not site.processes()
    assert not site.run_directories()
    assert not server.rest.executors()
    assert set(server.rest.ended(*sandboxes).values()) != {None}
    gone = site.run(PROGRAM, "ctl", "state", "--config", str(config))
    assert gone.returncode == 1
    assert str(site.path / "node" / "ctl.sock") in gone.stderr


def test_timeouts_go_on_while_no_node_runs(site: Site, tell: Callable[[str], None]) -> None:
    server = site.server()
    config = site.config(server_addr=f"http://127.0.0.1:{server.grpc_port}")
    node = site.node(config).ready()
    soon, later = server.rest.create(timeout_secs=4), server.rest.create(timeout_secs=8)
    server.rest.running(soon, later)
    began = time.monotonic()
    node.kill()
    until("four seconds of the sandbox's life", lambda: time.monotonic() - began > 4)
    node = site.node(config).ready()
    outcomes = server.rest.ended(soon, seconds=3)
    assert server.rest.sandbox(later)["status"] == "running"
    outcomes |= server.rest.ended(later, seconds=10)
    tell(f"sandboxes of 4 and 8 s ended as {outcomes[soon]}, the second after {time.monotonic() - began:.1f} s")
    assert set(outcomes.values()) == {"Success(Timeout)"}
    assert 6 < time.monotonic() - began < 11
    until("no process is left", lambda: not site.processes())


def test_another_executor_id_ends_the_old_containers(site: Site, tell: Callable[[str], None]) -> None:
    server = site.server()
    address = f"http://127.0.0.1:{server.grpc_port}"
    node = site.node(site.config(server_addr=address, executor_id="first")).ready()
    sandbox = server.rest.create()
    server.rest.running(sandbox)
    node.kill()
    node = site.node(site.config(server_addr=address, executor_id="second")).ready()
    assert node.executor_id == "second"
    until("the old container is stopped", lambda: not site.processes())
    until("its report is delivered", lambda: node.state()["unacknowledged_reports"] == 0)
    until("no run directory is left", lambda: not site.run_directories())
    assert set(server.rest.executors()) >= {"second"}
    outcome = server.rest.ended(sandbox, seconds=5)
    tell(f"the sandbox of the old id ended as {outcome[sandbox]}")


def test_signal_to_the_process_group(site: Site, tell: Callable[[str], None]) -> None:
    """A supervisor that signals the whole group ends the node; sandboxes are not in it."""
    server = site.server()
    config = site.config(server_addr=f"http://127.0.0.1:{server.grpc_port}")
    node = site.node(config).ready()
    sandboxes = [server.rest.create() for _ in range(3)]
    server.rest.running(*sandboxes)
    before = site.processes()
    began = time.monotonic()
    node.signal_group(signal.SIGTERM)
    assert node.wait(5) == 0
    tell(f"the node ended {time.monotonic() - began:.2f} s after SIGTERM to its group")
    assert site.processes() == before
    assert not [line for line in node.said_on_stderr.splitlines() if line]
    node = site.node(config).ready()
    until("all routed again", lambda: all(node.answers(each) for each in sandboxes))
    assert site.processes() == before


def test_same_signal_delivered_twice_at_once_is_one(site: Site) -> None:
    """As timeout(1) does it: to the process and to its group."""
    server = site.server()
    node = site.node(site.config(server_addr=f"http://127.0.0.1:{server.grpc_port}")).ready()
    until("the server knows it", server.rest.executors)
    node.send_signal(signal.SIGTERM)
    node.event("signal received")
    node.signal_group(signal.SIGTERM)
    assert node.wait(5) == 0
    assert not server.rest.executors()
