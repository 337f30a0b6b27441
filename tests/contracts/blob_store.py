"""What every blob store does, whatever keeps the bytes. Parts are written as an executor writes them."""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection
from urllib.parse import urlsplit

from indexify_dataplane.blobs.base import BlobError, BlobNotFound, BlobStore, OpenUpload
from indexify_dataplane.blobs.uri import state_uri

MIB = 1024 * 1024


def put_part(url: str, offset: int, data: bytes) -> str:
    """As a function executor does it: a file is written at its offset, everything else is a plain PUT."""
    if url.startswith("file://"):
        path = url[7:]
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "r+b" if os.path.exists(path) else "w+b") as file:
            file.seek(offset)
            file.write(data)
        return hashlib.md5(data).hexdigest()
    place = urlsplit(url)
    connection = HTTPConnection(place.netloc, timeout=10)
    try:
        connection.request("PUT", f"{place.path}?{place.query}", body=data)
        reply = connection.getresponse()
        if reply.status != 200:
            raise OSError(f"PUT answers {reply.status}: {reply.read()!r}")
        etag = reply.headers["ETag"]
        assert etag is not None
        return etag
    finally:
        connection.close()


def get_range(url: str, begin: int, end: int) -> bytes:
    """Bytes ``begin`` to ``end``, without the last."""
    if url.startswith("file://"):
        with open(url[7:], "rb") as file:
            file.seek(begin)
            return file.read(end - begin)
    request = urllib.request.Request(url, headers={"Range": f"bytes={begin}-{end - 1}"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        return reply.read()


class BlobStoreContract:
    """Mixed into a TestCase that sets ``store`` and ``base`` (an empty place's URI, without a slash at its end)."""

    store: BlobStore
    base: str

    def read(self, uri: str, offset: int = 0, length: int | None = None) -> bytes:
        return b"".join(self.store.read(uri, offset, length))

    def upload(self, uri: str, *parts: bytes) -> tuple[str, list[str]]:
        upload_id = self.store.create_upload(uri)
        etags, offset = [], 0
        for number, part in enumerate(parts, 1):
            etags.append(put_part(self.store.part_url(uri, upload_id, number, 60), offset, part))
            offset += len(part)
        return upload_id, etags

    def test_what_was_written_can_be_read_whole_and_in_part(self) -> None:
        uri = f"{self.base}/a/b c/%41.bin"
        data = os.urandom(3 * MIB + 17)
        self.assertEqual(self.store.write(uri, iter([data[:5], b"", data[5:]])), len(data))
        self.assertEqual(self.store.size(uri), len(data))
        self.assertEqual(self.read(uri), data)
        self.assertEqual(self.read(uri, 7, 100), data[7:107])
        self.assertEqual(self.read(uri, MIB), data[MIB:])
        self.assertEqual(self.read(uri, 5, 0), b"")
        self.assertEqual(get_range(self.store.read_url(uri, 60), 10, 20), data[10:20])

    def test_an_empty_blob_is_a_blob(self) -> None:
        uri = f"{self.base}/empty"
        self.assertEqual(self.store.write(uri, iter(())), 0)
        self.assertEqual(self.store.size(uri), 0)
        self.assertEqual(self.read(uri), b"")

    def test_a_missing_blob_is_told_from_other_failures(self) -> None:
        self.assertRaises(BlobNotFound, self.store.size, f"{self.base}/missing")
        self.assertRaises(BlobNotFound, self.read, f"{self.base}/missing")
        self.assertRaises(BlobNotFound, self.read, f"{self.base}/missing", 1, 0)

    def test_a_blob_that_is_too_short_is_no_success(self) -> None:
        uri = f"{self.base}/short"
        self.store.write(uri, [b"12345"])
        self.assertRaises(BlobError, self.read, uri, 2, 10)

    def test_a_failing_writer_leaves_the_old_blob(self) -> None:
        uri = f"{self.base}/kept"
        self.store.write(uri, [b"old"])

        def pieces() -> Iterator[bytes]:
            yield b"new" * (6 * MIB)
            raise RuntimeError("the source broke")

        self.assertRaises(RuntimeError, self.store.write, uri, pieces())
        self.assertEqual(self.read(uri), b"old")
        self.assertEqual(list(self.store.open_uploads(self.base)), [])

    def test_an_upload_is_invisible_until_it_is_complete(self) -> None:
        uri = f"{self.base}/parts/result"
        first, second = os.urandom(5 * MIB), os.urandom(1000)
        upload_id, etags = self.upload(uri, first, second)
        self.assertRaises(BlobNotFound, self.store.size, uri)
        self.store.complete_upload(uri, upload_id, etags)
        self.assertEqual(self.store.size(uri), len(first) + len(second))
        self.assertEqual(self.read(uri), first + second)
        self.assertEqual(list(self.store.open_uploads(self.base)), [])

    def test_a_shorter_value_replaces_a_longer_one_completely(self) -> None:
        uri = f"{self.base}/state/key"
        for value in (b"a long value", b"short"):
            upload_id, etags = self.upload(uri, value)
            self.store.complete_upload(uri, upload_id, etags)
        self.assertEqual(self.read(uri), b"short")

    def test_request_state_has_a_place_for_every_key(self) -> None:
        long = "n" * 2000
        keys = ("", ".", "..", "...", "/", "a/b", "a", "%", "%empty", "ключ" * 30, "n" * 255, long, f"{long}2", "\0")
        uris = {key: state_uri(f"{self.base}/request", key) for key in keys}
        self.assertEqual(len(set(uris.values())), len(keys))
        for uri in uris.values():
            self.assertRaises(BlobNotFound, self.store.size, uri)
        for key, uri in uris.items():
            upload_id, etags = self.upload(uri, key.encode())
            self.store.complete_upload(uri, upload_id, etags)
        for key, uri in uris.items():
            value = key.encode()
            self.assertEqual(self.store.size(uri), len(value))
            self.assertEqual(self.read(uri), value)
            if value:
                self.assertEqual(get_range(self.store.read_url(uri, 60), 0, 5), value[:5])

    def test_completing_again_is_no_error(self) -> None:
        uri = f"{self.base}/again"
        upload_id, etags = self.upload(uri, b"data")
        self.store.complete_upload(uri, upload_id, etags)
        self.store.complete_upload(uri, upload_id, etags)
        self.assertEqual(self.read(uri), b"data")

    def test_completing_what_nobody_wrote_fails(self) -> None:
        uri = f"{self.base}/unwritten"
        upload_id = self.store.create_upload(uri)
        self.assertRaises(BlobError, self.store.complete_upload, uri, upload_id, ['"5d41402abc4b2a76b9719d911017c592"'])
        self.assertRaises(BlobNotFound, self.store.size, uri)

    def test_no_parts_make_an_empty_blob(self) -> None:
        uri = f"{self.base}/nothing"
        self.store.complete_upload(uri, self.store.create_upload(uri), [])
        self.assertEqual(self.store.size(uri), 0)

    def test_an_aborted_upload_leaves_nothing_and_can_be_aborted_again(self) -> None:
        uri = f"{self.base}/aborted"
        upload_id, _ = self.upload(uri, b"data")
        self.store.abort_upload(uri, upload_id)
        self.store.abort_upload(uri, upload_id)
        self.assertRaises(BlobNotFound, self.store.size, uri)
        self.assertEqual(list(self.store.open_uploads(self.base)), [])

    def test_aborting_after_completing_keeps_the_blob(self) -> None:
        uri = f"{self.base}/done"
        upload_id, etags = self.upload(uri, b"data")
        self.store.complete_upload(uri, upload_id, etags)
        self.store.abort_upload(uri, upload_id)
        self.assertEqual(self.read(uri), b"data")

    def test_open_uploads_are_found_by_their_prefix_and_can_be_aborted(self) -> None:
        long = "n" * 220
        ids = {
            name: self.upload(f"{self.base}/request/{name}", b"x")[0]
            for name in ("alloc-1.output_a", "alloc-1.req_error", "alloc-10.output_b", f"{long}1", f"{long}2")
        }
        found = self.store.open_uploads(f"{self.base}/request/alloc-1.")
        self.assertEqual({each.upload_id for each in found}, {ids["alloc-1.output_a"], ids["alloc-1.req_error"]})
        for each in self.store.open_uploads(f"{self.base}/request/"):
            self.assertIsInstance(each, OpenUpload)
            self.store.abort_upload(each.uri, each.upload_id)
        self.assertEqual(list(self.store.open_uploads(f"{self.base}/request/")), [])
        self.assertEqual(list(self.store.open_uploads(f"{self.base}/no/such/place")), [])

    def test_deleting_is_idempotent(self) -> None:
        uri = f"{self.base}/deleted"
        self.store.write(uri, [b"x"])
        self.store.delete(uri)
        self.store.delete(uri)
        self.assertRaises(BlobNotFound, self.store.size, uri)
