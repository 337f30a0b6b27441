"""Reads ``multipart/form-data`` bodies, byte for byte (code archives are binary)."""

from __future__ import annotations

import re

_NAME = re.compile(rb';\s*name="([^"]*)"', re.IGNORECASE)
_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]+)"|([^\s;"]+))', re.IGNORECASE)


def read_multipart(content_type: str, body: bytes) -> dict[str, bytes]:
    """The parts by name. ValueError when the body is not what its content type says."""
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        raise ValueError("the content type is not multipart/form-data")
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise ValueError("the content type names no boundary")
    delimiter = b"\r\n--" + (found.group(1) or found.group(2)).encode("latin-1")
    chunks = (b"\r\n" + body).split(delimiter)
    if len(chunks) < 2 or not chunks[-1].startswith(b"--"):
        raise ValueError("the multipart body has no end")
    parts: dict[str, bytes] = {}
    for chunk in chunks[1:-1]:
        head, separator, content = chunk.lstrip(b" \t").partition(b"\r\n\r\n")
        if not separator or not head.startswith(b"\r\n"):
            raise ValueError("a part of the multipart body has no header")
        for line in head[2:].split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.strip().lower() == b"content-disposition":
                named = _NAME.search(value)
                if named is not None:
                    parts[named.group(1).decode()] = content
    return parts
