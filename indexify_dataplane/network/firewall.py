"""The rules of this node's sandboxes in the kernel: applied as a whole, removed with their container, swept at a start.

The table in memory is what should be in force. It begins with what an earlier process of this node left in the kernel,
so that the first change of a new process takes nothing away from the others. All methods block and may be called from
several threads.

What others do to the kernel's rules while the node runs (a flush, a reload of a host's own firewall) is found by
``check``, and by each change, which looks whether the node's chain is asked first. (Legacy iptables cannot tell: there
the node's hooks are taken out and put in first again.) So nothing starts under rules that are not asked. A change adds
and takes away what is different; where that is refused, or what is in force is not known, the node's chains are written
anew, and with them each chain that is led to and not there. One whose rules are not known lets nothing pass.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Collection, Mapping

from twisted.logger import Logger

from . import dead_nodes, presence
from .chains import (
    SANDBOX_PREFIX,
    Dump,
    Endpoint,
    Entry,
    change,
    containers_chain,
    entry,
    fingerprint,
    key,
    node_chain,
    sandbox_chain,
)
from .held import Held, in_force, release_addresses, same, stray_chains, unsure, whole
from .hooks import Hooks, hooks
from .policy import Family, Policy, Rule, Surroundings, networks, rules
from .tables import FirewallError, Namespace, Tables, filter_bridges, find_namespace, find_tables

log = Logger()

TRIES = 5
"""So often all is written when others change the rules meanwhile."""
TOLD = 5
"""So many of the things that were wrong are in the log line."""


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
        self._held: dict[str, Held] = {}
        self._foreign: set[str] = set()
        self._name: socket.socket | None = None
        self._hooks: Hooks | None = None
        self._places: dict[Family, tuple[str, ...]] = {}
        self._written: dict[Family, dict[str, Entry]] | None = None
        self._changes = 0
        self._good: dict[Family, bytes] | None = None
        self._seen: dict[tuple[Family, str], tuple[Held, Entry, tuple[Rule, ...]]] = {}
        self.repairs = 0
        """How often rules had to be put back. Read from other threads."""

    def open(self) -> None:
        """Take the node's name, find the back end, take over what is in force, and put the node's chains where they
        belong. Raises FirewallError with what to do; nothing may be started under a policy then."""
        namespace = self._locate(self._bridge)
        self._tables = find = self._find_tables(namespace)
        filter_bridges(namespace, tuple(find.programs))
        self._name = presence.take(namespace, node_chain(self._executor_id), self._executor_id)
        try:
            with self._lock:
                self._hooks = hooks(namespace, node_chain(self._executor_id)) if find.kind == "nft" else None
                dumps = find.dumps()
                self._take_over(dumps)
                self._write(dumps)
        except BaseException:
            self._give_back()
            raise
        families = [family.name for family in find.programs]
        chain, where = node_chain(self._executor_id), namespace.path or "own"
        log.info("packet filter ready", kind=find.kind, families=families, namespace=where, chain=chain)

    def close(self) -> None:
        """Give the node's name back. The rules of containers stay, for these go on; if there are none, the node's
        chains and hooks go. Never raises: what cannot be removed is in the log. Idempotent."""
        with self._lock:
            try:
                if self._name is not None and not self._held:
                    dead_nodes.bury(self._tables.dumps(), {node_chain(self._executor_id)}, (), self._restore)
            except FirewallError as error:
                node = self._executor_id
                log.warn("the node's chains, which are empty, cannot be removed", executor_id=node, error=str(error))
            finally:
                self._give_back()

    def _give_back(self) -> None:
        for each in (self._hooks, self._name):
            if each is not None:
                each.close()
        self._hooks = self._name = None

    def apply(self, container_id: str, endpoint: Endpoint, policy: Policy | None) -> str:
        """Put the rules of a sandbox in force, in both families at once; the name of its chain.

        Nothing is written if they are in force. Raises InvalidPolicy and FirewallError: it must not run then.
        """
        made = {family: rules(policy, family, self._around, containers_chain(self._executor_id)) for family in Family}
        name = key(container_id)
        with self._lock:
            old = self._held.get(name)
            taken = self._foreign | {each.chain for other, each in self._held.items() if each.chain and other != name}
            chain = old.chain if old and old.chain else sandbox_chain(container_id, taken)
            new = Held(
                chain,
                {
                    family: entry(container_id, family, endpoint, chain, made[family])
                    for family in self._tables.programs
                },
                made,
            )
            if old is not None and same(old, new):
                self._held[name] = new
                if self._written is None or self._hooks is None or not self._leads():
                    self._write(rules=self._rules_of(new) if self._hooks else None)
                return chain
            release_addresses(self._held, name, new)
            self._held[name] = new
            try:
                self._write(rules=self._rules_of(new))
            except FirewallError:
                # One family may have changed: what is in force is not known and never taken for this. Where there was
                # a chain, it is still led to; where there was none, nothing may lead to one that may not exist.
                kept = old.entries if old else {family: Entry(chain, "") for family in new.entries}
                self._held[name] = unsure(Held(chain, kept, old.rules if old else {}))
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
        new = Held(
            None,
            {family: entry(container_id, family, endpoint, None, ()) for family in self._tables.programs},
            {},
        )
        with self._lock:
            name = key(container_id)
            old = self._held.get(name)
            if old is None or not same(old, new) or self._written is None or self._hooks is None or not self._leads():
                release_addresses(self._held, name, new)
                self._held[name] = new
                try:
                    self._write()
                except FirewallError:
                    del self._held[name]
                    if old is not None:
                        self._held[name] = unsure(old)
                    raise

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
                    # A node of another id may have started it, which has become this one.
                    with dead_nodes.borrowed(self._tables, holding=name) as dead:
                        if dead:
                            self._foreign -= dead_nodes.bury(self._tables.dumps(), dead, {name}, self._restore)
            except FirewallError:
                if held is not None:
                    self._held[name] = unsure(held)
                raise

    def sweep(self, alive: Callable[[], Collection[str]], within: Collection[str] = ()) -> list[str]:
        """Remove what belongs to containers that are not alive, and chains that nothing leads to; their keys and names.

        ``alive`` is asked after the kernel: what has rules and is not alive then is dead. Of nodes that are gone, rules
        about addresses of this network and of those in ``within`` (CIDR), where ``alive`` would know the container, are
        removed if it does not, and their chains when nothing is left in them. Nodes that are there are left alone.
        Raises FirewallError.
        """
        subnets = networks([*self._around.subnets, *within], "subnets")
        with self._lock:
            with dead_nodes.borrowed(self._tables, besides=node_chain(self._executor_id)) as dead:
                dumps = self._tables.dumps()
                living = {key(each) for each in alive()}
                strangers = dead_nodes.strangers(dumps, dead, living, subnets)
                buried = dead_nodes.bury(dumps, dead, strangers, self._restore)
            gone = [name for name in self._held if name not in living]
            chains = {each for name in gone if (each := self._held[name].chain)}
            for name in gone:
                del self._held[name]
            stray = stray_chains(dumps) - chains - buried
            self._foreign -= buried | stray
            if gone or stray:
                self._write(removed=sorted(chains | stray))
        return [*gone, *sorted(strangers), *sorted(stray | buried)]

    def check(self) -> list[str]:
        """Compare the kernel with the table and repair what somebody else has changed; what was wrong. Raises
        FirewallError. Nothing else waits for a look that finds everything as it was."""
        for _ in range(3):
            before, saved = self._changes, self._tables.saved()
            marks = {family: fingerprint(text) for family, text in saved.items()}
            if marks == self._good:
                return []
            dumps = {family: Dump.parse(text) for family, text in saved.items()}
            with self._lock:
                if before == self._changes:
                    return self._repair(dumps, marks)
        with self._lock:
            return self._repair(self._tables.dumps())

    def _repair(self, dumps: dict[Family, Dump], marks: dict[Family, bytes] | None = None) -> list[str]:
        wrong = [problem for family, dump in dumps.items() for problem in self._problems(family, dump)]
        if wrong:
            self._rewrite(dumps, wrong)
            return wrong
        self._good = marks
        # The kernel tells rules in words of its own: what it said of these first is what it has to say later.
        self._seen = {
            (family, name): (held, *in_force(dump, found, name, held))
            for family, dump in dumps.items()
            for found in [dump.entries(self._executor_id)]
            for name, held in self._held.items()
        }
        return []

    def _rewrite(self, dumps: dict[Family, Dump], wrong: list[str], removed: Collection[str] = ()) -> None:
        """Everything anew, and where it belongs."""
        everything: dict[Family, dict[str, tuple[Rule, ...]]] = {family: {} for family in dumps}
        for held in self._held.values():
            for family, found in self._rules_of(held).items():
                everything[family].update(found)
        self._write(dumps, rules=everything, removed=removed)
        self.repairs += 1
        log.warn(
            "rules of the packet filter had been changed by somebody else, and are back",
            wrong="; ".join([*wrong[:TOLD], *([f"and {len(wrong) - TOLD} more"] if len(wrong) > TOLD else [])]),
        )

    def stray(self) -> list[str]:
        """Chains of sandboxes that no chain of any node leads to, in either family."""
        return sorted(stray_chains(self._tables.dumps()))

    def _take_over(self, dumps: dict[Family, Dump]) -> None:
        self._held.clear()
        self._foreign = {chain for dump in dumps.values() for chain in dump.chains if chain.startswith(SANDBOX_PREFIX)}
        for family, dump in dumps.items():
            for name, found in dump.entries(self._executor_id).items():
                old = self._held.get(name, Held(found.chain, {}, {}))
                in_force = {family: dump.chains.get(found.chain, ())} if found.chain else {}
                self._held[name] = Held(
                    old.chain or found.chain, {**old.entries, family: found}, {**old.rules, **in_force}
                )
        self._foreign -= {each.chain for each in self._held.values() if each.chain}

    def _rules_of(self, held: Held) -> dict[Family, dict[str, tuple[Rule, ...]]]:
        if held.chain is None:
            return {}
        return {family: {held.chain: held.rules[family]} for family in held.entries if family in held.rules}

    def _leads(self) -> bool:
        """Whether the node is asked first, after a change that would put it there. Raises FirewallError."""
        return self._hooks is None or self._hooks.lead(self._places, node_chain(self._executor_id))

    def _write(
        self,
        dumps: dict[Family, Dump] | None = None,
        rules: dict[Family, dict[str, tuple[Rule, ...]]] | None = None,
        removed: Collection[str] = (),
    ) -> None:
        """Put the table in force. With ``dumps`` all of it is written, and the hooks put where they belong; without,
        what is different, and all if that does not do."""
        written, self._written = self._written, None
        wanted = {
            family: {name: held.entries[family] for name, held in self._held.items() if family in held.entries}
            for family in self._tables.programs
        }
        if dumps is None and written is not None and self._changed(written, wanted, rules or {}, removed):
            self._written = wanted
            return
        found = self._tables.dumps() if dumps is None else dumps
        if dumps is None and written is not None:
            lost = [problem for family, dump in found.items() for problem in self._lost(family, dump, rules)]
            if lost:
                self._rewrite(found, lost, removed)
                return
        for _ in range(TRIES):
            self._places = {family: dump.places() for family, dump in found.items()}
            texts = {
                family: whole(
                    self._executor_id, self._held, found[family], family, rules=(rules or {}).get(family, {}),
                    removed=removed, anew=self._hooks is None,
                )
                for family in wanted
            }  # fmt: skip
            self._restore(texts)
            if self._leads():
                self._written = wanted
                return
            found = self._tables.dumps()  # somebody else has written since the look
        raise FirewallError("the node's chain does not stay first: others change the rules all the time")

    def _changed(
        self,
        written: Mapping[Family, Mapping[str, Entry]],
        wanted: Mapping[Family, Mapping[str, Entry]],
        rules: Mapping[Family, Mapping[str, tuple[Rule, ...]]],
        removed: Collection[str],
    ) -> bool:
        """Write what is different; whether that did."""
        texts = {
            family: change(
                self._executor_id, written[family], entries, rules=rules.get(family, {}), removed=removed,
                hooks=() if self._hooks else self._places[family],
            )
            for family, entries in wanted.items()
        }  # fmt: skip
        try:
            self._restore(texts)
            return self._leads()
        except FirewallError:
            return False

    def _restore(self, texts: Mapping[Family, str]) -> None:
        """A look that began before and ends after it says nothing."""
        if self._name is None:
            raise FirewallError("the packet filter is closed")
        self._changes += 1
        self._good = None
        try:
            if texts:
                self._tables.restore(texts)
        finally:
            self._changes += 1

    def _lost(self, family: Family, dump: Dump, new: Mapping[Family, Mapping[str, object]] | None) -> list[str]:
        """What a change takes for granted and is not there. ``new`` are chains that the change would have made."""
        made = (new or {}).get(family, {})
        chains = [each.chain for each in self._held.values() if each.chain and family in each.entries]
        return [
            *dump.unhooked(family, self._executor_id),
            *(f"{family.name}: {each} is not there" for each in chains if each not in dump.chains and each not in made),
        ]

    def _problems(self, family: Family, dump: Dump) -> list[str]:
        wrong = dump.unhooked(family, self._executor_id)
        found = dump.entries(self._executor_id)
        chains = (node_chain(self._executor_id), containers_chain(self._executor_id))
        ours = sum(len(each.jumps) + len(each.drops) for name, each in found.items() if name in self._held)
        if ours != sum(len(dump.chains.get(each, ())) for each in chains):
            wrong.append(f"{family.name}: {chains[0]} has rules that are of no container here")
        for name, held in self._held.items():
            mine = held.entries.get(family)
            if mine is None:
                continue
            there, rules = in_force(dump, found, name, held)
            short = held.chain is not None and len(rules) != len(held.rules.get(family, ()))
            seen = self._seen.get((family, name))
            other = seen is not None and seen[0] is held and seen[1:] != (there, rules)
            if short or other or (len(there.jumps), len(there.drops)) != (len(mine.jumps), len(mine.drops)):
                wrong.append(f"{family.name}: the rules of {name} are not as they were made")
        return wrong
