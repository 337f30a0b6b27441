"""What changes on a sandbox that runs: a claim, another network policy, the rest of an idle warm one.

A warm container of a pool that nobody has claimed for a while is frozen. A claim makes its rules those of the sandbox,
thaws it, and only then is it routed to and reported. The same effect, Conform, puts rules and rest back after a
recovery, whatever the last life of the node had got done.

Interleaving: Conform(freeze), a claim, Conform(policy, thaw), Conformed(freeze): the first answer has an old number and
changes nothing; who performs keeps the order for each container, so the last one ordered is the last one done.
"""

from __future__ import annotations

from attrs import evolve

from . import containers, snapshots
from .effects import Conform, Watch
from .events import Conformed, ConformFailed, Due
from .model import Container, ContainerStarted, Handle, Kind, Running, SandboxSpec, Starting, TerminationReason
from .node import DriverRules
from .turn import Turn


def redescribe(turn: Turn, container: Container, sandbox: SandboxSpec) -> None:
    """Replace the sandbox part of a description. From no sandbox id to one is a claim and is answered."""
    state = container.state
    if sandbox == container.spec.sandbox or not isinstance(state, Starting | Running):
        return
    before = container.spec.sandbox
    claim = container.spec.sandbox_id is None and bool(sandbox.sandbox_id)
    policy = sandbox.network_policy
    changed = policy != (before.network_policy if before else None)
    container = evolve(container, spec=evolve(container.spec, sandbox=sandbox))
    if claim:
        container = evolve(container, claimed_at=turn.now)
    driver = _driver(turn)
    if changed and policy is not None and not driver.enforces_policies:
        # A policy that cannot be in force means no sandbox, as at a start.
        containers.end(turn, turn.put(container), TerminationReason.STARTUP_FAILED_INTERNAL_ERROR)
        return
    apply = changed and driver.enforces_policies
    match state:
        case Starting():
            turn.put(evolve(container, state=evolve(state, outdated=state.outdated or apply)))
        case Running() if apply or (state.frozen and sandbox.sandbox_id):
            awake = evolve(state, frozen=False, claiming=state.claiming or claim)
            _conform(turn, evolve(container, state=awake), awake)
        case Running():
            turn.put(container)
            if claim:
                turn.report(ContainerStarted(container.id))
    containers.set_expiry_alarm(turn, container)


def refuse_policy(turn: Turn, container_id: str) -> None:
    """The server wants a network policy for it that cannot be in force."""
    container = turn.node.containers.get(container_id)
    if container is None or container.spec.kind is not Kind.SANDBOX:
        return
    if isinstance(container.state, Starting | Running):
        containers.end(turn, container, TerminationReason.STARTUP_FAILED_INTERNAL_ERROR)


def started(turn: Turn, container: Container, state: Running) -> None:
    """It has just started, and is watched. If its rules were changed meanwhile they come into force before it is
    used."""
    if state.claiming:
        _conform(turn, container, state)
    else:
        turn.report(ContainerStarted(container.id))
    set_rest_alarm(turn, container)


def resumed(turn: Turn, container: Container, state: Running) -> None:
    """It runs, from an earlier life of the node or after a failed snapshot: rules and rest are made what they should
    be."""
    driver = _driver(turn)
    turn.do(Watch(container.id, container.spec, state.handle, frozen=state.frozen and driver.freezes))
    if container.spec.kind is not Kind.SANDBOX:
        return
    # A policy that this life of the node cannot enforce is asked for all the same: the answer ends the sandbox.
    bound = container.spec.sandbox is not None and container.spec.sandbox.network_policy is not None
    if driver.enforces_policies or bound or driver.freezes or state.frozen or state.claiming:
        wanted = evolve(state, frozen=state.frozen and driver.freezes)
        _conform(turn, evolve(container, state=wanted), wanted)
    set_rest_alarm(turn, container)


def reapply(turn: Turn, container: Container, handle: Handle) -> None:
    """Put the rules of an adopted sandbox back that does not change otherwise; nobody waits for the answer."""
    sandbox = container.spec.sandbox
    if sandbox is not None and _driver(turn).enforces_policies:
        turn.do(Conform(container.id, 0, handle, sandbox.network_policy, False))


def rest(turn: Turn, container: Container, state: Running) -> None:
    """Freeze a warm container that has been idle for long enough."""
    at = _rests_at(turn, container)
    if at is None or state.frozen or turn.now < at:
        return
    asleep = evolve(state, frozen=True)
    turn.do(Watch(container.id, container.spec, state.handle, frozen=True))
    _conform(turn, evolve(container, state=asleep), asleep)


def conformed(turn: Turn, event: Conformed) -> None:
    container = turn.node.containers.get(event.container_id)
    if container is None or container.op != event.op or not isinstance(container.state, Running):
        return
    state = evolve(container.state, frozen=event.frozen, claiming=False)
    if state != container.state:
        turn.put(evolve(container, state=state))
    if not event.frozen:
        # Nobody asked for its health while it was frozen.
        turn.do(Watch(container.id, container.spec, state.handle))
    if container.state.claiming:
        turn.report(ContainerStarted(container.id))
        snapshots.claimed(turn, container.id)


def conform_failed(turn: Turn, event: ConformFailed) -> None:
    """Its policy is not in force, or it cannot be woken: it must not go on."""
    container = turn.node.containers.get(event.container_id)
    if container is None or container.op != event.op or not isinstance(container.state, Running):
        return
    reason = TerminationReason.INTERNAL_ERROR
    if container.state.claiming:
        reason = TerminationReason.STARTUP_FAILED_INTERNAL_ERROR
    containers.kill(turn, container, container.state.handle, reason)


def set_rest_alarm(turn: Turn, container: Container) -> None:
    at = _rests_at(turn, container)
    if at is not None:
        turn.alarm(max(turn.now, at), Due(container.id))


def _conform(turn: Turn, container: Container, state: Running) -> None:
    op = turn.next_op()
    turn.put(evolve(container, op=op))
    sandbox = container.spec.sandbox
    policy = sandbox.network_policy if sandbox else None
    turn.do(Conform(container.id, op, state.handle, policy, state.frozen))


def _rests_at(turn: Turn, container: Container) -> float | None:
    """When it will have been idle for long enough to be frozen; None if it is not to be."""
    spec, state = container.spec, container.state
    warm = spec.kind is Kind.SANDBOX and spec.pool_id is not None and spec.sandbox_id is None
    if not warm or not isinstance(state, Running) or not _driver(turn).freezes:
        return None
    return state.since + turn.node.rules.freeze_after


def _driver(turn: Turn) -> DriverRules:
    return turn.node.rules.drivers.get(Kind.SANDBOX, DriverRules())
