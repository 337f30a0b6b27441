"""What an engine's error means: the one table from operation, status and the engine's words to a termination reason.

The first row that fits decides. A bad image is one with which the same order cannot succeed later; everything that
an operator, the registry or time can mend is internal, because the server tries those again. The engine's own sentence
is always kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
import urllib3
from attrs import frozen
from docker.errors import APIError, DockerException

from ...core.model import TerminationReason
from ..base import DriverError, ImageError

Reason = TerminationReason
BAD_IMAGE, INTERNAL = Reason.STARTUP_FAILED_BAD_IMAGE, Reason.STARTUP_FAILED_INTERNAL_ERROR

PULL, CREATE, START, OTHER = "pull", "create", "start", "other"


@frozen
class Row:
    """``operations`` are those it applies to; ``status`` the engine's, None for any (also errors inside a stream)."""

    operations: tuple[str, ...]
    status: int | None
    words: str
    reason: TerminationReason


TABLE: tuple[Row, ...] = (
    Row((PULL,), 404, "", BAD_IMAGE),
    Row((PULL,), None, r"manifest unknown|manifest for .* not found|not found: manifest", BAD_IMAGE),
    Row((PULL,), None, r"repository .* not found|repository does not exist", BAD_IMAGE),
    Row((PULL,), None, r"no matching manifest|does not match the specified platform", BAD_IMAGE),
    Row((PULL,), None, r"unsupported (media type|manifest)|unknown blob", BAD_IMAGE),
    Row((PULL, CREATE), None, r"invalid reference format|repository name must be", BAD_IMAGE),
    Row((CREATE,), 404, r"no such image", BAD_IMAGE),
    Row((CREATE,), None, r"no command specified", BAD_IMAGE),
    Row((START,), None, r"oom-killed|out of memory", Reason.OOM),
    Row((START,), None, r"exec format error", BAD_IMAGE),
    Row((START,), None, r"executable file not found|(stat|exec:) .*no such file or directory", BAD_IMAGE),
    Row((START,), None, r"exec: .*permission denied", BAD_IMAGE),
    Row((START, CREATE), None, r"unable to find (user|group)|no matching entries in passwd", BAD_IMAGE),
    Row((START,), None, r"chdir to cwd", BAD_IMAGE),
    Row((PULL, CREATE, START, OTHER), None, "", INTERNAL),
)  # fmt: skip


UNREACHED, BROKE = "the engine cannot be reached", "the connection to the engine broke"
AWAY = re.compile(
    rf"({UNREACHED}|{BROKE}): (?!PermissionError|SSL)", re.IGNORECASE
)  # whoever may not use the engine need not wait for it
LEAVING = re.compile(
    r"transport is closing|error while dialing|client connection is closing|ttrpc: closed|is shutting down"
    r"|containerd\.sock: connect",
    re.IGNORECASE,
)
"""What an engine says, with a status of 500 or more, that is about to end or has lost its own containerd."""


class EngineAway(DriverError):
    """The engine could not be asked, or not to the end: the same will be possible when it is back."""


def is_away(status: int | None, sentence: str) -> bool:
    """Whether an error means that the engine is away."""
    return bool(AWAY.match(sentence) if status is None else status >= 500 and LEAVING.search(sentence))


def reason_of(operation: str, status: int | None, sentence: str) -> TerminationReason:
    """The table, looked up. The last row fits everything."""
    for row in TABLE:
        fits = operation in row.operations and row.status in (None, status)
        if fits and re.search(row.words, sentence, re.IGNORECASE):
            return row.reason
    raise AssertionError(f"the table has no row for {operation!r}")


def failure(operation: str, what: str, sentence: str, status: int | None = None) -> DriverError:
    """The error to raise. ``what`` says what was tried, such as ``container a cannot be created``."""
    reason = reason_of(operation, status, sentence)
    text = f"{what}: {sentence}"
    if reason is BAD_IMAGE:
        return ImageError(text)
    error = EngineAway(text) if is_away(status, sentence) else DriverError(text)
    error.reason = reason
    return error


def sentence_of(error: BaseException) -> str:
    """What the engine said, or why it could not be asked."""
    if isinstance(error, APIError):
        return str(error.explanation or error)
    if isinstance(error, requests.exceptions.ReadTimeout):
        return "the engine does not answer in time"
    if isinstance(error, requests.exceptions.ConnectionError):
        return f"{UNREACHED}: {_named(_innermost(error))}"
    if isinstance(error, (requests.exceptions.ChunkedEncodingError, urllib3.exceptions.ProtocolError, ConnectionError)):
        return f"{BROKE}: {_named(_innermost(error))}"
    return f"{type(error).__name__}: {error}"


def never_sent(error: BaseException) -> bool:
    """Whether the engine has surely not seen the request."""
    return isinstance(_innermost(error), ConnectionRefusedError | FileNotFoundError)


def _innermost(error: BaseException) -> BaseException:
    while error.__context__ is not None:
        error = error.__context__
    return error


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


@contextmanager
def engine_call(operation: str, what: str) -> Iterator[None]:
    """Turn whatever docker-py raises inside into a DriverError (its cause stays attached)."""
    try:
        yield
    except EXPECTED as error:
        raise failure(operation, what, sentence_of(error), status_of(error)) from error


def status_of(error: BaseException) -> int | None:
    """The engine's HTTP status; None when there was no answer."""
    response: Any = getattr(error, "response", None)
    return getattr(response, "status_code", None)


EXPECTED = (DockerException, requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError)
"""Everything that a call through docker-py raises when the engine, or the way to it, is the problem."""
