"""The four messages of ``container_daemon_pb``, coded by hand: protobuf's runtime is a compiled library."""

from __future__ import annotations


class MalformedMessage(Exception):
    """Bytes that are no protobuf message, or a field of the wrong wire type."""


def decode_signal_request(data: bytes) -> int:
    """``SendSignalRequest.signal``, 15 when it is absent."""
    signal = 15
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise MalformedMessage("field number 0")
        if number == 1 and kind == 0:
            value, position = _varint(data, position)
            value &= 0xFFFFFFFF
            signal = value - 2**32 if value >= 2**31 else value
        else:
            position = _skip(data, position, kind)
    return signal


def encode_signal_response(success: bool, error: str | None) -> bytes:
    data = b"\x08" + (b"\x01" if success else b"\x00")
    if error is not None:
        text = error.encode("utf-8")
        data += b"\x12" + _encoded(len(text)) + text
    return data


def encode_health_response(healthy: bool, version: str, uptime_secs: int) -> bytes:
    text = version.encode("utf-8")
    return b"\x08" + _encoded(int(healthy)) + b"\x12" + _encoded(len(text)) + text + b"\x18" + _encoded(uptime_secs)


def _encoded(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise MalformedMessage("the message ends in the middle of a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise MalformedMessage("a number of more than ten bytes")


def _skip(data: bytes, position: int, kind: int) -> int:
    if kind == 0:
        return _varint(data, position)[1]
    if kind == 1:
        position += 8
    elif kind == 2:
        length, position = _varint(data, position)
        position += length
    elif kind == 5:
        position += 4
    else:
        raise MalformedMessage(f"wire type {kind}")
    if position > len(data):
        raise MalformedMessage("the message ends in the middle of a field")
    return position
