"""What one check says."""

from __future__ import annotations

import enum

from attrs import frozen


class Grade(enum.Enum):
    """How bad it is. Only FAILED makes the exit code 1; SKIPPED needs something that an earlier check found missing."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "FAILED"
    SKIPPED = "skipped"


@frozen
class Finding:
    """``check`` names what was looked at, ``found`` is what is there, ``advice`` what to do about it."""

    check: str
    grade: Grade
    found: str
    advice: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check, Grade.OK, found)


def warning(check: str, found: str, advice: str) -> Finding:
    return Finding(check, Grade.WARNING, found, advice)


def failed(check: str, found: str, advice: str) -> Finding:
    return Finding(check, Grade.FAILED, found, advice)


def skipped(check: str, found: str) -> Finding:
    return Finding(check, Grade.SKIPPED, found)
