"""URIs of blobs: ``file://`` with an absolute path, ``s3://bucket/key``; taken literally, nothing is decoded."""

from __future__ import annotations

import hashlib

from attrs import frozen

from .base import BlobError

_LITERAL = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~")

_LONGEST_FILE_NAME = 255
"""Bytes: NAME_MAX of Linux's file systems."""
_LONGEST_S3_KEY = 1024
"""Bytes, as S3's guide to object keys has it."""


class BlobUriError(BlobError):
    """The URI names no blob; the text quotes it."""


@frozen
class S3Uri:
    bucket: str
    key: str


def scheme_of(uri: str) -> str:
    """``file`` or ``s3``. Raises BlobUriError for any other."""
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme not in ("file", "s3"):
        raise BlobUriError(f"{uri!r} is in no blob store: file:// and s3:// are known")
    return scheme


def file_path(uri: str) -> str:
    """The absolute path of a ``file://`` URI."""
    path = uri.removeprefix("file://")
    if path == uri or not path.startswith("/"):
        raise BlobUriError(f"{uri!r} is not file:// with an absolute path")
    if "\0" in path or ".." in path.split("/") or path.endswith("/"):
        raise BlobUriError(f"{uri!r} does not name a file")
    return path


def s3_parts(uri: str) -> S3Uri:
    bucket, slash, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket or not slash or not key:
        raise BlobUriError(f"{uri!r} is not s3://bucket/key")
    return S3Uri(bucket, key)


def state_uri(prefix: str, key: str) -> str:
    """Where a key of request state lies. Every key has a place of its own in every store: what a store cannot name (the
    empty name among files, whatever is too long) gets a name that no escaped key is, since those have two hexadecimal
    digits behind each ``%``."""
    base = f"{prefix}/state/"
    name = escape_key(key)
    if scheme_of(base) == "file":
        longest, unnamed = _LONGEST_FILE_NAME, not name
    else:
        longest, unnamed = _LONGEST_S3_KEY - len(s3_parts(base).key.encode(errors="surrogatepass")), False
    if unnamed:
        name = "%empty"
    elif len(name) > longest:
        name = "%sha256." + hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
    return base + name


def escape_key(key: str) -> str:
    """A key of request state as one path component: what is not unreserved becomes %XX of its UTF-8 bytes. ``.`` and
    ``..`` would be folders, so their first dot is escaped."""
    escaped = "".join(chr(byte) if byte in _LITERAL else f"%{byte:02X}" for byte in key.encode(errors="surrogatepass"))
    return "%2E" + escaped[1:] if escaped in (".", "..") else escaped
