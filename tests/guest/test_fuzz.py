"""Noise on every port: whatever comes, the daemon answers or closes, and goes on serving everybody else."""

import itertools
import os
import socket
import struct

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from indexify_dataplane.wireproto import container_daemon_pb2 as pb
from tests.contracts.daemon_child import ChildDaemons
from tests.contracts.daemon_life import stub
from tests.contracts.daemon_wire import DEADLINE, Api, WebSocket

SETTINGS = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.differing_executors]
)

METHODS = st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"BREW"])
PATHS = st.sampled_from(
    [b"/api/v1/health", b"/api/v1/processes", b"/api/v1/files?path=..", b"/api/v1/pty/x/ws?token=y", b"*", b"/%", b"//"]
) | st.binary(max_size=30).map(lambda data: b"/" + data)
FIELDS = st.lists(
    st.sampled_from(
        [b"Host: x", b"Content-Length: 3", b"Content-Length: 0", b"Transfer-Encoding: chunked", b"Connection: close",
         b"Connection: upgrade", b"Upgrade: websocket", b"Expect: 100-continue", b"Content-Type: application/json",
         b"Sec-WebSocket-Version: 13", b"Range: bytes=0-", b" folded", b"X:\0", b"Content-Length: 99999999999999999999"]
    )
    | st.binary(max_size=20),
    max_size=6,
)  # fmt: skip
BODIES = st.sampled_from([b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"3\r\nabcd", b"{}", b"ffffffffffffffff\r\n"])
REQUESTS = st.builds(
    lambda method, path, version, fields, body: (
        method + b" " + path + b" HTTP/" + version + b"\r\n" + b"\r\n".join([*fields, b"", b""]) + body
    ),
    METHODS, PATHS, st.sampled_from([b"1.1", b"1.0", b"3"]), FIELDS, BODIES,
)  # fmt: skip

H2_FRAMES = st.tuples(st.integers(0, 15), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=60))


class Noise(SynchronousTestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.place = ChildDaemons()
        cls.daemon = cls.place.start()
        cls.api = Api(cls.daemon.http)

    @classmethod
    def tearDownClass(cls) -> None:
        errors = cls.daemon.logs()[1]
        cls.place.stop_all()
        assert "Traceback" not in errors, errors

    def talk(self, address: tuple[str, int], parts: list[bytes]) -> bytes:
        """Send all parts, say that this was all, and read to the end."""
        seen = b""
        with socket.create_connection(address, timeout=DEADLINE) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                for part in parts:
                    connection.sendall(part)
                connection.shutdown(socket.SHUT_WR)
                while chunk := connection.recv(65536):
                    seen += chunk
            except (ConnectionResetError, BrokenPipeError):
                return seen
        return seen

    @SETTINGS
    @given(REQUESTS, st.lists(st.integers(0, 300), max_size=4))
    def test_requests_in_any_pieces(self, data: bytes, cuts: list[int]) -> None:
        places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        pieces = [data[start:end] for start, end in itertools.pairwise(places)]
        whole = self.talk(self.api.address, [data])
        self.assertEqual(self.talk(self.api.address, pieces)[:12], whole[:12], "pieces change nothing")
        if whole:
            self.assertRegex(whole[:13], rb"^HTTP/1\.1 [1-5]\d\d ")
        self.assertEqual(self.api.call("GET", "/health").status, 200)

    @SETTINGS
    @given(st.binary(max_size=400))
    def test_bytes_on_the_http_port(self, data: bytes) -> None:
        self.talk(self.api.address, [data])

    @SETTINGS
    @given(
        st.lists(
            st.tuples(st.integers(0, 15), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=60)), max_size=8
        )
    )
    def test_frames_on_the_grpc_port(self, frames: list[tuple[int, int, int, bytes]]) -> None:
        data = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
        for kind, flags, stream, payload in frames:
            data += len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
        self.talk(self.daemon.grpc, [data])

    def test_grpc_still_answers(self) -> None:
        self.assertTrue(stub(self.daemon).Health(pb.HealthRequest(), timeout=DEADLINE).healthy)

    @SETTINGS
    @given(
        st.lists(
            st.tuples(st.sampled_from([0x82, 0x02, 0x80, 0x81, 0x88, 0x89, 0x8A, 0xC2, 0x8F]), st.binary(max_size=300)),
            max_size=10,
        ),
        st.binary(max_size=20),
    )
    def test_frames_at_a_terminal(self, frames: list[tuple[int, bytes]], tail: bytes) -> None:
        """One viewer sends noise; another one's typing comes back all the same."""
        session = self.session()
        path = f"/pty/{session['session_id']}/ws?token={session['token']}"
        noisy = WebSocket(self.api, path)
        data = b""
        for first, payload in frames:
            mask = os.urandom(4)
            size = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + struct.pack(">H", len(payload))
            masked = bytes(byte ^ mask[place & 3] for place, byte in enumerate(payload))
            data += bytes([first]) + size + mask + masked
        try:
            noisy._socket.sendall(data + tail)
        except OSError:
            self.assertTrue(frames, "cut for nothing")
        steady = WebSocket(self.api, path)
        self.assertEqual(steady.status, 101)
        steady.send(b"\x02")
        steady.send(b"\0\x04steady\n")
        seen = b""
        while b"got steady" not in seen:
            seen += steady.receive()[1:]
        steady.drop()
        noisy.drop()

    def session(self) -> dict[str, str]:
        """A terminal whose program takes every byte as it is, so that no noise can end it."""
        live = [found for found in self.api.call("GET", "/pty").json["sessions"] if found["is_alive"]]
        if live and hasattr(self, "made"):
            return self.made
        read = "dd bs=1000 count=1 2>/dev/null | tr -d '\\n' | sed 's/.*steady.*/got steady/'"
        script = f"stty raw -echo; while :; do {read}; done"
        self.made = self.api.call("POST", "/pty", {"command": "sh", "args": ["-c", script]}).json
        return self.made
