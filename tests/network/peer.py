"""One end of a test's traffic, standard library only: ``serve PORT...`` echoes TCP and UDP on both families, ``probe
PORT ADDRESS...`` tells as JSON which protocols got an answer from which address, ``shout PORT ADDRESS...`` sends by all
protocols to all addresses for ever, ``watch PORT ADDRESS...`` counts what arrives there (a line on standard input asks
for the counts: JSON, by address and protocol)."""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import sys
import threading

WAIT = 0.5


def family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def serve(ports: list[int]) -> None:
    """Until standard input ends."""
    chosen = selectors.DefaultSelector()
    for port in ports:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            one = socket.socket(socket.AF_INET6, kind)
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if kind == socket.SOCK_DGRAM:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
                one.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO: answer from the address that was asked
            one.bind(("::", port))
            if kind == socket.SOCK_STREAM:
                one.listen(64)
            chosen.register(one, selectors.EVENT_READ)
    chosen.register(sys.stdin, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in chosen.select():
            if key.fileobj is sys.stdin:
                if not sys.stdin.readline():
                    return
            elif isinstance(key.fileobj, socket.socket):
                answer(key.fileobj)


def answer(one: socket.socket) -> None:
    try:
        if one.type == socket.SOCK_STREAM:
            accepted, _ = one.accept()
            accepted.sendall(b"ok")
            accepted.close()
        else:
            data, extra, _, asker = one.recvmsg(2048, 512)
            one.sendmsg([data], [each for each in extra if each[0] == socket.IPPROTO_IPV6], 0, asker)
    except OSError:
        pass  # the asker gave up


def tcp(address: str, port: int) -> bool:
    with socket.create_connection((address, port), WAIT) as one:
        one.settimeout(WAIT)
        return one.recv(2) == b"ok"


def udp(address: str, port: int) -> bool:
    with socket.socket(family(address), socket.SOCK_DGRAM) as one:
        one.settimeout(WAIT)
        one.connect(socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0][4])
        one.send(b"hello")
        return one.recv(5) == b"hello"


def icmp(address: str, _: int) -> bool:
    six = ":" in address
    protocol = socket.getprotobyname("ipv6-icmp") if six else socket.IPPROTO_ICMP
    with socket.socket(family(address), socket.SOCK_RAW, protocol) as one:
        one.settimeout(WAIT)
        mark = os.urandom(8)
        head = struct.pack("!BBHHH", 128 if six else 8, 0, 0, os.getpid() & 0xFFFF, 1)
        total = sum(struct.unpack("!8H", head + mark))
        total = (total >> 16) + (total & 0xFFFF)
        total += total >> 16
        head = struct.pack("!BBHHH", 128 if six else 8, 0, ~total & 0xFFFF, os.getpid() & 0xFFFF, 1)
        one.connect(socket.getaddrinfo(address, None)[0][4])
        one.send(head + mark)
        while True:
            reply = one.recv(2048)
            body = reply if six else reply[20:]
            if body[:1] == (b"\x81" if six else b"\x00") and mark in body:
                return True


def probe(port: int, addresses: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {address: [] for address in addresses}

    def attempt(address: str, name: str, ask: object) -> None:
        try:
            if ask(address, port):  # type: ignore[operator]
                found[address].append(name)
        except OSError:
            pass  # that is what is asked

    threads = [
        threading.Thread(target=attempt, args=(address, name, ask))
        for address in addresses
        for name, ask in (("tcp", tcp), ("udp", udp), ("icmp", icmp))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def shout(port: int, addresses: list[str]) -> None:
    """From the first moment, as fast as it goes without taking the machine; errors are what is expected."""
    udp_sockets = {kind: socket.socket(kind, socket.SOCK_DGRAM) for kind in (socket.AF_INET, socket.AF_INET6)}
    pings = {}
    for kind, protocol in ((socket.AF_INET, 1), (socket.AF_INET6, 58)):
        try:
            pings[kind] = socket.socket(kind, socket.SOCK_DGRAM, protocol)  # where the container may ping at all
        except OSError:
            continue
    calls: list[socket.socket] = []
    while True:
        for address in addresses:
            kind = family(address)
            for one, data in ((udp_sockets[kind], b"canary"), (pings.get(kind), PING[kind])):
                try:
                    if one is not None:
                        one.sendto(data, (address, port if one is udp_sockets[kind] else 0))
                except OSError:
                    pass
            call = socket.socket(kind, socket.SOCK_STREAM)
            call.setblocking(False)
            try:
                call.connect((address, port))
            except OSError:
                pass
            calls.append(call)
        for call in calls[: -2 * len(addresses)]:
            call.close()
        calls = calls[-2 * len(addresses) :]
        threading.Event().wait(0.02)


PING = {socket.AF_INET: b"\x08\0\0\0\0\0\0\x01canary", socket.AF_INET6: b"\x80\0\0\0\0\0\0\x01canary"}


def watch(port: int, addresses: list[str]) -> None:
    """Until standard input ends. What another port or another protocol gets is not of the canary."""
    counts = {address: {"tcp": 0, "udp": 0, "icmp": 0} for address in addresses}
    chosen = selectors.DefaultSelector()
    for address in addresses:
        kind = family(address)
        for name in counts[address]:
            icmp_number = socket.IPPROTO_ICMP if kind == socket.AF_INET else 58
            made = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "icmp": socket.SOCK_RAW}[name]
            one = socket.socket(kind, made, icmp_number if name == "icmp" else 0)
            if name != "icmp":
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((address, 0 if name == "icmp" else port))
            if name == "tcp":
                one.listen(128)
            chosen.register(one, selectors.EVENT_READ, (address, name))
    chosen.register(sys.stdin, selectors.EVENT_READ)
    print("ready", flush=True)
    while True:
        for key, _ in chosen.select():
            if key.fileobj is sys.stdin:
                if not sys.stdin.readline():
                    return
                print(json.dumps(counts), flush=True)
            elif isinstance(key.fileobj, socket.socket):
                address, name = key.data
                if name == "tcp":
                    key.fileobj.accept()[0].close()
                elif b"canary" not in key.fileobj.recv(2048):
                    continue
                counts[address][name] += 1


if __name__ == "__main__":
    if sys.argv[1] in ("shout", "watch"):
        {"shout": shout, "watch": watch}[sys.argv[1]](int(sys.argv[2]), sys.argv[3:])
    elif sys.argv[1] == "serve":
        serve([int(port) for port in sys.argv[2:]])
    else:
        print(json.dumps(probe(int(sys.argv[2]), sys.argv[3:])))
