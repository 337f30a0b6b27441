"""Terminals."""

from __future__ import annotations

import base64
import http.client
import os
import re
import threading
from typing import Any
from urllib.parse import urlsplit

from .checks import Given, check, plain, same, until
from .processes import shell

FIRST = (0, 4, 41)
"""Releases before it can make a session, and have nothing to attach to it with."""


class Screen:
    """What a terminal has shown."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shown = b""

    def __call__(self, data: bytes) -> None:
        with self._lock:
            self._shown += bytes(data)

    @property
    def text(self) -> str:
        with self._lock:
            return self._shown.decode(errors="replace").replace("\r\n", "\n")

    def shows(self, text: str) -> None:
        until(f"{text!r} on the screen", lambda: text in self.text)


def terminal(given: Given, command: str, *args: str, **options: Any) -> tuple[Any, Screen]:
    screen = Screen()
    return given.sandbox.create_pty(command, list(args), on_data=screen, **options), screen


@check()
def a_terminal_session_is_made(given: Given) -> None:
    session = plain(given.sandbox.create_pty_session("sh", ["-c", "sleep 30"], rows=30, cols=100))
    assert re.fullmatch(r"[\w-]+", session["session_id"]), session
    address = urlsplit(given.sandbox.pty_ws_url(session["session_id"], session["token"]))
    assert address.path == f"/api/v1/pty/{session['session_id']}/ws", address
    if given.release < FIRST:
        # Attach as a user of such a release has to: with a WebSocket client of their own.
        assert address.query == f"token={session['token']}", address
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=10)
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        key = {"Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode()}
        host = {"Host": f"{given.sandbox.sandbox_id}.local"}
        connection.request("GET", f"{address.path}?{address.query}", headers={**upgrade, **key, **host})
        same(connection.getresponse().status, 101)
        connection.close()
    else:
        pty = given.sandbox.connect_pty(session["session_id"], session["token"])
        pty.kill()


@check(since=FIRST)
def a_terminal_shows_takes_input_and_ends(given: Given) -> None:
    ended: list[int] = []
    pty, screen = terminal(
        given, "sh", "-c", "stty size; read line; echo got $line; exit 7", rows=30, cols=100, on_exit=ended.append
    )
    screen.shows("30 100\n")
    assert pty.connected
    pty.send_input("hellö\n")
    same(pty.wait(timeout=20), 7)
    screen.shows("got hellö\n")
    until("the exit", lambda: ended == [7])
    until("it is disconnected", lambda: not pty.connected)


@check(since=FIRST)
def a_terminal_is_resized(given: Given) -> None:
    pty, screen = terminal(given, "sh", "-c", "trap 'stty size; exit' WINCH; echo up; while :; do sleep 0.05; done")
    screen.shows("up\n")
    pty.resize(120, 40)
    same(pty.wait(timeout=20), 0)
    screen.shows("40 120\n")


@check(since=FIRST)
def a_terminal_is_left_and_found_again(given: Given) -> None:
    pty, screen = terminal(given, "sh", "-c", "echo before; read line; echo after $line; exit 4")
    screen.shows("before\n")
    pty.disconnect()
    until("it is disconnected", lambda: not pty.connected)
    later, ended = Screen(), []
    again = given.sandbox.connect_pty(pty.session_id, pty.token)
    again.on_data(later).on_exit(ended.append)
    again.send_input("x\n")
    same(again.wait(timeout=20), 4)
    later.shows("after x\n")
    until("the exit", lambda: ended == [4])


@check(since=FIRST)
def handlers_may_come_before_the_connection(given: Given) -> None:
    pty, screen = terminal(given, "sh", "-c", "echo shown; sleep 0.2; exit 2", env={"TERM": "dumb"}, working_dir="/usr")
    same(pty.connect().session_id, pty.session_id)
    same(pty.wait(timeout=20), 2)
    screen.shows("shown\n")


@check(since=FIRST)
def a_terminal_is_killed(given: Given) -> None:
    pty, screen = terminal(given, "sh", "-c", "echo pid=$$.; sleep 60")
    screen.shows(".\n")
    pid = screen.text.partition("=")[2].partition(".")[0]
    pty.kill()
    until("its end", lambda: shell(given, f"kill -0 {pid}").exit_code != 0)
    # What the SDK makes of it differs: some of its clients cannot read the reason of a WebSocket's close.
    given.fails(lambda: _waited(pty), "SandboxError", "SandboxConnectionError")


def _waited(pty: Any) -> None:
    raise RuntimeError(f"PTY ended with {pty.wait(timeout=20)}")


@check(since=FIRST)
def ten_thousand_lines_cross_a_terminal(given: Given) -> None:
    count = 10_000
    pty, screen = terminal(given, "sh", "-c", f"stty -opost; read go; seq {count}; exit 0")
    pty.send_input("\n")
    same(pty.wait(timeout=60), 0)
    numbers = [line for line in screen.text.splitlines() if line.isdigit()]
    same(numbers, [str(number) for number in range(1, count + 1)])


@check(since=FIRST)
def a_wrong_token_opens_no_terminal(given: Given) -> None:
    session = plain(given.sandbox.create_pty_session("sleep", ["30"]))
    given.fails(lambda: given.sandbox.connect_pty(session["session_id"], "0" * 64), "403")
    given.sandbox.connect_pty(session["session_id"], session["token"]).kill()
