"""A file tree with everything that file systems know, and a description of a tree by which two can be compared."""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
"""``cap_net_bind_service=ep`` as the kernel keeps it in ``security.capability``."""

SPARSE_BYTES = 256 << 20


@frozen
class Entry:
    """What is compared of one file; ``same_as`` is the first path of the same file (a hard link)."""

    kind: str
    mode: int
    owner: tuple[int, int]
    modified: int
    content: str
    same_as: str
    device: int
    attributes: tuple[tuple[str, bytes], ...]


def fill(root: Path) -> None:
    """Make the tree below ``root``, which exists. Needs root."""
    top = root / "tree"
    top.mkdir()
    (top / "plain").write_bytes(b"hello\n")
    (top / "empty").touch()
    (top / "private").write_bytes(b"x")
    os.chmod(top / "private", 0o600)
    os.chown(top / "private", 1234, 4321)
    (top / "setuid").write_bytes(b"#!/bin/sh\n")
    os.chmod(top / "setuid", 0o6755)
    (top / "capable").write_bytes(b"\x7fELF")
    os.setxattr(top / "capable", "security.capability", CAPABILITY)
    (top / "sticky").mkdir()
    os.chmod(top / "sticky", 0o1777)
    os.chown(top / "sticky", 7, 8)
    (top / "nobody").mkdir()
    os.chmod(top / "nobody", 0o000)
    (top / "link").symlink_to("plain")
    (top / "dangling").symlink_to("/nowhere/at all")
    (top / "loop").symlink_to("loop")
    os.lchown(top / "link", 55, 66)
    os.link(top / "plain", top / "hard")
    (top / "deep").mkdir()
    os.link(top / "plain", top / "deep" / "hard too")
    os.mkfifo(top / "pipe", 0o640)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with open(top / "sparse", "wb") as sparse:
        sparse.seek(SPARSE_BYTES)
        sparse.write(b"end")
    (top / "random").write_bytes(os.urandom(3 << 20))
    for name in (b"new\nline", b"\xff\xfe no utf-8", "ünïcödé ☃".encode(), b"-rf", b"back\\slash", b"n" * 255, b"*?[]"):
        Path(os.fsdecode(os.path.join(os.fsencode(top), name))).write_bytes(name)
    long = top
    for _ in range(12):
        long = long / ("d" * 60)
        long.mkdir()
    (long / ("f" * 200)).write_bytes(b"far down")
    for path in [*_paths(root / "tree"), top]:
        os.utime(path, (1_600_000_000, 1_600_000_000), follow_symlinks=False)


def _paths(top: Path) -> Iterator[Path]:
    for folder, directories, files in os.walk(top, topdown=False):
        for name in (*directories, *files):
            yield Path(folder, name)


def describe(root: Path) -> dict[str, Entry]:
    """Every file of the tree below ``root``, by its path."""
    found: dict[str, Entry] = {}
    first: dict[tuple[int, int], str] = {}
    for path in sorted([*_paths(root / "tree"), root / "tree"]):
        status = os.lstat(path)
        name = str(path.relative_to(root))
        regular = stat.S_ISREG(status.st_mode)
        content = ""
        if regular:
            content = _digest(path)
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        attributes = tuple(
            (attribute, os.getxattr(path, attribute, follow_symlinks=False))
            for attribute in sorted(os.listxattr(path, follow_symlinks=False))
            if not attribute.startswith(("trusted.overlay", "security.selinux"))
        )
        found[name] = Entry(
            kind=stat.filemode(status.st_mode)[0],
            mode=stat.S_IMODE(status.st_mode),
            owner=(status.st_uid, status.st_gid),
            modified=int(status.st_mtime),
            content=content,
            same_as=first.setdefault((status.st_dev, status.st_ino), name) if regular else "",
            device=status.st_rdev,
            attributes=attributes,
        )
    return found


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
