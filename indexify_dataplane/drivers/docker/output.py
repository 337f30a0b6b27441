"""A container's own output, as the engine keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .failures import OTHER, engine_call

HEADER = 8
"""Bytes before each frame: the stream's number, three zeros, the length (big-endian)."""
LARGEST = 256 * 1024
"""Bytes of output that are kept at most."""


def frames(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The contents of a multiplexed stream's frames; chunks may split anywhere, the last frame may be cut."""
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        while len(buffer) >= HEADER:
            length = int.from_bytes(buffer[4:HEADER], "big")
            if len(buffer) < HEADER + length:
                break
            yield bytes(buffer[HEADER : HEADER + length])
            del buffer[: HEADER + length]
    if len(buffer) > HEADER:
        yield bytes(buffer[HEADER:])


def last_lines(contents: Iterable[bytes], lines: int) -> str:
    """Decoded with replacement; the end of it where it is too large."""
    kept = bytearray()
    for content in contents:
        kept += content
        if len(kept) > 2 * LARGEST:
            del kept[:-LARGEST]
    text = bytes(kept[-LARGEST:]).decode("utf-8", "replace").removesuffix("\n")
    return "\n".join(text.split("\n")[-lines:]) if lines > 0 else ""


def tail(client: Any, identity: str, lines: int) -> str:
    """The last lines of a container's output; nothing if it is gone. ``client`` is docker-py's low-level one. Blocks;
    raises DriverError."""
    with engine_call(OTHER, f"output of container {identity[:12]} cannot be read"):
        response = client.get(
            f"{client.base_url}/v{client.api_version}/containers/{identity}/logs",
            params={"stdout": 1, "stderr": 1, "tail": str(max(lines, 0))},
            stream=True,
            timeout=client.timeout,
        )
        with response:
            if response.status_code == 404:
                return ""
            client._raise_for_status(response)
            return last_lines(frames(response.iter_content(64 * 1024)), lines)
