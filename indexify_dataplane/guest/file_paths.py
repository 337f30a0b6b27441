"""Paths of the file API: from a request to bytes, and from the system's errors to answers.

The sandbox is the boundary: absolute paths, symbolic links and /proc are open to whoever may use the API. ``..`` is
refused as a component, because clients build paths by joining and mean to stay below what they join to.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from .messages import Request
from .refusal import Refusal

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BAD_NAME = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


class FilePath:
    """``shown`` as the client wrote it (made valid Unicode), ``raw`` as the system takes it."""

    def __init__(self, text: str) -> None:
        self.raw = text.encode("utf-8", "surrogateescape")
        self.shown = self.raw.decode("utf-8", "replace")


def requested_path(request: Request) -> FilePath:
    """Raises Refusal: 400 without a path or with a NUL in it, 403 for '..'."""
    text = request.query.get("path")
    if not text:
        raise Refusal(400, "The query lacks 'path'", "BAD_REQUEST")
    if "\0" in text:
        raise Refusal(400, "The path contains a NUL", "BAD_REQUEST")
    if ".." in text.split("/"):
        raise Refusal(403, "Path traversal detected: '..' is not allowed", "PATH_TRAVERSAL")
    return FilePath(text)


@contextmanager
def refused(path: FilePath, missing: str) -> Iterator[None]:
    """Turn an OSError into the answer it deserves; ``missing`` begins the text of a 404."""
    try:
        yield
    except OSError as error:
        number, reason = error.errno, error.strerror or str(error)
        if number == errno.ENOENT:
            raise Refusal(404, f"{missing}: {path.shown}", "NOT_FOUND") from error
        if number == errno.EISDIR:
            raise is_directory(path) from error
        if number == errno.ENOTDIR:
            raise Refusal(400, f"Not a directory: {path.shown}", "NOT_A_DIRECTORY") from error
        if number in (errno.EACCES, errno.EPERM):
            raise Refusal(403, f"Permission denied: {path.shown}", "PERMISSION_DENIED") from error
        if number == errno.EROFS:
            raise Refusal(403, f"Read-only file system: {path.shown}", "READ_ONLY") from error
        if number in _NO_SPACE:
            raise Refusal(507, f"{reason}: {path.shown}", "NO_SPACE") from error
        if number in _BAD_NAME:
            raise Refusal(400, f"{reason}: {path.shown}", "BAD_PATH") from error
        raise Refusal(500, f"{reason}: {path.shown}", "INTERNAL_ERROR") from error


def is_directory(path: FilePath) -> Refusal:
    text = f"Path is a directory: {path.shown} (use /api/v1/files/list to list it)"
    return Refusal(400, text, "IS_DIRECTORY")


def not_regular(path: FilePath) -> Refusal:
    return Refusal(400, f"Not a regular file: {path.shown}", "NOT_A_REGULAR_FILE")
