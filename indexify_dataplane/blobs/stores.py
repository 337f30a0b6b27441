"""All blob stores behind one asynchronous face: the scheme chooses, calls run in a pool, every call is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import ParamSpec, TypeVar

from twisted.internet.defer import CancelledError

from ..metrics import Metrics
from ..reactor import Calls, Clock
from .base import BlobStore, OpenUpload
from .local import LocalStore
from .s3 import S3Settings, S3Store
from .uri import BlobUriError, scheme_of

T = TypeVar("T")
P = ParamSpec("P")


class Blobs:
    """Blobs of every store. Coroutines raise BlobError; cancelling one gives the answer up, not the call.

    ``calls`` is a pool of its own: a store that hangs then delays nothing but other blobs.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        calls: Calls,
        metrics: Metrics,
        s3: S3Settings | None = None,
        stores: Mapping[str, BlobStore] | None = None,
    ) -> None:
        self._clock = clock
        self._calls = calls
        self._metrics = metrics
        self._stores: Mapping[str, BlobStore] = stores or {"file": LocalStore(), "s3": S3Store(s3)}

    def store_of(self, uri: str) -> BlobStore:
        """The blocking store that holds ``uri``. Raises BlobUriError."""
        scheme = scheme_of(uri)
        store = self._stores.get(scheme)
        if store is None:
            raise BlobUriError(f"{uri!r}: {scheme}:// is not served here")
        return store

    async def size(self, uri: str) -> int:
        return await self._run("get_metadata", self.store_of(uri).size, uri)

    async def read_url(self, uri: str, lifetime: int) -> str:
        store = self.store_of(uri)
        if store.urls_need_io:
            return await self._run("presign_uri", store.read_url, uri, lifetime)
        return store.read_url(uri, lifetime)

    async def create_upload(self, uri: str) -> str:
        return await self._run("create_multipart_upload", self.store_of(uri).create_upload, uri)

    async def part_urls(self, uri: str, upload_id: str, count: int, lifetime: int) -> list[str]:
        """URLs of the parts 1 to ``count``."""
        store = self.store_of(uri)

        def sign() -> list[str]:
            return [store.part_url(uri, upload_id, number, lifetime) for number in range(1, count + 1)]

        return await self._run("presign_uri", sign) if store.urls_need_io else sign()

    async def complete_upload(self, uri: str, upload_id: str, etags: Sequence[str]) -> None:
        await self._run("complete_multipart_upload", self.store_of(uri).complete_upload, uri, upload_id, etags)

    async def abort_upload(self, uri: str, upload_id: str) -> None:
        await self._run("abort_multipart_upload", self.store_of(uri).abort_upload, uri, upload_id)

    def near(self, uri: str) -> bool:
        """See ``BlobStore.near``."""
        return self.store_of(uri).near

    async def end_uploads(
        self, completed: Sequence[tuple[str, str, Sequence[str]]], aborted: Sequence[tuple[str, str]]
    ) -> None:
        """Complete and abort uploads (URI, id and etags; URI and id) one after the other, as one call of a thread.
        After a BlobError each may be ended again."""
        began = self._clock.seconds()
        names = {"complete_multipart_upload": len(completed), "abort_multipart_upload": len(aborted)}

        def end() -> None:
            for uri, upload_id, etags in completed:
                self.store_of(uri).complete_upload(uri, upload_id, etags)
            for uri, upload_id in aborted:
                self.store_of(uri).abort_upload(uri, upload_id)

        for name, count in names.items():
            self._metrics.counter(f"blob_store.{name}.requests").add(count)
        try:
            await self._calls.run(end)
        except CancelledError:
            raise
        except Exception:
            for name, count in names.items():
                self._metrics.counter(f"blob_store.{name}.errors").add(count)
            raise
        for name, count in names.items():
            for _ in range(count):
                self._took(name, began)

    async def open_uploads(self, prefix: str) -> Sequence[OpenUpload]:
        """Uploads under way to URIs that begin with ``prefix``."""
        return await self._calls.run(self.store_of(prefix).open_uploads, prefix)

    async def fetch(self, uri: str, use: Callable[[Iterator[bytes]], T], offset: int = 0) -> T:
        """Call ``use`` with the blob's pieces, in a thread; its result."""
        store = self.store_of(uri)
        return await self._run("get", lambda: use(store.read(uri, offset)))

    async def put(self, uri: str, pieces: Iterable[bytes]) -> int:
        """Store ``pieces``, which are produced in a thread, as one blob; its size."""
        return await self._run("put", self.store_of(uri).write, uri, pieces)

    async def put_from(self, uri: str, source: Callable[[], AbstractContextManager[Iterable[bytes]]]) -> int:
        """Store what ``source`` yields, which is opened, read and closed in a thread, as one blob; its size."""
        store = self.store_of(uri)

        def write() -> int:
            with source() as pieces:
                return store.write(uri, pieces)

        return await self._run("put", write)

    async def delete(self, uri: str) -> None:
        await self._calls.run(self.store_of(uri).delete, uri)

    async def _run(self, operation: str, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        began = self._clock.seconds()
        self._metrics.counter(f"blob_store.{operation}.requests").add()
        try:
            return await self._calls.run(call, *args, **kwargs)
        except CancelledError:
            raise
        except Exception:
            self._metrics.counter(f"blob_store.{operation}.errors").add()
            raise
        finally:
            self._took(operation, began)

    def _took(self, operation: str, began: float) -> None:
        self._metrics.histogram(f"blob_store.{operation}.latency_seconds").observe(self._clock.seconds() - began)
