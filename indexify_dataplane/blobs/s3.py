"""Blobs in S3 or in a store that speaks its protocol.

One client per bucket, made on first use: its region is asked of the bucket unless a region or an endpoint is set.
URLs are signed with nothing but ``host`` (executors send plain GET and PUT), so checksums that newer clients add by
themselves are switched off. A URL dies with temporary credentials at the latest.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import frozen
from twisted.logger import Logger

from .base import READ_BYTES, BlobError, BlobNotFound, OpenUpload
from .uri import S3Uri, s3_parts

log = Logger()

MIB = 1024 * 1024
PART_BYTES = 16 * MIB
"""Parts of what this process writes; they grow with their number, so that 10,000 of them (S3's limit) hold 3 TiB."""

_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
_GONE = frozenset({"NoSuchUpload", "404"})


@frozen
class S3Settings:
    """How S3 is reached. What is None is found by the usual chain (environment, shared files, instance metadata).

    ``connect_timeout`` and ``read_timeout`` are seconds without an answer; ``attempts`` counts the first one.
    """

    region: str | None = None
    endpoint_url: str | None = None
    path_style: bool = True
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    attempts: int = 3
    connections: int = 16


def _part_bytes(number: int) -> int:
    return PART_BYTES << min(5, (number - 1) // 1000)


class S3Store:
    """Implements ``BlobStore`` for ``s3://``. ``boto3`` is imported with the first use."""

    urls_need_io = True
    near = False

    def __init__(self, settings: S3Settings | None = None) -> None:
        self._settings = settings or S3Settings()
        self._lock = threading.Lock()
        self._session: Any = None
        self._clients: dict[str, Any] = {}

    def size(self, uri: str) -> int:
        with self._object("get_metadata", uri) as (client, place):
            return int(client.head_object(Bucket=place.bucket, Key=place.key)["ContentLength"])

    def read(self, uri: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        if length == 0:
            self.size(uri)
            return
        with self._object("get", uri) as (client, place):
            wanted: dict[str, str] = {}
            if offset or length is not None:
                wanted["Range"] = f"bytes={offset}-" + ("" if length is None else str(offset + length - 1))
            body = client.get_object(Bucket=place.bucket, Key=place.key, **wanted)["Body"]
            got = 0
            try:
                while piece := body.read(READ_BYTES):
                    got += len(piece)
                    yield piece
            finally:
                body.close()
        if length is not None and got < length:
            raise BlobError(f"get of {uri}: it ends {length - got} bytes before the end of what was asked for")

    def write(self, uri: str, pieces: Iterable[bytes]) -> int:
        with self._object("put", uri) as (client, place):
            where = {"Bucket": place.bucket, "Key": place.key}
            buffer, written, etags, upload_id = bytearray(), 0, list[str](), ""
            try:
                for piece in pieces:
                    buffer += piece
                    written += len(piece)
                    while len(buffer) >= _part_bytes(len(etags) + 1):
                        if not upload_id:
                            upload_id = client.create_multipart_upload(**where)["UploadId"]
                        number = len(etags) + 1
                        part = bytes(buffer[: _part_bytes(number)])
                        del buffer[: len(part)]
                        etags.append(self._put_part(client, where, upload_id, number, part))
                if not upload_id:
                    client.put_object(**where, Body=bytes(buffer))
                    return written
                if buffer:
                    etags.append(self._put_part(client, where, upload_id, len(etags) + 1, bytes(buffer)))
                self._complete(client, where, upload_id, etags)
            except BaseException:
                if upload_id:
                    self._throw_away(client, where, upload_id)
                raise
            return written

    def delete(self, uri: str) -> None:
        with self._object("delete", uri) as (client, place):
            client.delete_object(Bucket=place.bucket, Key=place.key)

    def read_url(self, uri: str, lifetime: int) -> str:
        with self._object("presign_uri", uri) as (client, place):
            where = {"Bucket": place.bucket, "Key": place.key}
            return str(client.generate_presigned_url("get_object", Params=where, ExpiresIn=lifetime))

    def create_upload(self, uri: str) -> str:
        with self._object("create_multipart_upload", uri) as (client, place):
            return str(client.create_multipart_upload(Bucket=place.bucket, Key=place.key)["UploadId"])

    def part_url(self, uri: str, upload_id: str, number: int, lifetime: int) -> str:
        with self._object("presign_uri", uri) as (client, place):
            part = {"Bucket": place.bucket, "Key": place.key, "UploadId": upload_id, "PartNumber": number}
            return str(client.generate_presigned_url("upload_part", Params=part, ExpiresIn=lifetime))

    def complete_upload(self, uri: str, upload_id: str, etags: Sequence[str]) -> None:
        with self._object("complete_multipart_upload", uri) as (client, place):
            where = {"Bucket": place.bucket, "Key": place.key}
            written = list(etags) or [self._put_part(client, where, upload_id, 1, b"")]
            try:
                self._complete(client, where, upload_id, written)
            except client.exceptions.ClientError as error:
                # A completion whose answer was lost ended the upload; what it made tells that it was this one.
                if _code(error) not in _GONE or not self._is_made_of(client, where, written):
                    raise

    def abort_upload(self, uri: str, upload_id: str) -> None:
        with self._object("abort_multipart_upload", uri) as (client, place):
            try:
                client.abort_multipart_upload(Bucket=place.bucket, Key=place.key, UploadId=upload_id)
            except client.exceptions.ClientError as error:
                if _code(error) not in _GONE:
                    raise

    def open_uploads(self, prefix: str) -> Sequence[OpenUpload]:
        found: list[OpenUpload] = []
        with self._object("list_multipart_uploads", prefix) as (client, place):
            pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=place.bucket, Prefix=place.key)
            for page in pages:
                found.extend(
                    OpenUpload(f"s3://{place.bucket}/{each['Key']}", each["UploadId"])
                    for each in page.get("Uploads", ())
                )
        return found

    @staticmethod
    def _throw_away(client: Any, where: dict[str, str], upload_id: str) -> None:
        """After a failure, which is what the caller hears of; often the store is away and this fails as well."""
        try:
            client.abort_multipart_upload(**where, UploadId=upload_id)
        except Exception as error:
            log.warn("an unfinished upload cannot be aborted now", **where, upload_id=upload_id, error=str(error))

    @staticmethod
    def _put_part(client: Any, where: dict[str, str], upload_id: str, number: int, part: bytes) -> str:
        return str(client.upload_part(**where, UploadId=upload_id, PartNumber=number, Body=part)["ETag"])

    @staticmethod
    def _complete(client: Any, where: dict[str, str], upload_id: str, etags: Sequence[str]) -> None:
        parts = [{"ETag": etag, "PartNumber": number} for number, etag in enumerate(etags, 1)]
        client.complete_multipart_upload(**where, UploadId=upload_id, MultipartUpload={"Parts": parts})

    @staticmethod
    def _is_made_of(client: Any, where: dict[str, str], etags: Sequence[str]) -> bool:
        """Whether the blob is the outcome of a multipart upload of exactly these parts."""
        try:
            digests = b"".join(bytes.fromhex(etag.strip('"')) for etag in etags)
        except ValueError:
            return False
        expected = f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(etags)}"'
        try:
            return bool(client.head_object(**where)["ETag"] == expected)
        except client.exceptions.ClientError:
            return False

    @contextmanager
    def _object(self, operation: str, uri: str) -> Iterator[tuple[Any, S3Uri]]:
        """The client and the place of ``uri``; the client's errors become ours, with operation and URI."""
        place = s3_parts(uri)
        try:
            import boto3  # noqa: F401
        except ImportError as error:
            raise BlobError(f"{operation} of {uri}: s3:// needs boto3; install indexify-dataplane[s3]") from error
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            ConnectionError,
            HTTPClientError,
            IncompleteReadError,
        )

        try:
            yield self._client(place.bucket), place
        except ClientError as error:
            code = _code(error)
            status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
            text = f"{operation} of {uri}: {code}: {error.response.get('Error', {}).get('Message', 'no details')}"
            if code in _MISSING:
                raise BlobNotFound(text) from error
            raise BlobError(text, retryable=status >= 500 or status in (408, 429)) from error
        except (ConnectionError, HTTPClientError, IncompleteReadError) as error:
            raise BlobError(f"{operation} of {uri}: {error}", retryable=True) from error
        except BotoCoreError as error:
            raise BlobError(f"{operation} of {uri}: {error}; see the S3 part of the configuration") from error

    def _client(self, bucket: str) -> Any:
        client = self._clients.get(bucket)
        if client is None:
            client = self._make(self._region(bucket))
            with self._lock:
                client = self._clients.setdefault(bucket, client)
        return client

    def _make(self, region: str | None) -> Any:
        import boto3
        from botocore.config import Config

        settings = self._settings
        with self._lock:  # A session is not safe to share between threads.
            if self._session is None:
                self._session = boto3.session.Session()
            return self._session.client(
                "s3",
                region_name=region,
                endpoint_url=settings.endpoint_url,
                config=Config(
                    signature_version="s3v4",
                    s3={"addressing_style": "path" if settings.path_style else "auto"},
                    connect_timeout=settings.connect_timeout,
                    read_timeout=settings.read_timeout,
                    retries={"mode": "standard", "total_max_attempts": settings.attempts},
                    max_pool_connections=settings.connections,
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )

    def _region(self, bucket: str) -> str | None:
        """The bucket's region as it tells it itself, also in a refusal; None for the client's own default."""
        if self._settings.region is not None or self._settings.endpoint_url is not None:
            return self._settings.region
        from botocore.exceptions import BotoCoreError, ClientError

        client = self._make(None)
        try:
            if client.meta.endpoint_url and "amazonaws.com" not in client.meta.endpoint_url:
                return None
            answer = client.head_bucket(Bucket=bucket)
        except ClientError as error:
            answer = error.response
        except BotoCoreError:
            return None
        finally:
            client.close()
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        region: str | None = headers.get("x-amz-bucket-region")
        return region


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", "Unknown"))
