"""``ctl leaks`` of a running node on a real engine."""

from __future__ import annotations

import json
import unittest
from typing import Any

import pytest

from indexify_dataplane.drivers.docker import names
from indexify_dataplane.leaks.chains import GONE, THERE
from indexify_dataplane.network.chains import node_chain
from tests.engine import Engine, require
from tests.network.stage import run

from .docker_nodes import DockerNodes
from .harness import PROGRAM, Site, until


def leaks(site: Site, nodes: DockerNodes) -> tuple[int, dict[str, Any]]:
    done = site.run(PROGRAM, "ctl", "leaks", "--json", "--config", str(nodes.config))
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def test_listed_until_gone_and_swept_at_the_next_start(site: Site) -> None:
    try:
        engine = require(unittest.TestCase())
    except unittest.SkipTest as skipped:
        pytest.skip(str(skipped))
    nodes = DockerNodes(site, engine)
    api = engine.client.api
    bystander: str | None = None
    try:
        node = nodes.start()
        sandbox = nodes.create()
        nodes.server.rest.running(sandbox)
        mine = {"executor_id": node.executor_id}
        assert not [each for each in leaks(site, nodes)[1]["leaks"] if each["executor_id"] == node.executor_id]

        # Something with our labels that is in no record (a sandbox that nobody starts would be removed at once), and
        # something of a start that a kill interrupted.
        lost = f"indexify-lost-{node.executor_id}"
        planted = {names.MANAGED: "true", names.EXECUTOR: node.executor_id, names.CONTAINER: "lost"}
        api.create_container(nodes.image, command=["true"], name=lost, labels={**planted, names.KIND: "function"})
        # The same with a label missing, and what only has such a name, which is told and left alone.
        maimed, named = f"indexify-maimed-{node.executor_id}", f"indexify-named-{node.executor_id}"
        api.create_container(nodes.image, command=["true"], name=maimed, labels=planted)
        bystander = api.create_container(nodes.image, command=["true"], name=named)["Id"]
        volume = f"indexify-guest-{node.executor_id[:16]}"
        api.create_volume(volume, labels={names.MANAGED: "true", names.BUNDLE: "0123"})
        code, told = leaks(site, nodes)
        found = {(each["kind"], each["name"]) for each in told["leaks"]}
        planted_all = {("container", lost), ("container", maimed), ("container", named), ("volume", volume)}
        assert code == 1 and planted_all <= found, told
        assert f"indexify-{sandbox}" not in {each["name"] for each in told["leaks"]}
        shown = site.run(PROGRAM, "ctl", "leaks", "--config", str(nodes.config))
        assert shown.returncode == 1 and "container lost" in shown.stdout, shown.stdout

        node.kill()
        again = nodes.start()
        assert again.executor_id == mine["executor_id"]

        def swept() -> bool:
            left = {each["name"] for each in leaks(site, nodes)[1]["leaks"]}
            return not left & {lost, maimed, volume}

        until("the leaks to be swept", swept)
        assert named in {each["name"] for each in leaks(site, nodes)[1]["leaks"]}
        assert nodes.container(sandbox)["State"]["Running"]
    finally:
        nodes.close()
        if bystander is not None:
            api.remove_container(bystander)


def test_chains_of_a_node_that_never_comes_back_go_with_the_start_of_another(site: Site, engine: Engine) -> None:
    nodes = DockerNodes(site, engine)
    address = f"http://127.0.0.1:{nodes.server.grpc_port}"
    try:
        gone = nodes.start()
        sandbox = nodes.create()
        nodes.server.rest.running(sandbox)
        lives = site.node(site.config("lives", server_addr=address, sandbox_driver=nodes.driver)).ready()
        gone.kill()

        def told(config: str) -> dict[str, str]:
            done = site.run(PROGRAM, "ctl", "leaks", "--json", "--config", str(site.path / f"{config}.yaml"))
            return {each["name"]: each["executor_id"] for each in json.loads(done.stdout)["others"]}

        assert told("lives")[node_chain(gone.executor_id)] == GONE
        again = site.node(site.config("again", server_addr=address, sandbox_driver=nodes.driver)).ready()
        assert told("again")[node_chain(gone.executor_id)] == GONE, "its sandbox lives, so it may come back"
        assert told("again")[node_chain(lives.executor_id)] == THERE
        again.kill()
        nodes.api.remove_container(f"indexify-{sandbox}", force=True, v=True)
        last = site.node(site.config("last", server_addr=address, sandbox_driver=nodes.driver)).ready()
        for program in ("iptables", "ip6tables"):
            saved = run(f"{program}-save", "-t", "filter")
            for node, expected in ((gone, 0), (again, 0), (lives, 2), (last, 2)):
                hooks = [each for each in saved.splitlines() if each.endswith(f" -j {node_chain(node.executor_id)}")]
                assert len(hooks) == expected, (program, node.executor_id, hooks)
            assert f"INDEXIFY-SB-{sandbox[:16]}" not in saved
    finally:
        nodes.close()
