"""Inputs for HTTP/2: bytes that spell frames, in a small language in which a changed byte stays a session.

Each record begins with a byte whose lowest three bits say what it is:

0, 1  a head: flags, stream, number of fields, then for each field one byte: an entry of ``FIELDS``, or 255 for a
      literal (length and bytes of the name, length and bytes of the value)
2     data: flags, stream, two bytes of length; the payload is zeros, of a gRPC message where it fits
3     any frame: kind, flags, stream, length, payload
4     the beginning of a frame only: three bytes of length, kind, flags, stream
5     bytes as they are: length, bytes
6     a reset: stream, code
7     a window: stream, four bytes of increment
"""

from __future__ import annotations

from collections.abc import Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

FIELDS: list[tuple[bytes, bytes]] = [
    (b":method", b"POST"), (b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/p"), (b":authority", b"h"),
    (b"tensorlake-sandbox-id", b"sb-1"), (b"content-type", b"application/grpc"), (b"te", b"trailers"),
    (b"content-length", b"3"), (b"content-length", b"0"), (b"content-length", b"+3"), (b"content-length", b"1_0"),
    (b"host", b"h"), (b"host", b"other"), (b"connection", b"close"), (b"transfer-encoding", b"chunked"),
    (b"cookie", b"a=b"), (b"x-a", b"y"), (b"x-a", b"y\r\nx-b: z"), (b"x a", b"y"), (b"X-A", b"y"), (b"x-a", b" y "),
    (b":status", b"200"), (b":status", b"103"), (b":status", b"304"), (b":status", b"abc"), (b"grpc-status", b"0"),
    (b":path", b"*"), (b":path", b""), (b":path", b"/a b"), (b":path", b"/container_daemon_pb.ContainerDaemon/Health"),
    (b":path", b"/container_daemon_pb.ContainerDaemon/SendSignal"), (b":method", b"HEAD"), (b":method", b"CONNECT"),
    (b":protocol", b"websocket"), (b"tensorlake-sandbox-id", b"sb-2"), (b"tensorlake-sandbox-port", b"80"),
    (b"tensorlake-sandbox-port", b"7"), (b"tensorlake-sandbox-port", b"8"), (b"expect", b"100-continue"),
    (b"upgrade", b"websocket"), (b"origin", b"http://page"), (b"access-control-request-method", b"GET"),
    (b":method", b"OPTIONS"), (b"x-indexify-sandbox-token", b"t"), (b"x-indexify-sandbox-token", b"mine"),
    (b"trailer", b"x-sum"), (b"x-sum", b"1"), (b":status", b"101"), (b":status", b"204"), (b"content-length", b"4"),
    (b"", b""), (b"x-a", b"\0"), (b"x-a", b"\xff"), (b"x-forwarded-for", b"1.2.3.4"), (b"authorization", b"secret"),
]  # fmt: skip


class Bytes:
    """Takes an input apart; where it has ended, zeros come."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> bool:
        return self._at < len(self._data)

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.take(size).ljust(size, b"\0"), "big")

    def take(self, size: int) -> bytes:
        data = self._data[self._at : self._at + size]
        self._at += size
        return data


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def literal(name: bytes, value: bytes) -> bytes:
    """HPACK, without a table and without Huffman coding."""
    return b"\x10" + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes([size]) + text
    encoded = bytearray([127])
    size -= 127
    while size > 127:
        encoded.append(size & 127 | 128)
        size >>= 7
    encoded.append(size)
    return bytes(encoded) + text


def fields(source: Bytes) -> bytes:
    block = b""
    for _ in range(source.number() % 32):
        entry = source.number()
        if entry == 255:
            name = source.take(source.number())
            block += literal(name, source.take(source.number()))
        else:
            block += literal(*FIELDS[entry % len(FIELDS)])
    return block


def pieces(data: bytes) -> Iterator[bytes]:
    """Frames, one after the other, most of them whole."""
    source = Bytes(data)
    for _ in range(64):
        if not source.left:
            return
        match source.number() & 7:
            case 0 | 1:
                flags, stream = source.number(), source.number()
                # Padding and priority would need a payload of their own: kind 3 of record has them.
                yield frame(1, flags & 0x05, stream, fields(source))
            case 2:
                flags, stream, size = source.number(), source.number(), source.number(2) % 16385
                message = b"\0" + (size - 5).to_bytes(4, "big") + bytes(size - 5) if size >= 5 else bytes(size)
                yield frame(0, flags & 0x01, stream, message)
            case 3:
                kind, flags, stream = source.number(), source.number(), source.number()
                yield frame(kind, flags, stream, source.take(source.number()))
            case 4:
                size, kind, flags, stream = source.number(3), source.number(), source.number(), source.number()
                yield size.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
            case 5:
                yield source.take(source.number())
            case 6:
                stream = source.number()
                yield frame(3, 0, stream, source.number().to_bytes(4, "big"))
            case 7:
                stream = source.number()
                yield frame(8, 0, stream, source.number(4).to_bytes(4, "big"))


def client_session(data: bytes) -> list[bytes]:
    return [PREFACE + frame(4, 0, 0, b""), *pieces(data)]


def server_session(data: bytes) -> list[bytes]:
    return [frame(4, 0, 0, b""), *pieces(data)]


# -- the same language, for seeds


def head(stream: int, ended: bool, *chosen: tuple[bytes, bytes]) -> bytes:
    entries = b""
    for name, value in chosen:
        if (name, value) in FIELDS:
            entries += bytes([FIELDS.index((name, value))])
        else:
            entries += b"\xff" + bytes([len(name)]) + name + bytes([len(value)]) + value
    return bytes([0, 5 if ended else 4, stream, len(chosen)]) + entries


def body(stream: int, ended: bool, size: int) -> bytes:
    return bytes([2, int(ended), stream]) + size.to_bytes(2, "big")


def reset(stream: int, code: int) -> bytes:
    return bytes([6, stream, code])
