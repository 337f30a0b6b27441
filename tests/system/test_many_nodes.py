"""Several nodes on one machine, from one working directory, as an end-to-end harness starts them."""

from __future__ import annotations

from .harness import Node, Site, until
from .inprocess import EngineServer, threaded


def spread(server: EngineServer, nodes: list[Node], each: int) -> dict[str, str]:
    """Sandboxes on all nodes, with their executors: the other nodes are full while one gets its share."""
    count = each * len(nodes)
    made = [server.rest.create(resources={"cpus": 1.0, "memory_mb": 16, "ephemeral_disk_mb": 16}) for _ in range(count)]
    server.rest.running(*made)
    known = server.rest.sandboxes()
    owners = {sandbox: known[sandbox]["executor_id"] for sandbox in made}
    for node in nodes:
        assert list(owners.values()).count(node.executor_id) == each
    return owners


def check(nodes: list[Node], owners: dict[str, str]) -> None:
    """Everybody has its own ones and serves no others."""
    for node in nodes:
        mine = {sandbox for sandbox, owner in owners.items() if owner == node.executor_id}
        assert set(node.containers()) == mine
        for sandbox in owners:
            status = node.proxy.send("GET", "/api/v1/health", headers={"Tensorlake-Sandbox-Id": sandbox})[0]
            assert status == (200 if sandbox in mine else 404)


def play(site: Site, configs: dict[str, dict[str, object]]) -> None:
    """Start them at once, give them work, end two and start them again: nobody touches the others' sandboxes."""
    server = EngineServer(site.path)
    try:
        common = {
            "env": "local", "server_addr": f"http://127.0.0.1:{server.grpc_port}", "fork_exec": None,
            "resource_overrides": {"cpu_count": 2, "memory_bytes": 8 << 30, "disk_bytes": 8 << 30},
        }  # fmt: skip
        started = [site.node(site.config(name, **{**common, **keys})) for name, keys in configs.items()]
        nodes = [node.ready() for node in started]
        # Who has no store of its own takes the first free one: so they have to come back in this order.
        nodes.sort(key=lambda node: (len(stored(node)), stored(node)))
        assert len({stored(node) for node in nodes}) == len({node.executor_id for node in nodes}) == len(nodes)
        owners = spread(server, nodes, 2)
        before = site.processes()
        assert set(before) == set(owners)
        check(nodes, owners)
        nodes[0].kill()
        assert nodes[1].stop() == 0
        assert site.processes() == before
        check(nodes[2:], owners)
        for number in (0, 1):
            again = site.node(nodes[number].config_file, name=f"again-{number}").ready()
            assert again.executor_id == nodes[number].executor_id
            nodes[number] = again
            until("its sandboxes are routed", lambda node=again: all(node.answers(each) for each in node.containers()))
        check(nodes, owners)
        assert site.processes() == before
        for sandbox in owners:
            server.rest.delete(sandbox)
        until("nothing is left", lambda: not site.processes() and not site.run_directories())
        for node in nodes:
            assert node.stop() == 0
    finally:
        server.stop()


def stored(node: Node) -> str:
    return str(node.event("records recovered")["store"])


@threaded
def test_dead_keys_of_the_reference(site: Site) -> None:
    """``driver`` and ``state_file`` in the form of older configurations; the state directory is everybody's default."""
    play(
        site,
        {
            name: {
                "driver": {"type": "fork_exec"},
                "state_file": str(site.path / f"state-{name}.json"),
                "state_dir": None,
                "function_executor": None,
            }
            for name in ("alpha", "beta", "gamma")
        },
    )
    for name in ("alpha", "beta", "gamma"):
        assert (site.path / f"state-{name}.json.db").exists()


@threaded
def test_all_with_the_same_state_directory(site: Site) -> None:
    play(site, {name: {"state_dir": None, "function_executor": None} for name in ("alpha", "beta", "gamma")})
    stores = sorted(each.name for each in site.path.glob("dataplane-state/*.db"))
    assert stores == ["store-2.db", "store-3.db", "store.db"]
