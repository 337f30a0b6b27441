"""The guest bundle where the engine can mount it: a folder of this host, or a volume where the engine's host does not
see our files (a remote engine, an engine in a container of its own).

A volume is filled through a container that never runs, and marked when it is complete; one without the mark, left by a
node that was killed, is filled again.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
import time
from typing import Any

from docker.errors import APIError, NotFound
from twisted.logger import Logger

from ...guestbundle import MOUNT_POINT, Bundle
from ..base import DriverError
from .failures import EXPECTED, OTHER, engine_call, sentence_of, status_of
from .names import BUNDLE, MANAGED

log = Logger()

_NO_IMAGE = "indexify-probe/none:none"
_LOADER = "indexify-guest/empty"
_COMPLETE = ".complete"
_ABSENT = "bind source path does not exist"


def mount_source(client: Any, bundle: Bundle) -> str:
    """What to bind at the bundle's place in containers: its folder, or the name of a volume. Raises DriverError."""
    if sees_our_files(client, bundle):
        return str(bundle.path)
    name = f"indexify-guest-{bundle.digest[:16]}"
    log.info("the engine does not see this file system: the guest bundle goes into a volume", volume=name)
    with engine_call(OTHER, f"the volume {name} for the guest bundle cannot be made"):
        _fill(client, bundle, name)
        _remove_unused(client, name)
    return name


def sees_our_files(client: Any, bundle: Bundle) -> bool:
    """Ask for a bind mount of a file that is new, in a container of an image that is not there: the engine looks at the
    mount first, so nothing is ever made."""
    with tempfile.NamedTemporaryFile(dir=bundle.path.parent, prefix=".probe-") as probe:
        mount = {"Type": "bind", "Source": probe.name, "Target": "/probe", "ReadOnly": True}
        try:
            client.create_container_from_config({"Image": _NO_IMAGE, "HostConfig": {"Mounts": [mount]}})
        except EXPECTED as error:
            if status_of(error) == 404:
                return True
            if _ABSENT in sentence_of(error):
                return False
            text = f"the engine refuses mounts of files below {bundle.path.parent}: {sentence_of(error)}"
            raise DriverError(text) from error
    raise DriverError(f"the engine has an image {_NO_IMAGE}, which is nobody's to have; remove it")


def _fill(client: Any, bundle: Bundle, name: str) -> None:
    labels = {MANAGED: "true", BUNDLE: bundle.digest}
    client.create_volume(name, labels=labels)
    client.import_image_from_data(_tar({}), repository=_LOADER, tag=bundle.digest[:16])
    image = f"{_LOADER}:{bundle.digest[:16]}"
    config = {
        "Image": image,
        "Cmd": ["never-started"],
        "Labels": {BUNDLE: bundle.digest},
        "HostConfig": {"Binds": [f"{name}:{MOUNT_POINT}"]},
    }
    loader = client.create_container_from_config(config)["Id"]
    try:
        if not _is_complete(client, loader):
            client.put_archive(loader, "/", bundle.as_tar(MOUNT_POINT))
            client.put_archive(loader, str(MOUNT_POINT), _tar({_COMPLETE: bundle.digest.encode()}))
    finally:
        client.remove_container(loader, force=True)
        client.remove_image(image, force=True)


def _is_complete(client: Any, loader: str) -> bool:
    try:
        chunks, _ = client.get_archive(loader, f"{MOUNT_POINT}/{_COMPLETE}")
        for _ in chunks:
            pass
    except NotFound:
        return False
    return True


def _remove_unused(client: Any, keep: str) -> None:
    """Volumes of earlier versions, unless containers still run from them."""
    found = client.volumes(filters={"label": [f"{MANAGED}=true", BUNDLE]}).get("Volumes") or []
    for volume in found:
        if volume["Name"] != keep:
            try:
                client.remove_volume(volume["Name"])
            except APIError as error:
                log.debug("a volume of an earlier version is in use", volume=volume["Name"], error=sentence_of(error))


def _tar(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for path, content in files.items():
            info = tarfile.TarInfo(path)
            info.mode, info.size = 0o644, len(content)
            archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


WARM_SECONDS = 10.0
"""Pages that were read so recently are in the page cache, but for a host that is short of memory right then."""


class Warming:
    """Called before a sandbox is started: reads the daemon's bundle here, lest its pages be charged to the sandbox,
    which takes 5 ms; not again for ``WARM_SECONDS``. Raises DriverError."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._until = 0.0

    def __call__(self) -> None:
        if time.monotonic() < self._until:
            return
        try:
            self._bundle.warm()
        except OSError as error:
            raise DriverError(f"the guest daemon's bundle cannot be read: {error}") from error
        self._until = time.monotonic() + WARM_SECONDS
