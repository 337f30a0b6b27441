"""A file tree with everything that file systems know, and a description of a tree by which two can be compared.

``python3 -c SOURCE fill|describe`` does it inside of a sandbox, so this needs nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
"""``cap_net_bind_service=ep`` as the kernel keeps it in ``security.capability``."""

SPARSE_BYTES = 256 << 20


def acl(named: int) -> bytes:
    """``u::rw-,u:1000:NAMED,g::r--,m::rw-,o::r--`` as the kernel keeps it in ``system.posix_acl_*``."""
    nobody = 0xFFFFFFFF
    entries = [(0x01, 6, nobody), (0x02, named, 1000), (0x04, 4, nobody), (0x10, 6, nobody), (0x20, 4, nobody)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


class Entry(NamedTuple):
    """What is compared of one file; ``same_as`` is the first path of the same file (a hard link)."""

    kind: str
    mode: int
    owner: tuple[int, int]
    modified: int
    content: str
    same_as: str
    device: int
    attributes: tuple[tuple[str, bytes], ...]


def fill(root: Path, *, from_inside: bool = False) -> None:
    """Make the tree below ``root``, which exists. Needs root; ``from_inside`` leaves out what no sandbox may do, and
    gVisor does not know."""
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
    if not from_inside:
        os.setxattr(top / "capable", "security.capability", CAPABILITY)
        os.setxattr(top / "capable", "user.beside", b"a capability")
        _fill_with_attributes(top)
        os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
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
    if not from_inside:
        os.setxattr(long / ("f" * 200), "user.how far", b"down")
    for path in [*_paths(root / "tree"), top]:
        os.utime(path, (1_600_000_000, 1_600_000_000), follow_symlinks=False)


def _fill_with_attributes(top: Path) -> None:
    """Extended attributes on each kind of file that can have them."""
    folder = top / "attributes"
    folder.mkdir()
    os.setxattr(folder, "user.of a folder", b"yes")
    os.setxattr(folder, "system.posix_acl_default", acl(7))
    for name in (b"file", b"\xfe no utf-8", b"x" * 180):
        path = os.path.join(os.fsencode(folder), name)
        with open(path, "wb") as file:
            file.write(name)
        os.setxattr(path, "user.binary", bytes(range(256)))
        os.setxattr(path, "user.line\nbreak", b"a=b\n")
        os.setxattr(path, "user.large", b"0123456789" * 200)
        os.setxattr(path, b"user.\xff\xfe", b"\xff")
        os.setxattr(path, "system.posix_acl_access", acl(6))
    os.link(folder / "file", folder / "hard")
    os.mkfifo(folder / "pipe", 0o664)
    os.setxattr(folder / "pipe", "system.posix_acl_access", acl(4))
    os.mknod(folder / "zero", stat.S_IFCHR | 0o664, os.makedev(1, 5))
    os.setxattr(folder / "zero", "system.posix_acl_access", acl(2))
    (folder / "link").symlink_to("file")
    os.setxattr(folder / "link", "trusted.of a link", b"yes", follow_symlinks=False)


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


if __name__ == "__main__":
    if sys.argv[1] == "fill":
        fill(Path("/"), from_inside=True)
    else:
        print(ascii({name: tuple(entry) for name, entry in describe(Path("/")).items()}))
