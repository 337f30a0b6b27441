"""Application code on this host, by the hash of its content: downloaded once, verified on every use.

Interleaving: several containers of one application start at once. The first to ask downloads, the others wait for the
same download; one that gives up waiting does not end it. Several nodes may share a folder: files appear by rename, and
two downloads of the same code produce the same file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from .blobs.stores import Blobs
from .core.model import Payload
from .metrics import Metrics
from .reactor import Calls, Clock

log = Logger()

LIMIT_BYTES = 1024**3
"""What the cache may hold; SDKs limit one application's code to 5 MiB."""
STALE_SECONDS = 3600.0
"""An unfinished download that was not written to for so long has no owner any more."""


class CodeError(Exception):
    """The code cannot be had as it was announced; the text says what is wrong."""


class CodeCache:
    """``load`` gives the code of an application; least recently used code is dropped above ``limit_bytes``."""

    def __init__(
        self,
        *,
        clock: Clock,
        calls: Calls,
        blobs: Blobs,
        metrics: Metrics,
        root: str | Path,
        limit_bytes: int = LIMIT_BYTES,
    ) -> None:
        self._clock = clock
        self._calls = calls
        self._blobs = blobs
        self._metrics = metrics
        self._folder = Path(root) / "by_hash"
        self._limit_bytes = limit_bytes
        self._keeps = True
        self._waiting: dict[str, list[Deferred[bytes]]] = {}
        self._loading: dict[str, Deferred[bytes]] = {}

    async def load(self, payload: Payload) -> bytes:
        """The code at ``payload``. Raises CodeError or BlobError."""
        digest = (payload.sha256 or "").lower()
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise CodeError(f"the application's code is announced with {payload.sha256!r}, which is no SHA-256")
        if not payload.uri:
            raise CodeError("the application's code has no URI")
        waiting: Deferred[bytes] = Deferred(lambda waiter: self._give_up(digest, waiter))
        self._waiting.setdefault(digest, []).append(waiting)
        if digest not in self._loading:
            work: Deferred[bytes] = Deferred.fromCoroutine(self._load(digest, payload))
            self._loading[digest] = work
            work.addBoth(self._loaded, digest)
        return await waiting

    async def close(self) -> None:
        """Give up what is being loaded."""
        for work in list(self._loading.values()):
            work.cancel()

    def _give_up(self, digest: str, waiter: Deferred[bytes]) -> None:
        waiters = self._waiting.get(digest, [])
        if waiter in waiters:
            waiters.remove(waiter)

    def _loaded(self, result: bytes | Failure, digest: str) -> None:
        self._loading.pop(digest, None)
        for waiter in self._waiting.pop(digest, ()):
            waiter.errback(result) if isinstance(result, Failure) else waiter.callback(result)

    async def _load(self, digest: str, payload: Payload) -> bytes:
        path = self._folder / digest
        code = await self._calls.run(_read_verified, path, digest)
        if code is not None:
            self._metrics.counter("application_downloads_from_cache").add()
            return code
        began = self._clock.seconds()
        self._metrics.counter("application_downloads").add()
        try:
            code = await self._download(path, digest, payload)
        except CancelledError:
            raise
        except Exception:
            self._metrics.counter("application_download_errors").add()
            raise
        finally:
            took = self._clock.seconds() - began
            self._metrics.histogram("application_download_latency_seconds").observe(took)
        log.info("application code downloaded", uri=payload.uri, bytes=len(code))
        return code

    async def _download(self, path: Path, digest: str, payload: Payload) -> bytes:
        assert payload.uri is not None
        code, problem = await self._blobs.fetch(
            payload.uri,
            lambda pieces: _verified_and_kept(pieces, path, digest, payload, self._limit_bytes),
            payload.offset or 0,
        )
        if problem is None:
            self._keeps = True
        elif self._keeps:
            self._keeps = False
            log.warn(
                "the cache of application code cannot be written; starts go on and download the code anew",
                folder=str(self._folder),
                error=problem,
            )
        return code


def _read_verified(path: Path, digest: str) -> bytes | None:
    """The code in ``path`` if it is what its name says; whatever else is there is removed."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # Reading a pipe would never end.
            _remove_damaged(path, "it is no file")
            return None
        code = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        log.warn("cached application code cannot be read", path=str(path), error=str(error))
        return None
    if hashlib.sha256(code).hexdigest() != digest:
        _remove_damaged(path, "its content is not what its name says")
        return None
    with suppress(OSError):  # Dropped by another node meanwhile, or not ours to touch: the code is good all the same.
        os.utime(path)
    return code


def _remove_damaged(path: Path, why: str) -> None:
    log.warn("cached application code is damaged and will be downloaded again", path=str(path), error=why)
    try:
        _remove(path)
    except OSError as error:
        log.warn("damaged application code cannot be removed", path=str(path), error=str(error))


def _remove(path: Path) -> None:
    """File, link or folder; one that is gone already is fine. Raises OSError."""
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _verified_and_kept(
    pieces: Iterator[bytes], path: Path, digest: str, payload: Payload, limit_bytes: int
) -> tuple[bytes, str | None]:
    """The code, and what keeps it from being cached, if anything. Raises CodeError for what was not announced."""
    code = bytearray()
    for piece in pieces:
        code += piece
        if payload.size and len(code) > payload.size:
            raise CodeError(f"the code at {payload.uri} is longer than the announced {payload.size} bytes")
    found = hashlib.sha256(code).hexdigest()
    if found != digest:
        raise CodeError(
            f"the code at {payload.uri} has the SHA-256 {found} ({len(code)} bytes), announced were {digest}"
            f" ({payload.size} bytes)"
        )
    problem = None
    try:
        _keep(code, path)
        _drop_least_recent(path, limit_bytes)
    except OSError as error:
        problem = str(error)
    return bytes(code), problem


def _keep(code: bytearray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{uuid.uuid4().hex}.download")
    try:
        unfinished.write_bytes(code)
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):  # What went wrong before is told.
            unfinished.unlink(missing_ok=True)
        raise


def _drop_least_recent(kept: Path, limit_bytes: int) -> None:
    """Bring the folder below ``limit_bytes``, ``kept`` last; with it go downloads that died with their node."""
    files: list[tuple[float, int, Path]] = []
    for path in kept.parent.iterdir():
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        if path.name.startswith("."):
            if time.time() - status.st_mtime > STALE_SECONDS:
                _remove(path)
            continue
        files.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files, key=lambda each: (each[2] == kept, each[0])):
        if total <= limit_bytes or path == kept:
            break
        _remove(path)
        total -= size
