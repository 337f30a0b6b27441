"""What the firewall holds of one container, and whether the kernel has it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from attrs import evolve, frozen

from .chains import SANDBOX_PREFIX, Dump, Entry, transaction
from .policy import Family, Rule

NOTHING_PASSES: tuple[Rule, ...] = (("-j", "DROP"),)


@frozen
class Held:
    """One container: its entries by family, and the rules of its chain where this process knows them."""

    chain: str | None
    entries: dict[Family, Entry]
    rules: dict[Family, tuple[Rule, ...]]


def in_force(dump: Dump, found: Mapping[str, Entry], name: str, held: Held) -> tuple[Entry, tuple[Rule, ...]]:
    """A container's entry and the rules of its chain, as the kernel has them. ``found`` are the dump's entries."""
    return found.get(name, Entry(None, "")), dump.chains.get(held.chain, ()) if held.chain else ()


def same(old: Held, new: Held) -> bool:
    """Whether the new rules are in force: same digests, and as many rules as there should be."""
    return old.chain == new.chain and all(
        (found := old.entries.get(family)) is not None
        and found.digest == mine.digest
        and (len(found.jumps), len(found.drops)) == (len(mine.jumps), len(mine.drops))
        and (new.chain is None or len(old.rules.get(family, ())) == len(new.rules[family]))
        for family, mine in new.entries.items()
    )


def unsure(held: Held) -> Held:
    """After a change that failed, in one family or in both: whatever is wanted next is not taken for being there."""
    return evolve(held, entries={family: evolve(each, digest="") for family, each in held.entries.items()})


def stray_chains(dumps: Mapping[Family, Dump]) -> set[str]:
    """Chains that nothing leads to in any family: a flush of one does not make them nobody's."""
    led_to = {family: set(dump.chains) - set(_unreachable(dump)) for family, dump in dumps.items()}
    return {chain for dump in dumps.values() for chain in _unreachable(dump)} - set().union(*led_to.values())


def _unreachable(dump: Dump) -> list[str]:
    targets = {rule[rule.index("-j") + 1] for rules in dump.chains.values() for rule in rules if "-j" in rule[:-1]}
    return [chain for chain in dump.chains if chain.startswith(SANDBOX_PREFIX) and chain not in targets]


def whole(
    executor_id: str,
    held: Mapping[str, Held],
    dump: Dump,
    family: Family,
    *,
    rules: Mapping[str, tuple[Rule, ...]],
    removed: Collection[str],
    anew: bool,
) -> str:
    """The transaction that puts all of ``held`` in force where ``dump`` is, and with it the chains that entries lead to
    and that are not there. With ``anew`` also hooks that are right are put where they are: the kernel refuses the whole
    if one has gone since the look."""
    entries = [each.entries[family] for each in held.values() if family in each.entries]
    missing = {
        each.chain: each.rules.get(family) or NOTHING_PASSES
        for each in held.values()
        if each.chain and each.chain not in dump.chains and family in each.entries and each.entries[family].jumps
    }
    unhook, hook = dump.misplaced(executor_id)
    right = [chain for chain in dump.places() if chain not in hook] if anew else []
    return transaction(
        executor_id, entries, rules={**missing, **rules}, removed=removed, unhook=[*unhook, *right],
        hook=[*hook, *right],
    )  # fmt: skip


def release_addresses(held: dict[str, Held], name: str, new: Held) -> None:
    """An address that the engine gave to a new container is no longer that of an old one, which is dead."""
    for family, mine in new.entries.items():
        where = {rule[:2] for rule in mine.drops}
        for other, each in list(held.items()):
            found = each.entries.get(family)
            if other != name and found and where & {rule[:2] for rule in found.drops}:
                held[other] = Held(each.chain, {**each.entries, family: Entry(each.chain, found.digest)}, each.rules)
