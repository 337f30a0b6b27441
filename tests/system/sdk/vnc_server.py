"""A VNC server of one grey picture that writes pointer and key events to a file; runs inside the sandbox."""

import socket
import struct
import sys

WIDTH, HEIGHT = 64, 48
PIXELS = struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)


def serve(peer, told):
    def take(count):
        data = b""
        while len(data) < count:
            more = peer.recv(count - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    peer.sendall(b"RFB 003.008\n")
    take(12)
    peer.sendall(b"\x01\x01")  # one kind of authentication: none
    take(1)
    peer.sendall(bytes(4))
    take(1)
    peer.sendall(struct.pack(">HH", WIDTH, HEIGHT) + PIXELS + struct.pack(">I", 4) + b"test")
    while True:
        kind = take(1)[0]
        if kind == 0:
            take(19)
        elif kind == 2:
            take(4 * struct.unpack(">xH", take(3))[0])
        elif kind == 3:
            take(9)
            head = struct.pack(">BxHHHHHi", 0, 1, 0, 0, WIDTH, HEIGHT, 0)
            peer.sendall(head + b"\x80\x80\x80\x00" * (WIDTH * HEIGHT))
        elif kind == 4:
            down, key = struct.unpack(">B2xI", take(7))
            print("key", down, key, file=told, flush=True)
        elif kind == 5:
            print("pointer", *struct.unpack(">BHH", take(5)), file=told, flush=True)
        elif kind == 6:
            take(struct.unpack(">3xI", take(7))[0])


listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
with open(sys.argv[1], "w") as told:
    while True:
        connection, _ = listener.accept()
        try:
            serve(connection, told)
        except (EOFError, ConnectionError):
            connection.close()
