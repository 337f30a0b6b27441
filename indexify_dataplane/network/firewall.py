"""The rules of this node's sandboxes in the kernel: applied as a whole, removed with their container, swept at a start.

The table in memory is what should be in force. It begins with what an earlier process of this node left in the kernel,
so that the first change of a new process takes nothing away from the others. All methods block and may be called from
several threads.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType

from attrs import evolve, frozen
from twisted.logger import Logger

from .chains import (
    SANDBOX_PREFIX,
    Dump,
    Endpoint,
    Entry,
    after,
    containers_chain,
    entry,
    key,
    node_chain,
    sandbox_chain,
    transaction,
)
from .policy import Family, Network, Policy, Rule, Surroundings, networks, rules
from .tables import FirewallError, Namespace, Tables, filter_bridges, find_namespace, find_tables

log = Logger()


@frozen
class _Held:
    """One container: its entries by family, and the rules of its chain where this process knows them."""

    chain: str | None
    entries: dict[Family, Entry]
    rules: dict[Family, tuple[Rule, ...]]


class Firewall:
    """See the module's text. ``bridge`` is the interface of the sandboxes' network, ``around`` what is there.

    ``locate`` and ``tables`` find the network namespace and the back end; tests say where.
    """

    def __init__(
        self,
        *,
        executor_id: str,
        bridge: str,
        around: Surroundings,
        locate: Callable[[str], Namespace] = find_namespace,
        tables: Callable[[Namespace], Tables] = find_tables,
    ) -> None:
        self._executor_id = executor_id
        self._bridge = bridge
        self._around = around
        self._locate = locate
        self._find_tables = tables
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}
        self._foreign: set[str] = set()

    def open(self) -> None:
        """Find the back end, take over what is in force, and put the node's chains where they belong. Raises
        FirewallError with what to do; nothing may be started under a policy then."""
        namespace = self._locate(self._bridge)
        self._tables = find = self._find_tables(namespace)
        filter_bridges(namespace, tuple(find.programs))
        with self._lock:
            dumps = self._dumps()
            self._take_over(dumps)
            self._write(dumps)
        log.info(
            "packet filter ready",
            kind=find.kind,
            families=[family.name for family in find.programs],
            namespace=namespace.path or "own",
            chain=node_chain(self._executor_id),
        )

    def apply(self, container_id: str, endpoint: Endpoint, policy: Policy | None) -> str:
        """Put the rules of a sandbox in force, in both families at once; the name of its chain.

        Nothing is done if they are in force. Raises InvalidPolicy and FirewallError: it must not run then.
        """
        made = {family: rules(policy, family, self._around, containers_chain(self._executor_id)) for family in Family}
        name = key(container_id)
        with self._lock:
            old = self._held.get(name)
            taken = self._foreign | {each.chain for other, each in self._held.items() if each.chain and other != name}
            chain = old.chain if old and old.chain else sandbox_chain(container_id, taken)
            new = _Held(
                chain,
                {
                    family: entry(container_id, family, endpoint, chain, made[family])
                    for family in self._tables.programs
                },
                made,
            )
            if old is not None and _same(old, new):
                self._held[name] = new
                return chain
            self._release_addresses(name, new)
            self._held[name] = new
            try:
                self._write(rules=self._rules_of(new))
            except FirewallError:
                # One family may have changed: what is in force is not known and never taken for this. Where there was
                # a chain, it is still led to; where there was none, nothing may lead to one that may not exist.
                kept = old.entries if old else {family: Entry(chain, "") for family in new.entries}
                self._held[name] = _Held(chain, {each: evolve(found, digest="") for each, found in kept.items()}, {})
                raise
        log.info(
            "network policy applied",
            container_id=container_id,
            chain=chain,
            container_ip=endpoint.addresses.get(Family.IPV4),
            allow_internet=policy is None or policy.allow_internet is not False,
            allow_count=len(policy.allow_out) if policy else 0,
            deny_count=len(policy.deny_out) if policy else 0,
        )
        return chain

    def protect(self, container_id: str, endpoint: Endpoint) -> None:
        """Keep this node's sandboxes away from a container that has no chain of its own, such as a function's."""
        new = _Held(
            None,
            {family: entry(container_id, family, endpoint, None, ()) for family in self._tables.programs},
            {},
        )
        with self._lock:
            name = key(container_id)
            if name not in self._held or not _same(self._held[name], new):
                self._release_addresses(name, new)
                self._held[name] = new
                self._write()

    def remove(self, container_id: str) -> None:
        """Take a container's rules away, also those that a node of another id made; nothing happens if there are none.
        Raises FirewallError."""
        name = key(container_id)
        with self._lock:
            held = self._held.pop(name, None)
            try:
                if held is not None:
                    self._write(removed=[held.chain] if held.chain else [])
                else:
                    self._remove_of_others(self._dumps(), {name})
            except FirewallError:
                if held is not None:
                    self._held[name] = held
                raise

    def sweep(self, alive: Callable[[], Collection[str]]) -> list[str]:
        """Remove what belongs to containers that are not alive, and chains that nothing leads to; their keys and names.

        ``alive`` is asked after the kernel: what has rules and is not alive then is dead. Rules of other nodes are
        looked at if they are about addresses of this network. Raises FirewallError.
        """
        with self._lock:
            dumps = self._dumps()
            living = {key(each) for each in alive()}
            gone = [name for name in self._held if name not in living]
            chains = {each for name in gone if (each := self._held[name].chain)}
            stray = {chain for dump in dumps.values() for chain in _unreachable(dump)} - chains
            for name in gone:
                del self._held[name]
            if gone or stray:
                self._write(removed=sorted(chains | stray))
            subnets = networks(self._around.subnets, "subnets")
            strangers = {
                who
                for dump in dumps.values()
                for who, _, rule in dump.of_others(self._executor_id)
                if who not in living and any(_within(after(rule, "-d"), each) for each in subnets)
            }
            if strangers:
                self._remove_of_others(dumps, strangers)
        return [*gone, *sorted(strangers), *sorted(stray)]

    def _remove_of_others(self, dumps: dict[Family, Dump], names: Collection[str]) -> None:
        deleted: dict[Family, list[tuple[str, Rule]]] = {}
        chains: set[str] = set()
        for family, dump in dumps.items():
            found = [(chain, rule) for who, chain, rule in dump.of_others(self._executor_id) if who in names]
            deleted[family] = found
            chains |= {target for _, rule in found if (target := after(rule, "-j")).startswith(SANDBOX_PREFIX)}
        if chains or any(deleted.values()):
            self._write(removed=sorted(chains), deleted=deleted)
            self._foreign -= chains

    def check(self) -> list[str]:
        """Compare the kernel with the table and repair what somebody else has changed; what was wrong."""
        with self._lock:
            dumps = self._dumps()
            wrong = [problem for family, dump in dumps.items() for problem in self._problems(family, dump)]
            if wrong:
                everything: dict[Family, dict[str, tuple[Rule, ...]]] = {family: {} for family in dumps}
                for held in self._held.values():
                    for family, found in self._rules_of(held).items():
                        everything[family].update(found)
                self._write(dumps, rules=everything)
        return wrong

    def stray(self) -> list[str]:
        """Chains of sandboxes that no chain of any node leads to, in either family."""
        with self._lock:
            return sorted(self._stray())

    def _stray(self) -> set[str]:
        return {chain for dump in self._dumps().values() for chain in _unreachable(dump)}

    def _dumps(self) -> dict[Family, Dump]:
        return {family: self._tables.dump(family) for family in self._tables.programs}

    def _take_over(self, dumps: dict[Family, Dump]) -> None:
        self._held.clear()
        self._foreign = {chain for dump in dumps.values() for chain in dump.chains if chain.startswith(SANDBOX_PREFIX)}
        for family, dump in dumps.items():
            for name, found in dump.entries(self._executor_id).items():
                old = self._held.get(name, _Held(found.chain, {}, {}))
                in_force = {family: dump.chains.get(found.chain, ())} if found.chain else {}
                self._held[name] = _Held(
                    old.chain or found.chain, {**old.entries, family: found}, {**old.rules, **in_force}
                )
        self._foreign -= {each.chain for each in self._held.values() if each.chain}

    def _release_addresses(self, name: str, new: _Held) -> None:
        """An address that the engine gave to a new container is no longer that of an old one, which is dead."""
        for family, mine in new.entries.items():
            where = {rule[:2] for rule in mine.drops}
            for other, held in self._held.items():
                found = held.entries.get(family)
                if other != name and found and where & {rule[:2] for rule in found.drops}:
                    self._held[other] = _Held(
                        held.chain, {**held.entries, family: Entry(held.chain, found.digest)}, held.rules
                    )

    def _rules_of(self, held: _Held) -> dict[Family, dict[str, tuple[Rule, ...]]]:
        if held.chain is None:
            return {}
        return {family: {held.chain: held.rules[family]} for family in held.entries if family in held.rules}

    def _write(
        self,
        dumps: dict[Family, Dump] | None = None,
        rules: dict[Family, dict[str, tuple[Rule, ...]]] | None = None,
        removed: Collection[str] = (),
        deleted: Mapping[Family, Collection[tuple[str, Rule]]] = MappingProxyType({}),
    ) -> None:
        texts: dict[Family, str] = {}
        for family in self._tables.programs:
            unhook, hook = dumps[family].misplaced(self._executor_id) if dumps else ([], [])
            texts[family] = transaction(
                self._executor_id,
                [held.entries[family] for held in self._held.values() if family in held.entries],
                rules=(rules or {}).get(family, {}),
                removed=removed,
                deleted=deleted.get(family, ()),
                unhook=unhook,
                hook=hook,
            )
        self._tables.restore(texts)

    def _problems(self, family: Family, dump: Dump) -> list[str]:
        unhook, hook = dump.misplaced(self._executor_id)
        wrong = [f"{family.name}: {chain} does not lead to {node_chain(self._executor_id)} first"
                 for chain in dict.fromkeys([*unhook, *hook])]  # fmt: skip
        found = dump.entries(self._executor_id)
        for name, held in self._held.items():
            mine = held.entries.get(family)
            if mine is None:
                continue
            there = found.get(name, Entry(None, ""))
            short = held.chain is not None and len(dump.chains.get(held.chain, ())) != len(held.rules.get(family, ()))
            if short or (len(there.jumps), len(there.drops)) != (len(mine.jumps), len(mine.drops)):
                wrong.append(f"{family.name}: the rules of {name} are not as they were made")
        return wrong


def _same(old: _Held, new: _Held) -> bool:
    """Whether the new rules are in force: same digests, and as many rules as there should be."""
    return old.chain == new.chain and all(
        (found := old.entries.get(family)) is not None
        and found.digest == mine.digest
        and (len(found.jumps), len(found.drops)) == (len(mine.jumps), len(mine.drops))
        and (new.chain is None or len(old.rules.get(family, ())) == len(new.rules[family]))
        for family, mine in new.entries.items()
    )


def _unreachable(dump: Dump) -> list[str]:
    targets = {rule[rule.index("-j") + 1] for rules in dump.chains.values() for rule in rules if "-j" in rule[:-1]}
    return [chain for chain in dump.chains if chain.startswith(SANDBOX_PREFIX) and chain not in targets]


def _within(destination: str, network: Network) -> bool:
    if not destination:
        return False
    address = ipaddress.ip_network(destination)
    return address.version == network.version and address.network_address in network
