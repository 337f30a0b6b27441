"""Chains of nodes that do not run any more: which nodes these are, what of their rules may go, and its removal.

A node that was killed may come back, and its sandboxes run meanwhile: a rule of it goes only if it is about an address
of a network whose containers the caller knows, and none of them has it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from . import graves, presence
from .chains import Dump
from .policy import Family, Network
from .tables import Tables

Restore = Callable[[Mapping[Family, str]], None]


@contextmanager
def borrowed(tables: Tables, *, besides: str = "", holding: str | None = None) -> Iterator[set[str]]:
    """Context that gives the chains of dead nodes, which cannot start in it; those alone that have rules about the
    container ``holding`` if it is named. Raises FirewallError."""
    found = {
        node
        for dump in tables.dumps().values()
        for node in graves.nodes(dump)
        if node != besides and (holding is None or holding in graves.holding(dump, node))
    }
    with presence.borrowed(tables.namespace, sorted(found)) as dead:
        yield dead


def strangers(
    dumps: Mapping[Family, Dump], dead: Collection[str], living: Collection[str], subnets: Collection[Network]
) -> set[str]:
    """Keys of containers that dead nodes had in ``subnets`` and that are not in ``living``, all that live there."""
    return {
        who
        for dump in dumps.values()
        for node in dead
        for who, address in graves.addresses(dump, node)
        if who not in living and any(_within(address, each) for each in subnets)
    }


def bury(dumps: Mapping[Family, Dump], dead: Collection[str], gone: Collection[str], restore: Restore) -> set[str]:
    """Remove what dead nodes left about containers that are gone; the names of chains that went with it."""
    wanted = {family: graves.without(dump, dead, gone) for family, dump in dumps.items()}
    texts = {family: graves.transaction(dumps[family], each) for family, each in wanted.items()}
    restore({family: text for family, text in texts.items() if text is not None})
    return {name for family, dump in dumps.items() for name in dump.chains if name not in wanted[family].chains}


def _within(destination: str, network: Network) -> bool:
    address = ipaddress.ip_network(destination)
    return address.version == network.version and address.network_address in network
