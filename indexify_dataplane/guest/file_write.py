"""One upload: the new content is complete and on disk before it takes the place of the old.

It is written to a temporary name in the target's directory, synced, given the mode and owner of the file it replaces,
renamed over it, and the directory is synced: a snapshot taken right after sees it. A symbolic link as the target is
followed and stays. Where a rename cannot work (a single file that is a mount, like a container's /etc/hosts; a
directory that takes no new file, like those of /proc) the content goes into the file that is there.
"""

from __future__ import annotations

import errno
import os
import stat

from .children import Identity

_NO_NEW_FILE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)
_NO_RENAME = (errno.EBUSY, errno.EXDEV)
COPY_BYTES = 256 * 1024

SYNC_BYTES = 64 * 1024 * 1024
"""Written before the disk is asked to begin: the kernel itself waits for a tenth of the memory, so that of a large
upload nearly all would be left to the sync at its end."""


class NotRegular(Exception):
    """The target is a device, a pipe or a socket."""


class FileWrite:
    """Blocking; every call on a worker thread, one at a time, but ``sync_ahead``, which may run beside ``write``.
    ``owner`` gets what did not exist before."""

    def __init__(self, path: bytes, *, owner: Identity | None) -> None:
        self._target = os.path.realpath(path)
        self._owner = owner
        self._fd = -1
        self._temporary: bytes | None = None
        self._replaced: os.stat_result | None = None
        self.unsynced = 0

    def open(self) -> None:
        """Raises OSError (EISDIR for a directory) and NotRegular."""
        try:
            self._replaced = os.stat(self._target)
        except FileNotFoundError:
            self._make_parents(os.path.dirname(self._target))
        else:
            if stat.S_ISDIR(self._replaced.st_mode):
                raise IsADirectoryError(errno.EISDIR, "Is a directory", self._target)
            if not stat.S_ISREG(self._replaced.st_mode):
                raise NotRegular
        temporary = os.path.join(os.path.dirname(self._target), b".indexify-" + os.urandom(12).hex().encode())
        try:
            self._fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            self._temporary = temporary
        except OSError as error:
            if self._replaced is None or error.errno not in _NO_NEW_FILE:
                raise
            self._fd = os.open(self._target, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)

    def write(self, parts: list[bytes]) -> None:
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[os.write(self._fd, view) :]
            self.unsynced += len(part)

    def sync_ahead(self) -> None:
        """Bring to the disk what was written so far, while more comes. Raises OSError: what it could not keep the
        sync at the end would not tell again."""
        self.unsynced = 0
        _sync(self._fd)

    def commit(self) -> None:
        """Sync and put in place."""
        if self._temporary is None:
            _sync(self._fd)
            self.close()
            return
        if self._replaced is not None:
            _take_over(self._fd, self._replaced)
        elif self._owner is not None:
            os.fchown(self._fd, self._owner.uid, self._owner.gid)
        os.fsync(self._fd)
        try:
            os.rename(self._temporary, self._target)
            self._temporary = None
        except OSError as error:
            if error.errno not in _NO_RENAME or self._replaced is None:
                raise
            self._copy_in_place()
        self.close()
        _sync_directory(os.path.dirname(self._target))

    def close(self) -> None:
        """Give up what is not in place. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._temporary is not None:
            os.unlink(self._temporary)
            self._temporary = None

    def _copy_in_place(self) -> None:
        target = os.open(self._target, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            offset = 0
            while data := os.pread(self._fd, COPY_BYTES, offset):
                offset += len(data)
                view = memoryview(data)
                while view:
                    view = view[os.write(target, view) :]
            _sync(target)
        finally:
            os.close(target)

    def _make_parents(self, directory: bytes) -> None:
        if os.path.isdir(directory):
            return
        self._make_parents(os.path.dirname(directory))
        try:
            os.mkdir(directory)
        except FileExistsError:
            # Another upload made it meanwhile, or it is no directory: then the next step says so.
            return
        if self._owner is not None:
            os.chown(directory, self._owner.uid, self._owner.gid)
        _sync_directory(os.path.dirname(directory))


def _take_over(fd: int, replaced: os.stat_result) -> None:
    """Mode and owner of the file that is replaced; the owner first, since a change of owner clears set-id bits."""
    try:
        os.fchown(fd, replaced.st_uid, replaced.st_gid)
    except PermissionError:
        # Only root gives files away; without the owner its set-id bits would be a gift to us.
        os.fchmod(fd, stat.S_IMODE(replaced.st_mode) & 0o1777)
        return
    os.fchmod(fd, stat.S_IMODE(replaced.st_mode))


def _sync(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        # Files of /proc and /sys take no fsync.
        if error.errno != errno.EINVAL:
            raise


def _sync_directory(path: bytes) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _sync(fd)
    finally:
        os.close(fd)
