"""Takes away what nodes of a test have left in this host's packet filter, so that a run leaves it as it was."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from indexify_dataplane.network import graves, presence
from indexify_dataplane.network.chains import node_chain
from indexify_dataplane.network.tables import FirewallError, Namespace, find_tables


def forget_nodes(executor_ids: Collection[str]) -> None:
    """All chains of these nodes, which must be gone for good; nothing happens where the filter cannot be used."""
    if not executor_ids or os.geteuid() != 0 or shutil.which("iptables") is None:
        return
    try:
        tables = find_tables(Namespace())
    except FirewallError:
        return
    with presence.borrowed(tables.namespace, {node_chain(each) for each in executor_ids}) as dead:
        dumps = tables.dumps()
        gone = {who for dump in dumps.values() for node in dead for who in graves.holding(dump, node)}
        wanted = {family: graves.without(dump, dead, gone) for family, dump in dumps.items()}
        texts = {family: graves.transaction(dumps[family], each) for family, each in wanted.items()}
        tables.restore({family: text for family, text in texts.items() if text is not None})


def executors_below(directory: Path) -> set[str]:
    """Ids of the nodes that have kept their state there, those from before a change of the configuration included."""
    found = {each.read_text().strip() for each in directory.rglob("*.executor-id")}
    for store in directory.rglob("*.db"):
        try:
            with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
                meta = dict(connection.execute("SELECT key, value FROM meta"))
        except sqlite3.Error:
            continue  # of something else, or broken by its test
        found |= {meta.get("executor_id", ""), *json.loads(meta.get("earlier_executor_ids", "[]"))}
    return found - {""}
