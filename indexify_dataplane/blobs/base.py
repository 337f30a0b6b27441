"""The interface between the node and whatever keeps blobs.

A store is plain blocking code and safe to call from several threads; ``blobs.stores`` makes it asynchronous once. Which
store serves a blob is decided by the scheme of its URI.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from attrs import frozen

READ_BYTES = 1024 * 1024
"""How much of a blob is in memory at a time while it is streamed."""


class BlobError(Exception):
    """An operation on a blob failed; the text names operation, URI and cause. ``retryable`` says that the same
    operation may succeed later (the store is down, slow or busy)."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class BlobNotFound(BlobError):
    """There is no such blob: the store said so, no other failure is reported like this."""


@frozen
class OpenUpload:
    """A multipart upload that was begun and neither completed nor aborted."""

    uri: str
    upload_id: str


class BlobStore(Protocol):
    """Every method raises BlobError. Nothing of an upload can be read before it was completed."""

    @property
    def urls_need_io(self) -> bool:
        """Whether ``read_url`` and ``part_url`` may block (for instance to renew credentials)."""

    @property
    def near(self) -> bool:
        """Whether calls take no round trip: ending an upload is then less than handing it to a thread."""

    def size(self, uri: str) -> int:
        """Bytes of the blob. Raises BlobNotFound."""

    def read(self, uri: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Its bytes from ``offset`` on, in pieces of at most ``READ_BYTES``; fails before the first piece or later."""

    def write(self, uri: str, pieces: Iterable[bytes]) -> int:
        """Store ``pieces`` as one blob, all or nothing, and return its size. Bounded memory for any size."""

    def delete(self, uri: str) -> None:
        """Remove the blob; one that is gone already is no error."""

    def read_url(self, uri: str, lifetime: int) -> str:
        """Where anyone may read the whole blob or ranges of it for ``lifetime`` seconds."""

    def create_upload(self, uri: str) -> str:
        """Begin a multipart upload; its id."""

    def part_url(self, uri: str, upload_id: str, number: int, lifetime: int) -> str:
        """Where anyone may PUT part ``number`` (from 1) for ``lifetime`` seconds."""

    def complete_upload(self, uri: str, upload_id: str, etags: Sequence[str]) -> None:
        """Make the parts 1 to n, of these etags, the blob. Repeating a completion that succeeded is no error as long
        as nobody else wrote the blob since. No etags make an empty blob."""

    def abort_upload(self, uri: str, upload_id: str) -> None:
        """Throw the upload away. One that is unknown, completed or aborted is no error."""

    def open_uploads(self, prefix: str) -> Sequence[OpenUpload]:
        """Uploads under way to URIs that begin with ``prefix``."""
