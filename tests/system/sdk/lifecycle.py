"""Sandboxes themselves: made, found, changed and ended; pools and snapshots."""

from __future__ import annotations

from typing import Any

from .checks import SMALL, Given, check, plain, same, until, valued


def status(given: Given, sandbox_id: str) -> str:
    return str(plain(given.client.get(sandbox_id)).status.value)


def running(given: Given, sandbox_id: str) -> None:
    until("it runs", lambda: status(given, sandbox_id) == "running")


def refused(given: Given, sandbox_id: str) -> bool:
    """The server says "terminated" as soon as it has ordered the end; the node hears of it a moment later."""
    answers: list[Any] = []

    def read() -> None:
        answers.append(given.client.connect(sandbox_id).read_file("/etc/hostname"))
        raise LookupError("answered")

    given.fails(read, 503, 410, 404, "terminated", "answered")
    return not answers


def gone(given: Given, sandbox_id: str) -> bool:
    return sandbox_id not in [each.sandbox_id for each in given.client.list() if each.status.value != "terminated"]


@check()
def sandboxes_are_created_found_and_deleted(given: Given) -> None:
    created = plain(given.client.create(**SMALL, timeout_secs=300, entrypoint=["sleep", "300"]))
    running(given, created.sandbox_id)
    found = plain(given.client.get(created.sandbox_id))
    same((found.sandbox_id, found.namespace, found.timeout_secs), (created.sandbox_id, "default", 300))
    same((found.resources.cpus, found.resources.memory_mb), (0.1, 128))
    assert created.sandbox_id in [each.sandbox_id for each in given.client.list()]
    sandbox = given.client.connect(created.sandbox_id)
    until("its entrypoint", lambda: [each.command for each in sandbox.list_processes()] == ["sleep"])
    sandbox.close()
    given.client.delete(created.sandbox_id)
    until("its end", lambda: status(given, created.sandbox_id) == "terminated")
    assert gone(given, created.sandbox_id)
    until("the node takes no more calls for it", lambda: refused(given, created.sandbox_id))


@check()
def what_is_not_there_is_an_error(given: Given) -> None:
    for ask in (given.client.get, given.client.delete):
        given.fails(lambda ask=ask: ask("nobody"), "SandboxNotFoundError")


@check()
def a_sandbox_ends_with_its_handle(given: Given) -> None:
    client = given.a("SandboxClient").for_localhost(given.api)
    sandbox = client.create_and_connect(**SMALL)
    identity = sandbox.sandbox_id
    same(plain(sandbox.run("echo", ["here"])).stdout, "here")
    same(plain(sandbox.health()).healthy, True)
    sandbox.terminate()
    client.close()
    until("its end", lambda: status(given, identity) == "terminated")


@check()
def a_sandbox_ends_at_its_timeout(given: Given) -> None:
    created = plain(given.client.create(**SMALL, timeout_secs=1))
    until("its end", lambda: status(given, created.sandbox_id) == "terminated")


@check()
def two_sandboxes_are_two(given: Given) -> None:
    with given.own_sandbox() as first, given.own_sandbox() as second:
        assert first.sandbox_id != second.sandbox_id
        one = first.start_process("sleep", ["30"])
        same([each.pid for each in first.list_processes()], [one.pid])
        same(list(second.list_processes()), [])


@check(until=(0, 5))
def the_daemon_tells_about_itself_as_info(given: Given) -> None:
    told = given.sandbox.info()
    assert told.version and told.uptime_secs >= 0 and told.total_processes >= told.running_processes
    assert plain(given.sandbox.health()).healthy


@check(since=(0, 5))
def the_daemon_tells_about_itself(given: Given) -> None:
    told = plain(given.sandbox.daemon_info())
    assert told.version and told.uptime_secs >= 0 and told.total_processes >= told.running_processes
    assert plain(given.sandbox.health()).healthy


@check(since=(0, 5))
def a_handle_knows_its_sandbox(given: Given) -> None:
    identity = given.sandbox.sandbox_id
    same(valued(given.sandbox, "info").sandbox_id, identity)
    same(valued(given.sandbox, "status").value, "running")
    if not given.asyncio:
        same(given.sandbox.name, None)
    assert given.sandbox.trace_id
    if given.release >= (0, 5, 161):
        same(given.sandbox.bind_outcome, None)


@check(since=(0, 4, 41), until=(0, 5))
def an_unnamed_sandbox_has_no_name(given: Given) -> None:
    same(given.sandbox.name, None)


@check(since=(0, 5))
def sandboxes_are_made_by_their_class(given: Given) -> None:
    where: dict[str, Any] = {"api_url": given.api}
    sandbox = given.a("Sandbox").create(**SMALL, **where)
    identity = sandbox.sandbox_id
    try:
        same(plain(sandbox.run("echo", ["made"])).stdout, "made")
        again = given.a("Sandbox").connect(identity, **where)
        same(plain(again.run("echo", ["found"])).stdout, "found")
        again.close()
        if not given.asyncio:
            assert identity in [each.sandbox_id for each in given.a("Sandbox").list(**where)]
    finally:
        sandbox.terminate()
    until("its end", lambda: status(given, identity) == "terminated")


@check(since=(0, 5, 161))
def a_pending_sandbox_becomes_ready(given: Given) -> None:
    pending = given.client.create(**SMALL, wait=False)
    assert pending.status().status.value in ("pending", "running")
    sandbox = pending.ready()
    same(plain(sandbox.run("echo", ["ready"])).stdout, "ready")
    sandbox.terminate()


@check(since=(0, 4, 41))
def ports_are_exposed_and_closed(given: Given) -> None:
    with given.own_sandbox() as sandbox:
        identity = sandbox.sandbox_id
        same(plain(given.client.expose_ports(identity, [8080, 3000])).exposed_ports, [3000, 8080])
        access = plain(given.client.get_port_access(identity))
        same((access.exposed_ports, access.allow_unauthenticated_access), ([3000, 8080], False))
        same(plain(given.client.unexpose_ports(identity, [3000])).exposed_ports, [8080])
        changed = plain(given.client.update_sandbox(identity, allow_unauthenticated_access=True, exposed_ports=[9000]))
        same((changed.exposed_ports, changed.allow_unauthenticated_access), ([9000], True))
        if given.release >= (0, 5):
            same(plain(sandbox.update(exposed_ports=[])).exposed_ports or [], [])


@check()
def pools_are_kept_and_claimed_from(given: Given) -> None:
    image = "python:3.12-slim"
    pool_id = plain(given.client.create_pool(image, **SMALL, warm_containers=1, max_containers=3)).pool_id
    try:
        pool = plain(given.client.get_pool(pool_id))
        same((pool.pool_id, pool.image, pool.warm_containers, pool.max_containers), (pool_id, image, 1, 3))
        assert pool_id in [each.pool_id for each in given.client.list_pools()]
        until("a warm container", lambda: any(each.state.lower() == "running" for each in warm(given, pool_id)))
        claimed = plain(given.client.claim(pool_id))
        running(given, claimed.sandbox_id)
        sandbox = given.client.connect(claimed.sandbox_id)
        same(plain(sandbox.run("echo", ["warm"])).stdout, "warm")
        same(plain(given.client.get(claimed.sandbox_id)).pool_id, pool_id)
        given.fails(lambda: given.client.delete_pool(pool_id), "PoolInUseError")
        given.client.delete(claimed.sandbox_id)
        until("its end", lambda: status(given, claimed.sandbox_id) == "terminated")
        changed = plain(given.client.update_pool(pool_id, image, **SMALL, warm_containers=0, max_containers=2))
        same((changed.warm_containers, changed.max_containers), (0, 2))
    finally:
        given.client.delete_pool(pool_id)
    given.fails(lambda: given.client.get_pool(pool_id), "PoolNotFoundError")


def warm(given: Given, pool_id: str) -> list[Any]:
    return list(plain(given.client.get_pool(pool_id)).containers or [])
