"""The client side of the node's control socket: HTTP over a Unix socket in ``state_dir``."""

from __future__ import annotations

import http.client
import json
import os
import socket

LONGEST = 100
"""Bytes of a path that fit into a socket address everywhere; longer ones go through the directory's descriptor."""


class NotReached(Exception):
    """No node answers there; the text says why."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        if len(os.fsencode(self._path)) <= LONGEST:
            self.sock.connect(self._path)
            return
        directory = os.open(os.path.dirname(self._path), os.O_PATH)
        try:
            self.sock.connect(f"/proc/self/fd/{directory}/{os.path.basename(self._path)}")
        finally:
            os.close(directory)


def ask(path: str, method: str, target: str, *, timeout: float) -> tuple[int, str]:
    """One request to the node behind the socket at ``path``; its status and text. NotReached when there is none, or no
    answer within ``timeout`` seconds."""
    connection = _Connection(path, timeout)
    try:
        connection.request(method, target)
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace")
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NotReached(f"no node runs with the control socket {path}: {error.strerror}") from error
    except TimeoutError as error:
        raise NotReached(f"the node behind {path} did not answer within {timeout:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise NotReached(f"the control socket {path} failed: {error or type(error).__name__}") from error
    finally:
        connection.close()


def no_leaks(text: str) -> bool:
    """Whether the node's answer tells of none; what it could not look at counts as well."""
    told = json.loads(text)
    return not told["leaks"] and not told["problems"]


def leaks_as_table(text: str) -> str:
    """The node's answer for people: leaks, what other executors have here, and what could not be looked at."""
    told = json.loads(text)
    lines = []
    for title, found in (("leak", told["leaks"]), ("other's", told["others"])):
        for each in found:
            owner = f"container {each['container_id']}" if each["container_id"] else ""
            owner += f" executor {each['executor_id']}" if each["executor_id"] else ""
            lines.append(f"{title:<8} {each['kind']:<14} {each['name']}  {owner.strip()}  {each['place']}".rstrip())
    lines += [f"problem  {each}" for each in told["problems"]]
    return "\n".join([*lines, f"{len(told['leaks'])} leaks", ""])
