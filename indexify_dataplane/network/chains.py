"""The text that ``iptables-restore`` reads and ``iptables-save`` writes: names, entries, transactions. Pure.

    INPUT, DOCKER-USER (or FORWARD) ──▶ INDEXIFY-<node> ──▶ INDEXIFY-SB-<sandbox>     by the sandbox's MAC and address
                                                                 └──▶ INDEXIFY-<node>-C   drops what goes to this node's
                                                                                          own containers

``<node>`` is made from the executor id, so that nodes that share a host leave each other alone. Every rule in the two
chains of the node carries the container's id and the digest of its rules as its comment, from where the next process of
the node reads what is in force. A transaction writes these two anew (``transaction``), or adds and takes away what is
different (``change``), whose cost does not grow with the number of containers.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence

from attrs import field, frozen

from .policy import Family, Rule

PREFIX = "INDEXIFY-"
"""Of all chains of this product. Only such may be asked before a node's own."""
SANDBOX_PREFIX = f"{PREFIX}SB-"
NAME_CHARACTERS = 16
"""So many characters of the id are in a chain's name: the packet filter allows 28 characters in all."""

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*\Z")
_QUOTED = re.compile(r'"([^"\\]*)"|(\S+)')
CONTAINERS_SUFFIX = "-C"
HOOKS = ("INPUT", "FORWARD", "DOCKER-USER")


def _hash(text: str, characters: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:characters]


def node_chain(executor_id: str) -> str:
    """The chain through which a node's sandboxes are found."""
    return f"{PREFIX}{_hash(executor_id, 10)}"


def containers_chain(executor_id: str) -> str:
    """The chain that drops what goes to the node's own containers."""
    return f"{node_chain(executor_id)}{CONTAINERS_SUFFIX}"


def key(container_id: str) -> str:
    """The id as it stands in comments; a hash of one that has other characters than ids have."""
    return (
        container_id if _PLAIN.match(container_id) and len(container_id) <= 100 else f"hash-{_hash(container_id, 32)}"
    )


def sandbox_chain(container_id: str, taken: Collection[str]) -> str:
    """The name of a sandbox's chain: from its id, or from a hash of it where that name is another's."""
    plain = container_id[:NAME_CHARACTERS]
    name = SANDBOX_PREFIX + plain
    if not _PLAIN.match(plain) or name in taken:
        name = SANDBOX_PREFIX + _hash(container_id, NAME_CHARACTERS)
    return name


@frozen
class Endpoint:
    """Where a container is on its network: MAC, and address per family where it has one."""

    mac: str | None = None
    addresses: Mapping[Family, str] = field(factory=dict)


@frozen
class Entry:
    """One container in one family's node chains. ``chain`` is None for one that is only protected from sandboxes."""

    chain: str | None
    digest: str
    jumps: tuple[Rule, ...] = ()
    drops: tuple[Rule, ...] = ()


def digest(rules: Iterable[Rule], jumps: Iterable[Rule]) -> str:
    return _hash(repr((tuple(rules), tuple(jumps))), 12)


def matches(family: Family, endpoint: Endpoint) -> tuple[Rule, ...]:
    """What packets of this container look like: its MAC with any address, its address with any MAC."""
    address = endpoint.addresses.get(family)
    if endpoint.mac is None:
        return (("-s", address),) if address else ()
    by_mac: Rule = ("-m", "mac", "--mac-source", endpoint.mac)
    if not address:
        return (by_mac,)
    return (by_mac, ("-s", address, "-m", "mac", "!", "--mac-source", endpoint.mac))


def entry(container_id: str, family: Family, endpoint: Endpoint, chain: str | None, rules: Sequence[Rule]) -> Entry:
    found = matches(family, endpoint) if chain else ()
    mark = digest(rules, found)
    comment = ("-m", "comment", "--comment", f"{key(container_id)} {mark}")
    address = endpoint.addresses.get(family)
    return Entry(
        chain,
        mark,
        tuple((*each, *comment, "-j", chain) for each in found if chain),
        ((("-d", address, *comment, "-j", "DROP"),) if address else ()),
    )


def transaction(
    executor_id: str,
    entries: Iterable[Entry],
    *,
    rules: Mapping[str, Sequence[Rule]],
    removed: Iterable[str] = (),
    unhook: Sequence[str] = (),
    hook: Sequence[str] = (),
) -> str:
    """Input for ``iptables-restore --noflush``: the node's chains with all ``entries``, the sandbox chains in ``rules``
    by name; gone are those in ``removed``. The node's chain is taken from the chains in ``unhook``, where it must be,
    and becomes the first of each chain in ``hook``."""
    node, containers = node_chain(executor_id), containers_chain(executor_id)
    removed = list(removed)
    lines = ["*filter", *(f":{name} - [0:0]" for name in (node, containers, *rules, *removed))]
    lines += [line("-A", chain, rule) for chain, wanted in rules.items() for rule in wanted]
    for each in entries:
        lines += [line("-A", containers, drop) for drop in each.drops]
        lines += [line("-A", node, jump) for jump in each.jumps]
    lines += [f"-D {chain} -j {node}" for chain in unhook]
    lines += [f"-I {chain} 1 -j {node}" for chain in hook]
    lines += [f"-X {name}" for name in removed]
    return "\n".join([*lines, "COMMIT", ""])


def change(
    executor_id: str,
    before: Mapping[str, Entry],
    after: Mapping[str, Entry],
    *,
    rules: Mapping[str, Sequence[Rule]],
    removed: Iterable[str] = (),
    hooks: Sequence[str] = (),
) -> str:
    """Like ``transaction``, for a table whose node's chains hold ``before`` and shall hold ``after``, by container. The
    node's chain is taken out of the chains in ``hooks`` and put in first again: the kernel refuses the whole where it,
    or one of ``before`` that has to go, is not there."""
    node, containers = node_chain(executor_id), containers_chain(executor_id)
    removed = list(removed)
    lines = ["*filter", *(f":{name} - [0:0]" for name in (*rules, *removed))]
    lines += [line("-A", chain, rule) for chain, wanted in rules.items() for rule in wanted]
    for command, here, there in (("-D", before, after), ("-A", after, before)):
        for each in (each for who, each in here.items() if there.get(who) != each):
            lines += [line(command, containers, drop) for drop in each.drops]
            lines += [line(command, node, jump) for jump in each.jumps]
    lines += [f"-D {chain} -j {node}" for chain in hooks]
    lines += [f"-I {chain} 1 -j {node}" for chain in hooks]
    lines += [f"-X {name}" for name in removed]
    return "\n".join([*lines, "COMMIT", ""])


def line(command: str, chain: str, rule: Rule) -> str:
    """``command`` is ``-A`` or ``-D``."""
    return " ".join([command, chain, *map(_quoted, rule)])


def _quoted(word: str) -> str:
    if not re.search(r"""[\s"'\\]""", word):
        return word
    escaped = re.sub(r'(["\\])', r"\\\1", word)
    return f'"{escaped}"'


def fingerprint(saved: str) -> bytes:
    """What tells one state of a table from another, from ``iptables-save``: without comments and counters."""
    told = hashlib.sha256()
    for text in saved.splitlines():
        if not text.startswith("#"):
            told.update((text.partition(" [")[0] if text.startswith(":") else text).encode() + b"\n")
    return told.digest()


@frozen
class Dump:
    """What ``iptables-save -t filter`` tells: the chains, and each chain's rules in order."""

    chains: Mapping[str, tuple[Rule, ...]]

    @classmethod
    def parse(cls, text: str) -> Dump:
        found: dict[str, list[Rule]] = {}
        for each in text.splitlines():
            if each.startswith(":"):
                found.setdefault(each[1:].split()[0], [])
            elif each.startswith("-A "):
                words = _words(each)
                found.setdefault(words[1], []).append(words[2:])
        return cls({name: tuple(rules) for name, rules in found.items()})

    def entries(self, executor_id: str) -> dict[str, Entry]:
        """What this node has in force, by the key of the container."""
        found: dict[str, Entry] = {}
        for chain, place in ((node_chain(executor_id), "jumps"), (containers_chain(executor_id), "drops")):
            for rule in self.chains.get(chain, ()):
                who, _, mark = after(rule, "--comment").partition(" ")
                if not who:
                    continue
                old = found.get(who, Entry(None, mark))
                rules = (*getattr(old, place), rule)
                name = after(rule, "-j") if place == "jumps" else old.chain
                jumps, drops = (rules, old.drops) if place == "jumps" else (old.jumps, rules)
                found[who] = Entry(name, mark, jumps, drops)
        return found

    def places(self) -> tuple[str, str]:
        """The chains in which a node's chain has to be first: all that goes to the host, and all that it forwards.

        DOCKER-USER is Docker's place for rules before its own; it is no good where it is not asked first.
        """
        forward = self.chains.get("FORWARD", ())
        user: Rule = ("-j", "DOCKER-USER")
        good = "DOCKER-USER" in self.chains and user in forward and _only_ours(forward[: forward.index(user)])
        return "INPUT", "DOCKER-USER" if good else "FORWARD"

    def misplaced(self, executor_id: str) -> tuple[list[str], list[str]]:
        """The chains from which the node's chain has to be taken, and those in which it has to be put first.

        Only chains of this product may stand before it.
        """
        node, wanted = node_chain(executor_id), self.places()
        unhook: list[str] = []
        hook: list[str] = []
        for chain in HOOKS:
            rules = self.chains.get(chain, ())
            places = [number for number, rule in enumerate(rules) if rule == ("-j", node)]
            good = len(places) == 1 and _only_ours(rules[: places[0]])
            if chain not in wanted:
                unhook += [chain] * len(places)
            elif not good:
                unhook += [chain] * len(places)
                hook.append(chain)
        return unhook, hook

    def unhooked(self, family: Family, executor_id: str) -> list[str]:
        """Each chain in which the node's chain is not where it has to be, in words."""
        unhook, hook = self.misplaced(executor_id)
        return [
            f"{family.name}: {chain} does not lead to {node_chain(executor_id)} first"
            for chain in dict.fromkeys([*unhook, *hook])
        ]


def _only_ours(rules: Iterable[Rule]) -> bool:
    return all(after(rule, "-j").startswith(PREFIX) for rule in rules)


def _words(text: str) -> Rule:
    """The words of a line of ``iptables-save``: comments are quoted."""
    if "\\" in text:
        return tuple(shlex.split(text))
    if '"' in text:
        return tuple(quoted or plain for quoted, plain in _QUOTED.findall(text))
    return tuple(text.split())


def after(rule: Rule, option: str) -> str:
    """The word that follows ``option`` in a rule; empty where there is none."""
    return rule[rule.index(option) + 1] if option in rule[:-1] else ""
