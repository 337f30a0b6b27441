"""The endpoints under /files: streamed both ways, whatever the size, with a few hundred KiB of memory each.

Disk calls that can wait run on worker threads, so that one slow file system does not hold up the rest.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from .children import Identity
from .file_paths import FilePath, is_directory, not_regular, refused, requested_path
from .file_write import SYNC_BYTES, FileWrite, NotRegular
from .messages import Answer, Out, Reply, Request, Stream, json_reply
from .ranges import ByteRange, requested_range
from .router import Route

CHUNK_BYTES = 256 * 1024
BATCH_BYTES = 1024 * 1024
BINARY = ("content-type", "application/octet-stream")

T = TypeVar("T")


class FileApi:
    """``owner`` owns files and directories that a request creates; None: the daemon's own user."""

    def __init__(self, *, owner: Identity | None) -> None:
        self._owner = owner

    def routes(self) -> list[Route]:
        base = "/api/v1/files"
        return [
            ("GET", base, self.read),
            ("PUT", base, self.write),
            ("DELETE", base, self.delete),
            ("GET", f"{base}/list", self.list),
        ]

    async def read(self, request: Request) -> Answer:
        path = requested_path(request)
        with refused(path, "File not found"):
            try:
                fd = await _on_thread(lambda: _open(path.raw), unwanted=os.close)
            except NotRegular:
                raise not_regular(path) from None
        try:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                raise is_directory(path)
            if not stat.S_ISREG(status.st_mode):
                raise not_regular(path)
            return self._contents(request, fd, status)
        except BaseException:
            os.close(fd)
            raise

    def _contents(self, request: Request, fd: int, status: os.stat_result) -> Answer:
        tag = f'"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"'
        headers: tuple[tuple[str, str], ...] = (BINARY, ("accept-ranges", "bytes"), ("etag", tag))

        def release() -> None:
            os.close(fd)

        if status.st_size == 0:
            # Empty, or one of those whose size is not known before they were read, as in /proc.
            return Stream(200, lambda out: _send(out, fd, 0, None), headers=headers, release=release)
        wanted = requested_range(request, status.st_size, tag)
        if isinstance(wanted, ByteRange):
            headers += (("content-range", f"bytes {wanted.first}-{wanted.last}/{status.st_size}"),)
            first, length = wanted.first, wanted.last - wanted.first + 1
            return Stream(
                206, lambda out: _send(out, fd, first, length), headers=headers, length=length, release=release
            )
        size = status.st_size
        return Stream(200, lambda out: _send(out, fd, 0, size), headers=headers, length=size, release=release)

    async def write(self, request: Request) -> Answer:
        path = requested_path(request)
        if path.raw.endswith(b"/"):
            raise is_directory(path)
        upload = FileWrite(path.raw, owner=self._owner)
        try:
            with refused(path, "Cannot write, something on the way is missing"):
                try:
                    await _on_thread(upload.open)
                except NotRegular:
                    raise not_regular(path) from None
                await _receive(request, upload)
                await _on_thread(upload.commit)
        finally:
            await _on_thread(upload.close)
        return Reply(204)

    async def delete(self, request: Request) -> Answer:
        path = requested_path(request)
        with refused(path, "File not found"):
            try:
                await _on_thread(lambda: os.unlink(path.raw))
            except PermissionError as error:
                if await _on_thread(lambda: os.path.isdir(path.raw)):
                    raise is_directory(path) from error
                raise
        return Reply(204)

    async def list(self, request: Request) -> Answer:
        path = requested_path(request)
        with refused(path, "Directory not found"):
            entries = await _on_thread(lambda: _entries(path))
        return json_reply(200, {"path": path.shown, "entries": entries})


def _open(path: bytes) -> int:
    """Open for reading. Raises NotRegular for a socket, or a device that nothing is behind, and OSError."""
    try:
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        # gVisor answers EIO, which of a file is an error of its disk.
        if error.errno in (errno.ENXIO, errno.ENODEV, errno.EIO) and not stat.S_ISREG(os.stat(path).st_mode):
            raise NotRegular from error
        raise


async def _receive(request: Request, upload: FileWrite) -> None:
    """The body into the file, and from time to time on to the disk beside that. Raises OSError of either."""
    loop = asyncio.get_running_loop()
    syncing: asyncio.Future[None] | None = None
    try:
        while data := await request.read():
            parts = [data, *request.body.read_now(BATCH_BYTES)]
            await _on_thread(partial(upload.write, parts))
            if upload.unsynced >= SYNC_BYTES and (syncing is None or syncing.done()):
                if syncing is not None:
                    syncing.result()
                syncing = loop.run_in_executor(None, upload.sync_ahead)
    finally:
        # The descriptor is closed next: no thread may still use it.
        if syncing is not None:
            await asyncio.wait([syncing])
    if syncing is not None:
        syncing.result()


async def _send(out: Out, fd: int, offset: int, length: int | None) -> None:
    """``length`` bytes from ``offset``, or all there is. The next piece is read while the last one is sent."""
    end = None if length is None else offset + length
    reading = _read_soon(fd, offset, end)
    try:
        while data := await reading:
            offset += len(data)
            reading = _read_soon(fd, offset, end)
            await out.write(data)
    finally:
        # The descriptor is closed next: no thread may still read from it.
        await asyncio.wait([reading])


def _read_soon(fd: int, offset: int, end: int | None) -> asyncio.Future[bytes]:
    loop = asyncio.get_running_loop()
    size = CHUNK_BYTES if end is None else min(CHUNK_BYTES, end - offset)
    return loop.run_in_executor(None, os.pread, fd, size, offset)


def _entries(path: FilePath) -> list[dict[str, object]]:
    """Directories first, then by the bytes of the name; links are not followed."""
    found: list[tuple[bool, bytes, dict[str, object]]] = []
    with os.scandir(path.raw) as directory:
        for entry in directory:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            is_dir = stat.S_ISDIR(status.st_mode)
            described = {
                "name": entry.name.decode("utf-8", "replace"),
                "is_dir": is_dir,
                "size": None if is_dir else status.st_size,
                "modified_at": status.st_mtime_ns // 1_000_000,
            }
            found.append((not is_dir, entry.name, described))
    found.sort(key=lambda item: item[:2])
    return [described for _, _, described in found]


async def _on_thread(call: Callable[[], T], *, unwanted: Callable[[T], object] = lambda _: None) -> T:
    """Run ``call`` on a worker thread to its end, also when the request is cancelled meanwhile.

    In that case ``unwanted`` gets the result, if there is one.
    """
    running = asyncio.get_running_loop().run_in_executor(None, call)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        if running.exception() is None:
            unwanted(running.result())
        raise
