"""Says whether a directory is safe enough for code that runs as PID 1 in every sandbox.

Whoever can replace a directory on the way can replace the bundle, so the whole path counts, as sshd's StrictModes
does: owned by root or by us, not writable by others. A sticky directory such as /tmp may be on the way, because others
cannot rename our entries there, but it is never the place itself.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .errors import PlaceRefused


def check_place(directory: Path) -> None:
    """Raises PlaceRefused with the part of the path that is open to others and what to do about it."""
    place = Path(os.path.realpath(directory))
    for part in (place, *place.parents):
        found = os.lstat(part)
        if not stat.S_ISDIR(found.st_mode):
            raise PlaceRefused(f"{directory} cannot hold the guest bundle: {part} is not a directory")
        if found.st_uid not in (0, os.geteuid()):
            raise PlaceRefused(
                f"{directory} cannot hold the guest bundle: {part} belongs to uid {found.st_uid}, who could replace "
                f"what runs as root in every sandbox; use a directory that belongs to root"
            )
        sticky_on_the_way = part != place and found.st_mode & stat.S_ISVTX
        if found.st_mode & 0o022 and not sticky_on_the_way:
            raise PlaceRefused(
                f"{directory} cannot hold the guest bundle: others can write to {part} "
                f"(mode {stat.S_IMODE(found.st_mode):04o}) and could replace what runs as root in every sandbox; "
                f"use a directory such as /var/lib/indexify, or take the permission away with chmod go-w {part}"
            )
