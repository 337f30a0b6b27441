"""What belongs to the process and not to the node: signals, limits, and how it ends."""

from __future__ import annotations

import atexit
import gc
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from twisted.application.internet import TimerService
from twisted.logger import Logger

log = Logger()

INHERITED = dict(os.environ)
"""The environment as whoever started the node made it; what the node sets for itself is not for its children."""

_M_ARENA_MAX = -8
"""The parameter's number in glibc's malloc.h."""

TRIM_SECS = 30.0

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def quiet_libraries() -> None:
    """gRPC's core writes connection trouble to stderr by itself; the log has it in our words. Read at its import."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def raise_file_limit() -> None:
    """Use what the hard limit grants: every proxied request holds two sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        log.debug("file descriptor limit raised", before=soft, now=hard)


def share_one_arena() -> None:
    """Make all threads take memory from one arena of glibc's.

    Each thread of a pool would get an arena of its own at its first answer from an engine and keep what it once took:
    15 MB with the Docker driver, for threads that wait for each other at the interpreter's lock anyway. Other C
    libraries have no such call and no such arenas.
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def settle_memory() -> TimerService:
    """Keep what the start made, modules above all, out of the collector's passes, and let those be rarer.

    It lives as long as the process, and a full pass over it stops the loop: with 1,000 containers the longest block of
    the loop was 55 ms before and 15 to 25 ms since (``tests.bench.node``). Without a higher threshold full passes would
    come more often, as the collector counts what is new against what it still sees.

    What was taken and freed goes back to the system, where glibc keeps it: now what the start had needed, and by the
    service that is returned, from time to time, what many starts of containers have: 7 MB of 104 with 100 sandboxes. It
    takes 0.2 ms, the first time 4.
    """
    import ctypes

    gc.freeze()
    gc.set_threshold(4_000, 10, 10)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)
    trim(0)
    return TimerService(TRIM_SECS, trim, 0)


class Signals:
    """Turns the stop signals into calls in the reactor's thread, for the rest of the process's life.

    The reactor's own handlers would do for SIGTERM, but make twistd end by the signal instead of with code 0, and
    know nothing of SIGQUIT.
    """

    def __init__(self, *, reactor: Any, stop: Callable[[str], None]) -> None:
        self._reactor = reactor
        self._stop = stop

    def take(self) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, self._received)

    def ignore(self) -> None:
        """Everything is done: a signal that still comes must not replace the exit code. The interpreter resets
        handlers while it ends, but leaves ignored signals ignored."""
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _received(self, number: int, _frame: Any) -> None:
        self._reactor.callFromThread(self._stop, signal.Signals(number).name)


def exit_within(seconds: float, code: Callable[[], int]) -> None:
    """End the process after ``seconds`` whatever still runs: a thread in a hung call would keep it for ever."""
    timer = threading.Timer(seconds, lambda: os._exit(code() or 1))
    timer.daemon = True
    timer.start()


def exit_with(code: int) -> None:
    """Make the process end with ``code`` although whoever runs the reactor would end it with 0."""

    def end() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    atexit.register(end)
