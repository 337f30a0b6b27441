"""Something on the host that this product made, and whether a record accounts for it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from attrs import frozen


@frozen
class Found:
    """``kind`` is container, image, volume, chain, run directory or cgroup. ``container_id`` and ``executor_id`` are
    whose it is, as far as it tells; ``place`` is the engine or directory. ``needed``: something else accounts for it,
    such as a container that uses the volume. ``by_name``: only its name says that it is this product's, so it is told,
    and whether it goes is the operator's to say."""

    kind: str
    name: str
    container_id: str | None = None
    executor_id: str | None = None
    place: str = ""
    needed: bool = False
    by_name: bool = False


@frozen
class Listing:
    """``leaks`` are this executor's or nobody's, ``others`` belong to other executors and are only told; ``problems``
    are sentences about places that could not be looked at."""

    leaks: tuple[Found, ...] = ()
    others: tuple[Found, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        return not self.leaks and not self.problems


def sort(
    found: Iterable[Found], problems: Iterable[str], *, mine: Collection[str], recorded: Collection[str]
) -> Listing:
    """``mine`` are this node's executor ids, the earlier ones included; ``recorded`` the ids of containers that have a
    record and are not over."""
    leaks, others = [], []
    for each in sorted(found, key=lambda each: (each.kind, each.name)):
        if each.executor_id is not None and each.executor_id not in mine:
            others.append(each)
        elif not each.needed and (each.container_id is None or each.container_id not in recorded):
            leaks.append(each)
    return Listing(tuple(leaks), tuple(others), tuple(problems))
