"""Findings as text for people and as JSON for programs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence

from .finding import Finding, Grade

WIDTH = 100
_GRADE, _CHECK = 9, 24


def sound(findings: Sequence[Finding]) -> bool:
    """Whether nothing failed; warnings do not count."""
    return all(each.grade is not Grade.FAILED for each in findings)


def as_table(findings: Sequence[Finding]) -> str:
    """One line per finding, the advice below it, and a closing line with the counts."""
    lines: list[str] = []
    for each in findings:
        lines += _wrapped(f"{each.grade.value:<{_GRADE}}{each.check:<{_CHECK}}", each.found)
        if each.advice:
            lines += _wrapped(" " * _GRADE + f"{'do:':>{_CHECK - 1}} ", each.advice)
    count = {grade: sum(each.grade is grade for each in findings) for grade in Grade}
    lines.append("")
    lines.append(
        f"{count[Grade.OK]} ok, {count[Grade.WARNING]} warnings, {count[Grade.FAILED]} failed, "
        f"{count[Grade.SKIPPED]} skipped"
    )
    return "\n".join(lines) + "\n"


def as_json(findings: Sequence[Finding]) -> str:
    """``{"ok": bool, "checks": [{"check", "grade", "found", "advice"}]}``; grades in lower case."""
    checks = [
        {"check": each.check, "grade": each.grade.value.lower(), "found": each.found, "advice": each.advice}
        for each in findings
    ]
    return json.dumps({"ok": sound(findings), "checks": checks}, indent=2, ensure_ascii=False) + "\n"


def _wrapped(head: str, text: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * (_GRADE + _CHECK),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [head.rstrip()]
