"""Chains of network policies in the packet filter. Blocking."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping

from ..network.chains import SANDBOX_PREFIX, Dump, key
from ..network.tables import FirewallError, Namespace, find_tables
from .found import Found

CHAIN = "chain"


def things(executor_ids: Collection[str], recorded: Collection[str]) -> tuple[list[Found], list[str]]:
    """Chains of sandboxes in this network namespace, and what could not be looked at. Where policies cannot be made
    there are none either, and nothing is said."""
    if os.geteuid() != 0 or shutil.which("iptables") is None:
        return [], []
    try:
        tables = find_tables(Namespace())
        dumps = {family.name: tables.dump(family) for family in tables.programs}
    except FirewallError as error:
        return [], [f"the packet filter cannot be searched: {error}"]
    return [each for name, dump in dumps.items() for each in of(dump, name, executor_ids, recorded)], []


def of(dump: Dump, family: str, executor_ids: Collection[str], recorded: Collection[str]) -> list[Found]:
    """A chain is led to by the entry of its container in the node's chain; one that nothing leads to is nobody's."""
    owners: Mapping[str, str] = {key(each): each for each in recorded}
    found: list[Found] = []
    seen: set[str] = set()
    for executor_id in executor_ids:
        for who, entry in dump.entries(executor_id).items():
            name = entry.chain or f"(rules of {who})"
            seen.add(name)
            found.append(Found(CHAIN, name, owners.get(who, who), executor_id, family))
    targets = {rule[rule.index("-j") + 1] for rules in dump.chains.values() for rule in rules if "-j" in rule[:-1]}
    # The others are led to by another node's chain, or by nothing at all.
    others = [name for name in dump.chains if name.startswith(SANDBOX_PREFIX) and name not in seen]
    found += [Found(CHAIN, name, None, "another node's" if name in targets else None, family) for name in others]
    return found
