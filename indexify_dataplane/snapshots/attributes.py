"""Extended attributes of a container's files, read where they lie on this host.

The tree is a stranger's: no link of it is followed. Directories are opened one below the other, a file is named by its
open directory, and what is mounted somewhere in the tree belongs to somebody else and has no attributes here.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterator, Sequence

Attribute = tuple[bytes, bytes]
"""Name, with its name space, and value."""

KEPT = ("user.", "trusted.", "system.posix_acl_", "security.capability")
"""The others of ``security.`` are the host's own: labels and signatures that hold on no other one."""
LEFT = ("user.overlay.", "trusted.overlay.")
"""How overlay file systems note down what they are made of. As attributes of a file they would remake the tree."""

HELD = 64
"""How many directories above a file are kept open; the ones further up are opened again when they are needed."""

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Files:
    """Files by their paths below ``roots``, of which the first that has one counts: a container's root, or its layers,
    topmost first. Used by one thread; quick if paths come in the order of a walk."""

    def __init__(self, roots: Sequence[str]) -> None:
        """Raises OSError if one of them cannot be opened."""
        self._trees: list[_Tree] = []
        self.unread = 0
        """How many files had attributes, or may have had, that could not be read."""
        self.first_unread = b""
        try:
            for root in roots:
                self._trees.append(_Tree(root))
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        for tree in self._trees:
            tree.close()

    def attributes(self, path: bytes) -> Sequence[Attribute]:
        """Of the file at ``path``; none if it is not there."""
        if not _is_below(path):
            return ()
        try:
            for tree in self._trees:
                found = tree.attributes(path)
                if found is not None:
                    return found
        except OSError:
            self.not_read(path)
        return ()

    def not_read(self, path: bytes) -> None:
        self.unread += 1
        self.first_unread = self.first_unread or path


def _is_below(path: bytes) -> bool:
    return not any(part in (b"", b".", b"..") for part in path.split(b"/"))


class _Tree:
    def __init__(self, root: str) -> None:
        self._root = os.open(root, _DIRECTORY & ~os.O_NOFOLLOW)
        self._mount = _mount_of(self._root)
        self._names: list[bytes] = []
        """The directory that is open, as a way from the root."""
        self._open: deque[int] = deque()
        """The last ones of them."""

    def close(self) -> None:
        self._leave(0)
        os.close(self._root)

    def attributes(self, path: bytes) -> list[Attribute] | None:
        """None: there is no such file. Raises OSError."""
        *parents, name = path.split(b"/")
        try:
            directory = self._enter(parents)
            file = b"/proc/self/fd/%d/%b" % (directory, name)
            kept = [each for each in _listed(file) if each.startswith(KEPT) and not each.startswith(LEFT)]
            if not kept or not self._is_ours(directory, name):
                return []
        except (FileNotFoundError, NotADirectoryError):
            return None
        return list(_read(file, kept))

    def _enter(self, parents: list[bytes]) -> int:
        if parents != self._names:
            same = 0
            for one, other in zip(parents, self._names, strict=False):
                if one != other:
                    break
                same += 1
            self._leave(same)
            for name in parents[len(self._names) :]:
                self._open.append(os.open(name, _DIRECTORY, dir_fd=self._open[-1] if self._open else self._root))
                self._names.append(name)
                if len(self._open) > HELD:
                    os.close(self._open.popleft())
        return self._open[-1] if self._open else self._root

    def _leave(self, depth: int) -> None:
        """Up to a directory at most ``depth`` below the root."""
        while len(self._names) > depth:
            self._names.pop()
            if self._open:
                os.close(self._open.pop())
        if not self._open:
            # The directories further up were closed on the way down.
            self._names.clear()

    def _is_ours(self, directory: int, name: bytes) -> bool:
        file = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            return _mount_of(file) == self._mount
        finally:
            os.close(file)


def _mount_of(file: int) -> str:
    with open(f"/proc/self/fdinfo/{file}") as told:
        return next(line for line in told if line.startswith("mnt_id:"))


def _listed(file: bytes) -> list[str]:
    try:
        return os.listxattr(file, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []
        raise


def _read(file: bytes, names: Sequence[str]) -> Iterator[Attribute]:
    for name in names:
        try:
            value = os.getxattr(file, name, follow_symlinks=False)
        except OSError as error:
            if error.errno == errno.ENODATA:
                continue
            raise
        yield os.fsencode(name), value
