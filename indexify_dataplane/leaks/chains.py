"""Chains of network policies in the packet filter. Blocking."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping

from ..network import graves, presence
from ..network.chains import SANDBOX_PREFIX, Dump, after, key, node_chain
from ..network.tables import HOST_NAMESPACE, FirewallError, Namespace, find_tables
from .found import Found

CHAIN = "chain"
THERE, GONE = "another node's", "another node's that does not run"


def things(executor_ids: Collection[str], recorded: Collection[str]) -> tuple[list[Found], list[str]]:
    """Chains in the network namespaces in which the node works, and what could not be looked at. Where policies cannot
    be made there are none either, and nothing is said."""
    if os.geteuid() != 0 or shutil.which("iptables") is None:
        return [], []
    found, problems = _in(Namespace(), executor_ids, recorded)
    host = Namespace(HOST_NAMESPACE)
    text = host.read("/proc/self/net/dev") if os.path.exists(HOST_NAMESPACE) else None
    if text is not None and not os.path.samefile(HOST_NAMESPACE, "/proc/self/ns/net"):
        more, wrong = _in(host, executor_ids, recorded)
        found, problems = found + more, problems + wrong
    return found, problems


def _in(
    namespace: Namespace, executor_ids: Collection[str], recorded: Collection[str]
) -> tuple[list[Found], list[str]]:
    try:
        dumps = find_tables(namespace).dumps()
    except FirewallError as error:
        return [], [f"the packet filter cannot be searched: {error}"]
    there = presence.present(namespace, {node for dump in dumps.values() for node in graves.nodes(dump)})
    return [each for family, dump in dumps.items() for each in of(dump, family.name, executor_ids, recorded, there)], []


def of(
    dump: Dump, family: str, executor_ids: Collection[str], recorded: Collection[str], there: Collection[str]
) -> list[Found]:
    """A chain is led to by the entry of its container in the node's chain; one that nothing leads to is nobody's.

    ``there`` are the chains of nodes that run. Those of this executor's earlier ids have no business there any more;
    those of another node that does not run may be needed again.
    """
    owners: Mapping[str, str] = {key(each): each for each in recorded}
    mine = {node_chain(each): each for each in executor_ids}
    found: list[Found] = []
    seen: set[str] = set()
    for executor_id in executor_ids:
        for who, entry in dump.entries(executor_id).items():
            name = entry.chain or f"(rules of {who})"
            seen.add(name)
            found.append(Found(CHAIN, name, owners.get(who, who), executor_id, family))
    whose: dict[str, str] = {}
    for node in sorted(graves.nodes(dump)):
        if node not in mine:
            owner = THERE if node in there else GONE
            found.append(Found(CHAIN, node, None, owner, family))
            whose |= {after(rule, "-j"): owner for rule in dump.chains.get(node, ())}
        elif node not in there and not graves.holding(dump, node):
            found.append(Found(CHAIN, node, None, mine[node], family))
    targets = {after(rule, "-j") for rules in dump.chains.values() for rule in rules}
    # The others are led to by another node's chain, or by nothing at all.
    others = [name for name in dump.chains if name.startswith(SANDBOX_PREFIX) and name not in seen]
    found += [Found(CHAIN, name, None, whose.get(name, THERE) if name in targets else None, family) for name in others]
    return found
