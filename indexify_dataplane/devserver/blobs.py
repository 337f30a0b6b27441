"""Where the development control plane keeps code, request bodies and what executors write: a directory, or memory."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import quote, unquote, urlsplit


class Blobs(Protocol):
    """A blob store with one base URI, shared with the executors."""

    base: str

    def write(self, name: str, data: bytes) -> str:
        """Store ``data`` under ``name`` below the base; its URI."""

    def open(self, uri: str) -> BinaryIO:
        """A seekable reader. FileNotFoundError when there is no such blob here."""

    def delete(self, uri: str) -> None:
        """Remove a blob; one that is gone already is fine."""


class DirectoryBlobs:
    """Files below a directory; ``file://`` URIs."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory).absolute()
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.base = f"file://{self._directory}"

    def write(self, name: str, data: bytes) -> str:
        path = self._directory / quote(name)
        if not path.resolve().is_relative_to(self._directory.resolve()):
            raise ValueError(f"a blob name may not leave the blob directory: {name!r}")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        unfinished = path.with_name(f".{path.name}.part")
        unfinished.write_bytes(data)
        unfinished.rename(path)
        return f"file://{path}"

    def _path(self, uri: str) -> Path:
        parts = urlsplit(uri)
        if parts.scheme != "file":
            raise FileNotFoundError(f"not a file of this blob store: {uri}")
        literal = Path(uri.removeprefix("file://"))
        return literal if literal.exists() else Path(unquote(parts.path))

    def open(self, uri: str) -> BinaryIO:
        path = self._path(uri).resolve()
        if not path.is_relative_to(self._directory.resolve()):
            raise FileNotFoundError(f"not a file of this blob store: {uri}")
        return path.open("rb")

    def delete(self, uri: str) -> None:
        path = self._path(uri).resolve()
        if path.is_relative_to(self._directory.resolve()):
            path.unlink(missing_ok=True)


class MemoryBlobs:
    """Bytes in a dictionary, for a control plane that runs without a file system."""

    def __init__(self, base: str = "file:///blobs") -> None:
        self.base = base
        self.contents: dict[str, bytes] = {}

    def write(self, name: str, data: bytes) -> str:
        uri = f"{self.base}/{name}"
        self.contents[uri] = data
        return uri

    def open(self, uri: str) -> BinaryIO:
        if uri not in self.contents:
            raise FileNotFoundError(f"not in this blob store: {uri}")
        return io.BytesIO(self.contents[uri])

    def delete(self, uri: str) -> None:
        self.contents.pop(uri, None)
