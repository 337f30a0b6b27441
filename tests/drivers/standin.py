"""Stands in for the daemon of a sandbox and for a function executor: takes their flags, listens where they do, and does
what a test tells it, a line at a time, over its gRPC port. Standard library only; run as a script."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys


def option(name: str, default: str = "") -> str:
    arguments = sys.argv[1:]
    for at, argument in enumerate(arguments):
        if argument == "--":
            break
        if argument == name:
            return arguments[at + 1]
        if argument.startswith(name + "="):
            return argument[len(name) + 1 :]
    return default


def entrypoint() -> list[str]:
    return sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []


ESCAPED = """
import os, sys, time
os.setsid()
if os.fork():
    os._exit(0)
os.setsid()
with open(sys.argv[1] + ".new", "w") as file:
    file.write(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""


def obey(line: str) -> str:
    command, _, rest = line.strip().partition(" ")
    if command == "exit":
        os._exit(int(rest))
    if command == "signal":
        os.kill(os.getpid(), int(rest))
    if command == "print":
        os.write(1, base64.b64decode(rest))
    if command == "ignore-term":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if command == "child":  # an ordinary child that listens; its pid and port
        child = subprocess.Popen(
            [sys.executable, "-c", "import socket,time; s = socket.create_server(('127.0.0.1', 0));"
             "print(s.getsockname()[1], flush=True); time.sleep(600)"],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        return f"{child.pid} {int(child.stdout.readline())}"
    if command == "escape":  # one that is nobody's child and of another session; its pid comes by a file
        subprocess.run([sys.executable, "-c", ESCAPED, rest], check=True)
    if command == "eat":  # memory, MiB
        hunger = [bytearray(os.urandom(1 << 20)) for _ in range(int(rest))]
        return str(len(hunger))
    if command == "env":
        return json.dumps(dict(os.environ))
    if command == "facts":
        return json.dumps({"pid": os.getpid(), "parent": os.getppid(), "session": os.getsid(0), "cwd": os.getcwd(),
                           "argv": sys.argv, "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd"))})  # fmt: skip
    return "done"


def main() -> None:
    first = entrypoint()[:1]
    if first == ["fail"]:
        print("cannot go on", flush=True)
        sys.exit(5)
    if first == ["hang"] or option("--hang"):
        signal.pause()
    address = option("--address", "127.0.0.1")
    host, _, port = address.partition(":")
    control = socket.create_server((host, int(port or 0)))
    http = socket.create_server((host, 0))
    if option("--port-file"):
        text = json.dumps({"grpc": control.getsockname()[1], "http": http.getsockname()[1], "pid": os.getpid()})
        with open(option("--port-file") + ".new", "w") as file:
            file.write(text)
        os.rename(option("--port-file") + ".new", option("--port-file"))
    else:
        http.close()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    while True:
        connection, _ = control.accept()
        with connection, connection.makefile("rw") as stream:
            for line in stream:
                stream.write(obey(line) + "\n")
                stream.flush()


main()
