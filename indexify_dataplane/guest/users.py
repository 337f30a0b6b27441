"""Users and groups from /etc/passwd and /etc/group, read as the container engine reads them.

The files are parsed here because the C library's look-up loads name service modules, which an image need not have.
"""

from __future__ import annotations

import os

from .children import Identity
from .refusal import Refusal

PASSWD = "/etc/passwd"
GROUP = "/etc/group"


def resolve(user: str, *, passwd: str = PASSWD, group: str = GROUP) -> Identity:
    """``name``, ``uid``, ``name:group`` or ``uid:gid``. Raises Refusal 400 for a name that is not there."""
    name, colon, group_name = user.partition(":")
    if not name or (colon and not group_name):
        raise Refusal(400, f"Invalid user {user!r}", "INVALID_USER")
    entry = _passwd_entry(name, passwd)
    if entry is None:
        if not _is_id(name):
            raise Refusal(400, f"Unknown user {name!r}", "UNKNOWN_USER")
        entry = (None, int(name), 0, "/")
    login, uid, gid, home = entry
    if colon:
        return Identity(uid, _gid(group_name, group), (), login, home)
    groups = _groups_of(login, group) if login is not None else ()
    return Identity(uid, gid, tuple(sorted({*groups, gid})), login, home)


def current() -> Identity:
    """Whom this process runs as."""
    return Identity(os.geteuid(), os.getegid(), tuple(sorted(os.getgroups())))


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 2**32 - 1


def _rows(path: str, columns: int) -> list[list[str]]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read(1024 * 1024).splitlines()
    except OSError:
        # An image without the file has no names; numbers still work.
        return []
    rows = [line.split(":") for line in lines if line and not line.startswith("#")]
    return [row for row in rows if len(row) >= columns]


def _passwd_entry(name: str, path: str) -> tuple[str | None, int, int, str] | None:
    rows = [row for row in _rows(path, 6) if _is_id(row[2]) and _is_id(row[3])]
    for row in rows:
        if row[0] == name:
            return row[0], int(row[2]), int(row[3]), row[5] or "/"
    for row in rows:
        if _is_id(name) and int(row[2]) == int(name):
            return row[0], int(row[2]), int(row[3]), row[5] or "/"
    return None


def _gid(name: str, path: str) -> int:
    for row in _rows(path, 3):
        if row[0] == name and _is_id(row[2]):
            return int(row[2])
    if not _is_id(name):
        raise Refusal(400, f"Unknown group {name!r}", "UNKNOWN_GROUP")
    return int(name)


def _groups_of(login: str, path: str) -> tuple[int, ...]:
    return tuple(int(row[2]) for row in _rows(path, 4) if _is_id(row[2]) and login in row[3].split(","))
