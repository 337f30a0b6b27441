"""What the logs of a site tell about a failure."""

from __future__ import annotations

import re
from pathlib import Path

SANDBOX = re.compile(r"\b[0-9a-z]{21}\b")
GRAVE = re.compile(r'"level":"(?:WARN|ERROR)"|Z +(?:WARN|ERROR) |Traceback')
REQUEST = "indexify_dataplane::http_proxy"
"""Requests of tests that wait are told again and again."""
LAST_LINES, MOST_LINES, LINE_LIMIT = 10, 120, 600
"""A log's last lines are shown in any case, so many before them at most, and so many characters of each."""


def story(directory: Path, failure: str) -> str:
    """Of each log: the lines about the sandboxes that ``failure`` names, warnings, and its end."""
    named = set(SANDBOX.findall(failure))

    def matters(line: str) -> bool:
        return REQUEST not in line and bool(GRAVE.search(line) or named & set(SANDBOX.findall(line)))

    told = []
    for log in sorted(directory.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()
        end = max(0, len(lines) - LAST_LINES)
        shown = [*[line for line in lines[:end] if matters(line)][-MOST_LINES:], *lines[end:]]
        told += [f"{log.name} ({len(lines)} lines):", *(each[:LINE_LIMIT] for each in shown)]
    return "\n".join(told)
