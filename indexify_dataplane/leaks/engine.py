"""Containers, images and volumes of one Docker engine. Blocking."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from docker.errors import APIError, NotFound

from ..drivers.docker import names
from ..drivers.docker.failures import OTHER, engine_call, sentence_of
from .found import Found

RESTORED = "indexify-restore"
"""Repository of images that restored containers are made from; the tag is the container's id."""
TRANSIENT = ("indexify-guest/empty", "indexify-doctor")
"""Repositories of images that exist for moments only."""
TRANSIENT_SECS = 60
OURS = "indexify."
NODES = "indexify-dataplane"
"""How the documentation names containers that nodes run in."""
COMPOSED = "com.docker.compose.project"
"""Compose gives names that begin with the project's."""
CONTAINER, IMAGE, VOLUME = "container", "image", "volume"


def things(client: Any, place: str, *, bundle: str | None) -> list[Found]:
    """All that is ours there, whoever's it is. ``client`` is docker-py's low-level one; ``bundle`` is the digest of the
    guest bundle in use. Raises DriverError."""
    with engine_call(OTHER, f"the engine at {place} cannot be searched"):
        containers = client.containers(all=True, trunc=False)
        return [
            *_containers(containers, place),
            *_images(client, place),
            *_volumes(client, containers, place, bundle),
        ]


def _containers(containers: list[Any], place: str) -> Iterator[Found]:
    for each in containers:
        labels = each.get("Labels") or {}
        name = str((each.get("Names") or [each["Id"][:12]])[0]).lstrip("/")
        whose = names.read(labels)
        if whose is not None:
            yield Found(CONTAINER, name, whose.container_id, whose.executor_id, place)
        elif names.EXECUTOR in labels:
            # Not all labels are there: no node has made it, or somebody has made it anew.
            yield Found(CONTAINER, name, executor_id=labels[names.EXECUTOR], place=place)
        elif labels.get(names.MANAGED) == "true" or names.BUNDLE in labels:
            # One of those that exist for moments: it fills a volume, or is a check of doctor's.
            yield Found(CONTAINER, name, place=place, needed=time.time() - each.get("Created", 0) < TRANSIENT_SECS)
        elif _by_name(name, labels):
            yield Found(CONTAINER, name, name.removeprefix(names.PREFIX), place=place, by_name=True)


def _by_name(name: str, labels: Mapping[str, str]) -> bool:
    """Whether nothing but its name, or a label that nodes do not look at, says that it is ours."""
    if name.startswith(NODES) or COMPOSED in labels:
        return False
    return name.startswith(names.PREFIX) or any(label.startswith(OURS) for label in labels)


def _images(client: Any, place: str) -> Iterator[Found]:
    for image in client.images(all=False):
        labels = image.get("Labels") or {}
        for reference in image.get("RepoTags") or ():
            repository, _, tag = reference.rpartition(":")
            if repository == RESTORED:
                owner = labels.get(names.CONTAINER, tag)
                yield Found(IMAGE, reference, owner, labels.get(names.EXECUTOR), place)
            elif repository in TRANSIENT:
                young = time.time() - image.get("Created", 0) < TRANSIENT_SECS
                yield Found(IMAGE, reference, place=place, needed=young)


def _volumes(client: Any, containers: list[Any], place: str, bundle: str | None) -> Iterator[Found]:
    used = {mount.get("Name") for each in containers for mount in each.get("Mounts") or ()}
    for volume in client.volumes(filters={"label": [names.MINE]}).get("Volumes") or ():
        labels = volume.get("Labels") or {}
        needed = volume["Name"] in used or (bundle is not None and labels.get(names.BUNDLE) == bundle)
        yield Found(VOLUME, volume["Name"], place=place, needed=needed)


def remove(client: Any, leak: Found) -> str | None:
    """Take one away; why it stays, or None. What is in use is never forced, what is gone is no problem."""
    try:
        if leak.kind == CONTAINER:
            client.remove_container(leak.name, v=True, force=True)
        elif leak.kind == IMAGE:
            client.remove_image(leak.name)
        elif leak.kind == VOLUME:
            client.remove_volume(leak.name)
    except NotFound:
        return None
    except APIError as error:
        return sentence_of(error)
    return None
