"""Blobs in the file system, shared with the executors by path.

An executor writes the parts of an upload into one file beside the blob, ``.NAME.UPLOAD_ID.upload``; completing renames
it. So a reader never sees a half-written blob, and a shorter value leaves nothing of a longer one behind. Blobs survive
the death of the process. What this process writes (snapshots, whose origin is deleted next) is synced to the disk; what
executors write is not, one by one.
"""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from .base import READ_BYTES, BlobError, BlobNotFound, OpenUpload
from .uri import file_path

_SUFFIX = ".upload"
_NAME_BYTES = 150
"""How much of a blob's name goes into the name of its upload: together they must stay below 255 bytes."""


def _short(name: str) -> str:
    return os.fsencode(name)[:_NAME_BYTES].decode(errors="ignore")


@contextmanager
def _explained(operation: str, uri: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise BlobNotFound(f"{operation} of {uri}: there is no such file") from error
    except OSError as error:
        retryable = not isinstance(error, IsADirectoryError)
        raise BlobError(f"{operation} of {uri}: {error.strerror or error}", retryable=retryable) from error


def _must_be_file(status: os.stat_result, operation: str, uri: str) -> None:
    """Whatever else may have the name: a pipe would be waited for without end, and a device have no end."""
    if not stat.S_ISREG(status.st_mode):
        raise BlobError(f"{operation} of {uri}: a blob is a regular file, and this is none")


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


class LocalStore:
    """Implements ``BlobStore`` for ``file://``."""

    urls_need_io = False
    near = True

    def size(self, uri: str) -> int:
        with _explained("get_metadata", uri):
            status = os.stat(file_path(uri))
            _must_be_file(status, "get_metadata", uri)
            return status.st_size

    def read(self, uri: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        with _explained("get", uri), open(file_path(uri), "rb", opener=_without_waiting) as file:
            _must_be_file(os.fstat(file.fileno()), "get", uri)
            file.seek(offset)
            left = length
            while left is None or left > 0:
                piece = file.read(READ_BYTES if left is None else min(left, READ_BYTES))
                if not piece:
                    break
                if left is not None:
                    left -= len(piece)
                yield piece
        if left:
            raise BlobError(f"get of {uri}: it ends {left} bytes before the end of what was asked for")

    def write(self, uri: str, pieces: Iterable[bytes]) -> int:
        path = file_path(uri)
        aside = self._aside(path, uuid.uuid4().hex)
        written = 0
        with _explained("put", uri):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            try:
                with open(aside, "xb") as file:
                    for piece in pieces:
                        file.write(piece)
                        written += len(piece)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(aside, path)
                _sync_folder(os.path.dirname(path))
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(aside)
                raise
        return written

    def delete(self, uri: str) -> None:
        with _explained("delete", uri), suppress(FileNotFoundError):
            os.unlink(file_path(uri))

    def read_url(self, uri: str, lifetime: int) -> str:
        file_path(uri)
        return uri

    def create_upload(self, uri: str) -> str:
        with _explained("create_multipart_upload", uri):
            folder = os.path.dirname(file_path(uri))
            if not os.path.isdir(folder):  # as a rule it is: makedirs would ask three times
                os.makedirs(folder, exist_ok=True)
        return uuid.uuid4().hex

    def part_url(self, uri: str, upload_id: str, number: int, lifetime: int) -> str:
        return "file://" + self._aside(file_path(uri), upload_id)

    def complete_upload(self, uri: str, upload_id: str, etags: Sequence[str]) -> None:
        path = file_path(uri)
        aside = self._aside(path, upload_id)
        with _explained("complete_multipart_upload", uri):
            try:
                os.replace(aside, path)
            except FileNotFoundError:
                if etags and os.path.exists(path):
                    return  # Completed before: an upload that was never written has no etags to offer.
                if etags:
                    raise
                with open(aside, "xb"):
                    pass
                os.replace(aside, path)

    def abort_upload(self, uri: str, upload_id: str) -> None:
        with _explained("abort_multipart_upload", uri), suppress(FileNotFoundError):
            os.unlink(self._aside(file_path(uri), upload_id))

    def open_uploads(self, prefix: str) -> Sequence[OpenUpload]:
        folder, name = os.path.split(prefix.removeprefix("file://"))
        begin = "." + _short(name)
        found: list[OpenUpload] = []
        with _explained("list_multipart_uploads", prefix):
            try:
                entries = os.listdir(folder)
            except FileNotFoundError:
                return ()
        for entry in entries:
            if entry.startswith(begin) and entry.endswith(_SUFFIX):
                blob, _, upload_id = entry[1 : -len(_SUFFIX)].rpartition(".")
                found.append(OpenUpload(f"file://{folder}/{blob}", upload_id))
        return found

    @staticmethod
    def _aside(path: str, upload_id: str) -> str:
        folder, name = os.path.split(path)
        return os.path.join(folder, f".{_short(name)}.{upload_id}{_SUFFIX}")
