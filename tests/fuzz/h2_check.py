"""What every HTTP/2 connection of ours has to keep to, seen from its other side."""

from __future__ import annotations

from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from hyperframe.frame import Frame

from .wire import Wire, expect

LARGEST_FRAME = 16384


def check_frames(sent: bytes, what: str) -> None:
    """Whole frames of legal size."""
    at = 0
    while at < len(sent):
        expect(len(sent) - at >= 9, f"{what}: frames are whole", sent[at:])
        _, length = Frame.parse_frame_header(memoryview(sent[at : at + 9]))
        expect(length <= LARGEST_FRAME, f"{what}: frames have a legal size", length)
        expect(len(sent) - at >= 9 + length, f"{what}: frames are whole", sent[at:])
        at += 9 + length


def check_buffered(connection: Any, wire: Wire) -> None:
    """No more than a frame waits to become whole. h2 itself would wait for 16 MiB."""
    if wire.closing:
        return
    waiting = bytes(connection._h2.incoming_buffer._data)
    preface = connection._h2.incoming_buffer._preamble_len
    if preface:
        expect(len(waiting) < 24, "what is no preface is not kept", waiting)
    elif len(waiting) >= 9:
        expect(int.from_bytes(waiting[:3], "big") <= LARGEST_FRAME, "a frame that is too long is refused at once",
               waiting[:9])  # fmt: skip


class Peer:
    """The other side, by h2: whatever we send must not break its protocol."""

    def __init__(self, wire: Wire, client: bool) -> None:
        configuration = h2.config.H2Configuration(client_side=client, header_encoding=None)
        self.h2 = h2.connection.H2Connection(configuration)
        self.wire = wire
        self.events: list[Any] = []
        self._read = 0
        self.h2.initiate_connection()

    def send(self) -> None:
        data = self.h2.data_to_send()
        if data and not self.wire.closing:
            self.wire.feed(bytes(data))

    def read(self) -> list[Any]:
        new = bytes(self.wire.written[self._read :])
        self._read += len(new)
        if not new:
            return []
        try:
            events = self.h2.receive_data(new)
        except h2.exceptions.ProtocolError as error:
            expect(False, "what we send keeps to the protocol", type(error).__name__, str(error), new[:400])
            raise
        for event in events:
            if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id or 0)
        self.events += events
        return events
