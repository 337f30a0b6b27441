"""Sockets that belong to the containers' network namespace, whichever this process is in."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from .tables import FirewallError, Namespace

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000


def made_in(namespace: Namespace, make: Callable[[], T]) -> T:
    """What ``make`` returns there: a socket belongs to the namespace of the thread that makes it. Raises FirewallError,
    and what ``make`` raises."""
    if namespace.path is None:
        return make()
    result: list[T | BaseException] = []

    def inside() -> None:
        # The thread ends in there.
        try:
            _enter(str(namespace.path))
            result.append(make())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=inside, name="enter network namespace")
    try:
        thread.start()
    except RuntimeError as error:
        raise FirewallError(f"the network namespace {namespace.path} cannot be entered: {error}") from error
    thread.join()
    [found] = result
    if isinstance(found, BaseException):
        raise found
    return found


def _enter(path: str) -> None:
    """Move the calling thread into a network namespace. Raises FirewallError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise FirewallError(f"the network namespace {path} cannot be opened: {error.strerror}") from error
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
            reason = os.strerror(ctypes.get_errno())
            raise FirewallError(f"the network namespace {path} cannot be entered: {reason}")
    finally:
        os.close(descriptor)
