"""How containers of this product are called and labelled, so that people, the node's next life and older tools find
them. Two spellings: ``indexify.…`` as documented, and the bare names that earlier dataplanes used."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

from attrs import frozen

from ...core.model import Kind
from ..base import StartOrder

MANAGED = "indexify.managed"
EXECUTOR = "indexify.executor_id"
CONTAINER = "indexify.container_id"
KIND = "indexify.type"
RUN = "indexify.run"
"""A random word for each life of a container; its token is made from it and the node's secret."""
BUNDLE = "indexify.bundle"
"""Digest of the guest bundle that the container runs from."""
MINE = f"{MANAGED}=true"
PREFIX = "indexify-"

_USABLE = re.compile(r"[a-zA-Z0-9_.-]{1,200}")
_TAGS = ("namespace", "app", "app_version", "fn")


def container_name(container_id: str) -> str:
    """``indexify-<container id>``; the hash of an id that an engine would refuse in a name."""
    if _USABLE.fullmatch(container_id):
        return f"{PREFIX}{container_id}"
    return f"{PREFIX}x{hashlib.sha256(container_id.encode('utf-8', 'surrogatepass')).hexdigest()[:40]}"


@frozen
class Labels:
    """What the labels of a container of ours say."""

    container_id: str
    executor_id: str
    kind: Kind
    run: str


def labels(order: StartOrder, *, run: str, bundle: str | None) -> dict[str, str]:
    """All labels of a new container."""
    kind = order.kind.value
    given = dict(order.labels)
    tags = [f"{name}:{given[name]}" for name in _TAGS if given.get(name)]
    made = {
        **given,
        **{f"indexify.{name}": value for name, value in given.items()},
        MANAGED: "true",
        EXECUTOR: order.executor_id,
        CONTAINER: order.container_id,
        KIND: kind,
        RUN: run,
        "managed": "true",
        "type": kind,
        "container_id": order.container_id,
        "fn_executor_id": order.container_id,
        "executor_id": order.executor_id,
        "com.datadoghq.ad.tags": json.dumps(tags),
    }
    if bundle is not None:
        made[BUNDLE] = bundle
    if order.kind is Kind.FUNCTION:
        made["is_function_executor"] = "true"
    return made


def read(found: Mapping[str, str] | None) -> Labels | None:
    """None for a container that is not ours, or whose labels are not all there: a node makes none such."""
    if not found or found.get(MANAGED) != "true":
        return None
    try:
        return Labels(found[CONTAINER], found[EXECUTOR], Kind(found[KIND]), found.get(RUN, ""))
    except (KeyError, ValueError):
        return None
