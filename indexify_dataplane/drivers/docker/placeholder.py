"""A file in /tmp of a container that gVisor runs, so that /tmp stays a part of its root file system.

runsc lays a tmpfs of its own over /tmp when that folder is empty or missing when it starts, unless /tmp is mounted
anyway. What a sandbox writes there would be in no export of the engine, and so in no snapshot. So the file is put there
between create and start, and the guest daemon removes it before it runs anything (``--remove``). Its name is another
one for each run, because a snapshot of an overlay remembers that the one before it was removed.
"""

from __future__ import annotations

import io
import tarfile
from typing import Any

from docker.errors import NotFound

from ...core.model import Kind
from .failures import EXPECTED, OTHER, engine_call, failure, sentence_of, status_of

FOLDER = "/tmp"
RUNTIME = "runsc"


def path_for(kind: Kind, runtime: str | None, run: str) -> str | None:
    """Where the file is to be in the container of ``run``; None where ``runtime`` needs none, or nothing is kept."""
    if kind is not Kind.SANDBOX or not (runtime or "").startswith(RUNTIME):
        return None
    return f"{FOLDER}/.indexify-{run}"


def put(client: Any, identity: str, path: str) -> None:
    """Put the file into a container that was created and does not run. Where there is no /tmp it is made, open to all;
    one that is mounted, or no folder, is left alone, as runsc does. Raises DriverError."""
    what = f"/tmp of container {identity[:12]} cannot be kept on disk"
    name = path.rpartition("/")[2]
    with engine_call(OTHER, what):
        mounts = client.inspect_container(identity).get("Mounts") or ()
        if any(each.get("Destination") == FOLDER for each in mounts):
            return
        try:
            client.put_archive(identity, FOLDER, _tar(name))
        except NotFound:
            client.put_archive(identity, "/", _tar(f"{FOLDER[1:]}/{name}", folder=FOLDER[1:]))
        except EXPECTED as error:
            if status_of(error) is None or "not a directory" not in sentence_of(error):
                raise failure(OTHER, what, sentence_of(error), status_of(error)) from error


def _tar(name: str, *, folder: str | None = None) -> bytes:
    """One empty file, and the folder it is in where that is to be made."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        if folder is not None:
            made = tarfile.TarInfo(folder)
            made.type, made.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(made)
        file = tarfile.TarInfo(name)
        file.mode = 0o600
        tar.addfile(file)
    return written.getvalue()
