"""What nodes that are gone have left in one family's filter table, and the transaction that takes it away. Pure.

A chain of such a node goes with the last rule in it, and then its hooks in the chains of others; the chain of a sandbox
goes when nothing leads to it any more. A rule that no comment ascribes to a container stays, and its chain with it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from .chains import CONTAINERS_SUFFIX, SANDBOX_PREFIX, Dump, after, line
from .policy import Rule

_NODE = re.compile(r"INDEXIFY-[0-9a-f]{10}\Z")
_Chains = Mapping[str, tuple[Rule, ...]]


def nodes(dump: Dump) -> set[str]:
    """The chains of all nodes, dead and alive, without those that protect their containers."""
    return {name for each in dump.chains if _NODE.match(name := each.removesuffix(CONTAINERS_SUFFIX))}


def members(node: str) -> tuple[str, str]:
    """Both chains of a node."""
    return node, f"{node}{CONTAINERS_SUFFIX}"


def addresses(dump: Dump, node: str) -> Iterator[tuple[str, str]]:
    """The containers that a node had: key and address, as a network with its mask."""
    for rule in dump.chains.get(members(node)[1], ()):
        who, address = owner(rule), after(rule, "-d")
        if who and address:
            yield who, address


def owner(rule: Rule) -> str:
    """The key of the container that a rule of a node's chain is about; empty if it tells none."""
    return after(rule, "--comment").partition(" ")[0]


def holding(dump: Dump, node: str) -> set[str]:
    """Keys of the containers that a node has rules about."""
    return {who for chain in members(node) for rule in dump.chains.get(chain, ()) if (who := owner(rule))}


def without(dump: Dump, dead: Iterable[str], gone: Collection[str]) -> Dump:
    """The table without the rules of dead nodes about containers that are gone, and without what is empty then."""
    left: _Chains = dump.chains
    for node in sorted(dead):
        left = _without_node(left, node, gone)
    return Dump(left)


def _without_node(before: _Chains, node: str, gone: Collection[str]) -> _Chains:
    mine = [each for each in members(node) if each in before]
    rules = {each: tuple(rule for rule in before[each] if owner(rule) not in gone) for each in mine}
    targets = {after(rule, "-j") for each in mine for rule in before[each]}
    left = {**before, **rules}
    if not any(rules.values()):
        left = {
            name: tuple(rule for rule in found if after(rule, "-j") != node)
            for name, found in left.items()
            if name not in mine
        }
    led_to = {after(rule, "-j") for found in left.values() for rule in found}
    for name in [each for each in left if each.startswith(SANDBOX_PREFIX) and each not in led_to]:
        if name in targets or any(after(rule, "-j") in mine for rule in left[name]):
            del left[name]
    kept = {after(rule, "-j") for found in left.values() for rule in found}
    # Somebody else's rule leads to what would go: the kernel would refuse that, and everything else with it.
    return before if any(each in kept and each not in left for each in before) else left


def transaction(before: Dump, wanted: Dump) -> str | None:
    """Input for ``iptables-restore --noflush`` that leaves ``wanted``; None if that is what there is."""
    removed = [name for name in before.chains if name not in wanted.chains]
    lines = [f":{name} - [0:0]" for name in removed]
    for name, rules in wanted.chains.items():
        if rules == before.chains[name]:
            continue
        stay = list(rules)
        for rule in before.chains[name]:
            if rule in stay:
                stay.remove(rule)
            else:
                lines.append(line("-D", name, rule))
    lines += [f"-X {name}" for name in removed]
    return "\n".join(["*filter", *lines, "COMMIT", ""]) if lines else None
